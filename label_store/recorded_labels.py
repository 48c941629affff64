"""Reads a data set's recorded labels by sample and view."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from teacherfarm.label_store.label_recorder import LabelRecorder
from teacherfarm.label_store.manifest import Manifest, TeacherIdentity
from teacherfarm.protos.soft_label import SoftLabels

if TYPE_CHECKING:
    from teacherfarm.crops.sample_index import SampleIndex

__all__ = ["LabelRecorder", "Manifest", "RecordedLabels", "TeacherIdentity"]


class RecordedLabels:
    """A reader; rows are places in ``index``."""

    manifest: Manifest
    index: SampleIndex

    @classmethod
    def open(cls, location: str, *, near: str | None = None) -> RecordedLabels:
        raise NotImplementedError

    def read(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        raise NotImplementedError

    def boxes(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.void] | None:
        raise NotImplementedError

    def soft_labels(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> SoftLabels:
        raise NotImplementedError

    def check(self, wanted: Manifest) -> None:
        raise NotImplementedError
