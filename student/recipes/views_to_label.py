"""The crops of a data set that have no label yet, image by image: each image is decoded once for its views."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from teacherfarm.crops.crop_plan import CropPlan, sample_number
from teacherfarm.crops.cutting import cut, wants_padded
from teacherfarm.crops.sample_index import HASH_BYTES, SampleIndex
from teacherfarm.crops.view_schedule import ViewSchedule
from teacherfarm.protos.crop import CROP_KEY_BYTES, Rendering, content_keys
from teacherfarm.protos.faults import SampleChanged, UnreadableImage
from teacherfarm.protos.references import CropReferences
from teacherfarm.student.crop_collate import empty_batch
from teacherfarm.student.crop_dataset import limit_threads
from teacherfarm.student.image_sources import ImageSource
from teacherfarm.student.recorded_samples import refuse_changed

MOST_VIEWS_AT_ONCE = 256
"""An image with more views than this is decoded again for the others: a worker's batch must fit into memory."""

_log = logging.getLogger(__name__)

Present = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class ImageViews:
    """Some views of one image, still to be labelled."""

    sample: int
    views: NDArray[np.int64]


class ViewsToLabel(Dataset[dict[str, Any]]):
    """Batches by lists of ImageViews; images that cannot be read, or changed, give blank crops of weight 0.

    After :meth:`refer` crops are references, 20 bytes each, and no image is read here.
    """

    def __init__(self, source: ImageSource, *, plan: CropPlan, teacher_rendering: Rendering, views: int) -> None:
        self.source = source
        self.plan = plan
        self.teacher_rendering = teacher_rendering
        self.schedule = ViewSchedule(views=views, order="cycle", per_visit=views)
        self._hashes: NDArray[np.bytes_] | None = None
        self._renamed: Mapping[int, int] = {}
        self._index: SampleIndex | None = None
        self._rows = np.zeros(0, np.int64)

    def refer(self, index: SampleIndex, rows: NDArray[np.int64]) -> None:
        """Name crops instead of cutting them: ``rows`` are the samples' places in ``index``."""
        self._index, self._rows = index, rows

    def expect(self, hashes: NDArray[np.void], renamed: Mapping[int, int]) -> None:
        """Leave out images that hold something else by now (V16 [images]); see :class:`CropDataset`."""
        self._hashes = np.ascontiguousarray(hashes).view(f"S{HASH_BYTES}")
        self._renamed = renamed

    def number(self, sample: int) -> int:
        """Of the name by which the plan goes for a sample."""
        return self._renamed[sample] if sample in self._renamed else sample_number(self.source.name(sample))

    def __getitems__(self, todo: Sequence[ImageViews]) -> list[dict[str, Any]]:
        """One batch, cut straight into the memory that it is handed over in."""
        if get_worker_info() is not None:
            limit_threads(os.getpid())
        samples = np.concatenate([np.full(len(image.views), image.sample) for image in todo])
        views = np.concatenate([image.views for image in todo])
        if self._index is not None:
            rows = self._rows[samples]
            table = CropReferences.of_views(self._index.numbers()[rows], self._index.prefixes()[rows], views).table
            crops = torch.from_numpy(table.view(np.uint8).reshape(len(table), -1))
            weight, keys = np.ones(len(table), np.float32), b""
        else:
            crops, weight, keys = self._pixels(todo, len(samples))
        return [{"crops": crops, "keys": keys, "weight": weight, "samples": samples, "views": views}]

    def _pixels(self, todo: Sequence[ImageViews], num_crops: int) -> tuple[Tensor, NDArray[np.float32], bytes]:
        rendering = self.teacher_rendering
        crops = empty_batch((num_crops, rendering.height, rendering.width, 3), torch.uint8)
        weight, keys, done = np.zeros(num_crops, np.float32), [], 0
        for image in todo:
            rows = slice(done, done + len(image.views))
            readable, own_keys = self._cut(image, crops[rows])
            weight[rows] = readable
            keys.append(own_keys)
            done = rows.stop
        return crops, weight, b"".join(keys)

    def _cut(self, todo: ImageViews, crops: Tensor) -> tuple[bool, bytes]:
        name = self.source.name(todo.sample)
        try:
            image = self.source.load(todo.sample)
            if self._hashes is not None:
                refuse_changed(name, image, self._hashes[todo.sample])
            pixels = image.pixels(name, padded=wants_padded(self.teacher_rendering))
        except (UnreadableImage, SampleChanged) as fault:
            _log.warning("no labels for %s: %s", name, fault)
            crops.zero_()
            return False, os.urandom(CROP_KEY_BYTES * len(crops))
        number = np.full(len(todo.views), self.number(todo.sample), np.uint64)
        boxes = self.plan.boxes(number, todo.views, pixels.shape[0], pixels.shape[1])
        cut(pixels, boxes, self.teacher_rendering, out=crops.numpy())
        return True, content_keys([image.digest()] * len(boxes), boxes, self.teacher_rendering)


@dataclass(frozen=True, kw_only=True)
class Todo:
    """Batches of ImageViews, of at most ``batch_size`` crops where an image's views allow: a loader's batch sampler.

    ``rows``: of each sample, where its labels are recorded. ``present``: which of them are there. It is asked as the
    loader goes along, so that a million images need no list.
    """

    samples: NDArray[np.int64]
    rows: NDArray[np.int64]
    views: int
    batch_size: int
    present: Present

    def __iter__(self) -> Iterator[list[ImageViews]]:
        batch: list[ImageViews] = []
        size = 0
        for sample in self.samples.tolist():
            for image in self._missing(sample):
                if batch and size + len(image.views) > self.batch_size:
                    yield batch
                    batch, size = [], 0
                batch.append(image)
                size += len(image.views)
        if batch:
            yield batch

    def count(self) -> int:
        """How many labels of these samples are there already."""
        views = np.arange(self.views)
        return sum(
            int(self.present(np.repeat(rows, self.views), np.tile(views, len(rows))).sum())
            for rows in np.array_split(self.rows[self.samples], 1 + len(self.samples) * self.views // (1 << 20))
        )

    def _missing(self, sample: int) -> Iterator[ImageViews]:
        views = np.arange(self.views)
        missing = views[~self.present(np.full(self.views, self.rows[sample]), views)]
        for first in range(0, len(missing), MOST_VIEWS_AT_ONCE):
            yield ImageViews(sample=sample, views=missing[first : first + MOST_VIEWS_AT_ONCE])


def loader_of(dataset: ViewsToLabel, todo: Todo, *, workers: int) -> DataLoader[dict[str, Any]]:
    """Batches of what is to do, in order."""
    return DataLoader(
        dataset,
        batch_sampler=todo,
        num_workers=workers,
        collate_fn=_only,
        prefetch_factor=2 if workers else None,
    )


def _only(batches: list[dict[str, Any]]) -> dict[str, Any]:
    return batches[0]
