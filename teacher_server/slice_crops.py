"""One slice's crops on their way to a teacher: received as pixels, or to be cut only where the teacher is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.crop import CropBatch
from teacherfarm.protos.faults import TeacherFarmFault


class SliceCrops(Protocol):
    """``keys``: 16 bytes a crop, or none."""

    keys: bytes
    priority: int

    @property
    def refused(self) -> Mapping[int, TeacherFarmFault]:
        """Rows that cannot be had, and why: some known from the start, which need not be rendered, others by that."""
        ...

    def __len__(self) -> int: ...

    async def render(self, rows: Sequence[int]) -> tuple[NDArray[Any], Sequence[int]]:
        """Pixels [n, H, W, C], and which of ``rows`` they are, in their order: those not refused meanwhile."""
        ...


class SentCrops:
    """Crops whose pixels came over the wire."""

    refused: Mapping[int, TeacherFarmFault] = {}

    def __init__(self, batch: CropBatch) -> None:
        self.keys, self.priority = batch.keys, batch.priority
        self._pixels = batch.pixels

    def __len__(self) -> int:
        return len(self._pixels)

    async def render(self, rows: Sequence[int]) -> tuple[NDArray[Any], Sequence[int]]:
        return (self._pixels if len(rows) == len(self._pixels) else self._pixels[np.asarray(rows, np.int64)]), rows
