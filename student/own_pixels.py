"""Cuts crops that were named by reference, from the student's own images: where the server's differ or are missing."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.crop_plan import BOX, CropPlan, sample_number
from teacherfarm.crops.cutting import cut
from teacherfarm.crops.mixing import mix_table
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.faults import UnknownSample
from teacherfarm.protos.references import CropReferences
from teacherfarm.student.image_sources import ImageSource


class OwnPixels:
    """Call it with references: uint8 [N, H, W, 3], the very pixels that a server with the same images would cut.

    ``number(index)``: of the name by which references go, where not by the image's own.
    """

    def __init__(
        self,
        source: ImageSource,
        rendering: Rendering,
        plan: CropPlan,
        *,
        number: Callable[[int], int] | None = None,
    ) -> None:
        self.source = source
        self.rendering = rendering
        self.plan = plan
        self._number = number or (lambda index: sample_number(source.name(index)))
        self._lock = threading.Lock()
        self._sorted: tuple[NDArray[np.uint64], NDArray[np.int64]] | None = None

    def __call__(self, references: CropReferences) -> NDArray[np.uint8]:
        table = references.table
        pixels = np.empty((len(table), self.rendering.height, self.rendering.width, 3), np.uint8)
        for number in np.unique(table["sample"]).tolist():
            places = np.flatnonzero(table["sample"] == number)
            index = self._index(number)
            if index < 0:
                raise UnknownSample(f"no own sample has the number {number:016x}")
            name = self.source.name(index)
            image = self.source.load(index).pixels(name)
            pixels[places] = cut(image, self._boxes(table[places], *image.shape[:2]), self.rendering)
        return pixels if references.mixing is None else mix_table(pixels, references.mixing)

    def name(self, number: int) -> str:
        """What the student calls the sample with this number."""
        index = self._index(number)
        return f"number {number:016x}" if index < 0 else self.source.name(index)

    def _boxes(self, entries: NDArray[np.void], height: int, width: int) -> NDArray[np.void]:
        assert entries.dtype.names is not None
        if "view" in entries.dtype.names:
            return self.plan.boxes(entries["sample"], entries["view"].astype(np.int64), height, width)
        boxes = np.empty(len(entries), BOX)
        for side in ("top", "left", "height", "width", "flip"):
            boxes[side] = entries[side]
        return boxes

    def _index(self, number: int) -> int:
        """The index of a sample, found in all names: sorted when it is first needed, which is seldom at all."""
        with self._lock:
            if self._sorted is None:
                count = len(self.source)
                numbers = np.fromiter((self._number(index) for index in range(count)), np.uint64, count)
                order = np.argsort(numbers, kind="stable")
                self._sorted = numbers[order], order
        numbers, order = self._sorted
        place = int(np.searchsorted(numbers, np.uint64(number)))
        return int(order[place]) if place < len(numbers) and int(numbers[place]) == number else -1
