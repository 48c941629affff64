"""Soft labels pooled from label maps (ReLabel, arXiv 2101.05022): a label source that goes by sample and view.

One map an image labels every crop of it, so crops may be fresh and no teacher is asked. Cuts no crops.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.crop_plan import sample_number
from teacherfarm.label_store.relabel_files import crop_fractions, label_map_paths, read_label_map
from teacherfarm.protos.faults import LabelsMissing, UnreadableImage
from teacherfarm.protos.soft_label import LABELS, LabelSpec, SoftLabels
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.recorded_samples import refuse_mixed
from teacherfarm.student.recorded_teacher import UNBOUNDED, OnMissing
from teacherfarm.student.recording_teacher import CropsBySample


class LabelMapTeacher:
    """Dense labels of a data set's crops from a folder of label maps: CLASS/IMAGE.pt for each CLASS/IMAGE.jpg.

    ``dataset``: whose ``samples`` and ``views`` the batches have. ``card``: its ``num_classes`` are those of the maps.
    ``upright``: maps whose last axis runs across the image, not down it as ReLabel's. ``on_missing``: "raise"
    LabelsMissing for an image without a map, or "skip": its crops have weight 0, as have images that cannot be read.
    Raises ValueError where the folder has no map of any image; answers raise BadLabelFile or UnsafeLabelFile.
    """

    by_sample = True
    needs_pixels = False
    replays = False

    def __init__(
        self,
        folder: str | Path,
        dataset: CropsBySample,
        card: TeacherCard,
        *,
        upright: bool = False,
        on_missing: OnMissing = "raise",
        threads: int = 4,
    ) -> None:
        self.folder = str(folder)
        self.card = card
        self.spec = LabelSpec(outputs=(LABELS,)).resolve(card)
        self.upright = upright
        self.on_missing = on_missing
        self._source, self._plan, self._threads = dataset.source, dataset.plan, threads
        names = [self._source.name(index) for index in range(len(self._source))]
        self._paths = label_map_paths(self.folder, names)
        if not any(map(os.path.isfile, self._paths)):
            raise ValueError(
                f"no label map of any of {len(names)} images in {folder}: expected {self._paths[0]} and so on"
            )
        self._sizes = np.zeros((len(names), 2), np.int64)
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<LabelMapTeacher {self.folder}, {len(self._paths)} images, {self.card.num_classes} classes>"

    def room(self) -> int:
        """Maps are read as fast as they are asked for: the pass's own limit acts."""
        return UNBOUNDED

    def submit(
        self,
        crops: Any,
        *,
        samples: NDArray[np.int64],
        views: NDArray[np.int64],
        keys: bytes = b"",
        priority: int = 0,
    ) -> PooledLabels:
        """The labels of some samples' views, read on other threads; ``crops`` are not looked at."""
        refuse_mixed(crops)
        with self._lock:
            if self._pool is None:
                # Not before the first question: loaders fork their workers until then.
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="label-maps")
        return PooledLabels(self._pool.submit(self._labels, np.asarray(samples), np.asarray(views)))

    def close(self) -> None:
        """End the threads; what is being read is waited for, what was asked for is given up."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _labels(self, samples: NDArray[np.int64], views: NDArray[np.int64]) -> SoftLabels:
        records = np.zeros(len(samples), self.spec.record_dtype(self.card))
        weight = np.zeros(len(samples), np.float32)
        for sample in np.unique(samples[samples >= 0]).tolist():
            rows = np.flatnonzero(samples == sample)
            logs = self._log_probabilities(sample, views[rows])
            if logs is not None:
                records[LABELS][rows] = logs
                weight[rows] = 1
        return SoftLabels.from_records(records, self.spec, self.card, weight)

    def _log_probabilities(self, sample: int, views: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Labels [M, C] of one image's crops; None where it cannot be read, or has no map and none is needed."""
        name = self._source.name(sample)
        try:
            found = read_label_map(self._paths[sample], num_classes=self.card.num_classes)
            height, width = self._size(sample, name)
        except UnreadableImage:
            return None
        except FileNotFoundError as error:
            if self.on_missing == "skip":
                return None
            raise LabelsMissing(
                f"{name!r} has no label map, expected {self._paths[sample]}: get it, or skip such crops (weight 0)"
            ) from error
        boxes = self._plan.boxes(np.uint64(sample_number(name)), views, height, width)
        return found.log_probabilities(
            crop_fractions(boxes, height, width), self.card.num_classes, upright=self.upright
        )

    def _size(self, sample: int, name: str) -> tuple[int, int]:
        height, width = self._sizes[sample].tolist()
        if not height:
            # Two threads may both read an image's head, and find the same.
            height, width = self._sizes[sample] = self._source.load(sample).size(name)
        return height, width


class PooledLabels:
    """Labels that other threads are reading."""

    def __init__(self, future: Future[SoftLabels]) -> None:
        self._future = future

    def done(self) -> bool:
        return self._future.done()

    def result(self, timeout: float | None = None) -> SoftLabels:
        return self._future.result(timeout)

    def cancel(self) -> None:
        self._future.cancel()
