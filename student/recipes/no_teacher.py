"""A label source for phases in which nobody is asked: it answers at once, and with nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.soft_label import LabelSpec, SoftLabels


class _Nothing:
    def __init__(self, num_crops: int) -> None:
        self._num_crops = num_crops

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> SoftLabels:
        return SoftLabels(
            records=np.zeros(self._num_crops, np.dtype([])),
            spec=LabelSpec(),
            num_classes=0,
            activation="none",
            weight=np.ones(self._num_crops, np.float32),
            channel_axes={},
        )

    def cancel(self) -> None:
        """There is nothing to give up."""


class NoTeacher:
    """Soft labels of the right number, without any output."""

    by_sample = True
    needs_pixels = False

    def submit(
        self,
        crops: Any,
        *,
        samples: NDArray[np.int64],
        views: NDArray[np.int64],
        keys: bytes = b"",
        priority: int = 0,
    ) -> _Nothing:
        return _Nothing(len(samples))

    def room(self) -> int:
        return 1 << 30
