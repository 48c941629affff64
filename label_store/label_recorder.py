"""Records labels: one writer's journal in a directory that several may write at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from teacherfarm.label_store.manifest import Manifest

if TYPE_CHECKING:
    from teacherfarm.crops.sample_index import SampleIndex


class LabelRecorder:
    """One writer."""

    def __init__(self, directory: str, manifest: Manifest, index: SampleIndex, *, commit_every_s: float = 1.0) -> None:
        raise NotImplementedError

    def add(
        self,
        rows: NDArray[np.int64],
        views: NDArray[np.int64],
        records: NDArray[np.void],
        boxes: NDArray[np.void] | None = None,
    ) -> None:
        raise NotImplementedError

    def commit(self) -> int:
        raise NotImplementedError

    def close(self, *, seal: bool = True) -> None:
        raise NotImplementedError

    def present(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.bool_]:
        raise NotImplementedError
