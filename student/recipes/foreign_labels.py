"""What each kind of other projects' label files brings into recorded labels: which spec, views and crops, and the
records of each image. Writes nothing.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.crops.sample_index import SampleIndex
from teacherfarm.label_store.fkd_files import FkdForm, label_paths, read_fkd
from teacherfarm.label_store.relabel_files import crop_fractions, label_map_paths, read_label_map
from teacherfarm.label_store.rounded_probabilities import log_probabilities
from teacherfarm.label_store.tinyvit_files import KeyPlaces, find_epochs, read_epoch
from teacherfarm.protos.faults import BadLabelFile, UnsafeLabelFile
from teacherfarm.protos.soft_label import LABELS, LabelSpec, top_k
from teacherfarm.protos.teacher_card import TeacherCard

_IMAGES_AT_ONCE = 16

BY_SEED = "TinyViT's augmentation, by seed"
"""What the manifest says of crops that only TinyViT's own code can cut again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Labels [N] of some images.

    ``done``: how much further on, in the source's units. ``problems``: files that were left out. ``absent``: how many
    images have none.
    """

    done: int
    rows: NDArray[np.int64]
    views: NDArray[np.int64]
    records: NDArray[np.void]
    boxes: NDArray[np.void] | None = None
    seeds: NDArray[np.int32] | None = None
    problems: Sequence[BadLabelFile] = field(default_factory=list)
    absent: int = 0


class ForeignLabels(Protocol):
    """A kind of files."""

    spec: LabelSpec
    views: int
    has_boxes: bool
    mixing: str
    unit: str
    total: int

    @property
    def plan(self) -> CropPlan | None:
        """The crop plan that gave their crops, where one did."""
        ...

    def parts(self, dtype: np.dtype[np.void], rows: NDArray[np.int64]) -> Iterator[Part]:
        """The labels of these rows of the index, as records of ``dtype``. Raises UnsafeLabelFile at once."""
        ...


class FkdSource:
    """FKD's files: boxes come with the labels, one view a stored crop."""

    plan = None
    has_boxes = True
    mixing = "none"
    unit = "image"

    def __init__(
        self,
        folder: Path,
        index: SampleIndex,
        card: TeacherCard,
        *,
        form: FkdForm | None = None,
        views: int | None = None,
        temperature: float = 1.0,
        threads: int = 8,
    ) -> None:
        self.index, self.form, self.threads, self.num_classes = index, form, threads, card.num_classes
        self.paths = [f"{folder}/{path}" for path in label_paths(_names(index))]
        first = read_fkd(_first(self.paths, folder), num_classes=card.num_classes, form=form)
        if first.full and temperature != 1:
            raise ValueError("full labels are kept at temperature 1: --temperature is for forms of the best classes")
        self.views = views or len(first)
        self.spec = LabelSpec(outputs=(LABELS,), top_k=first.num_kept, temperature=temperature)
        self.total = len(index)

    def parts(self, dtype: np.dtype[np.void], rows: NDArray[np.int64]) -> Iterator[Part]:
        return image_parts(lambda row: self._read(row, dtype), rows, dtype, self.threads)

    def _read(self, row: int, dtype: np.dtype[np.void]) -> tuple[NDArray[np.void], NDArray[np.void] | None]:
        labels = read_fkd(self.paths[row], num_classes=self.num_classes, form=self.form)
        if len(labels) > self.views:
            raise BadLabelFile(
                f"{labels.name} has {len(labels)} crops, more than {self.views}: start again in an empty folder with "
                f"--views {len(labels)}"
            )
        if labels.num_kept != self.spec.top_k:
            raise BadLabelFile(f"{labels.name} keeps {labels.num_kept} classes a label, the first {self.spec.top_k}")
        boxes = labels.boxes(int(self.index.heights[row]), int(self.index.widths[row]))
        if labels.full:
            return dense_records(log_probabilities(labels.labels), dtype), boxes
        classes, values = labels.top_k()
        return top_k_records(classes, log_probabilities(values), dtype), boxes


class RelabelSource:
    """ReLabel's label maps, which label any crop: those of a crop plan."""

    has_boxes = False
    mixing = "none"
    unit = "image"

    def __init__(
        self,
        folder: Path,
        index: SampleIndex,
        card: TeacherCard,
        *,
        plan: CropPlan,
        views: int = 50,
        num_kept: int = 10,
        upright: bool = False,
        threads: int = 8,
    ) -> None:
        self.index, self.plan, self.views, self.upright, self.threads = index, plan, views, upright, threads
        self.num_classes = card.num_classes
        self.paths = label_map_paths(str(folder), _names(index))
        read_label_map(_first(self.paths, folder), num_classes=card.num_classes)
        self.spec = LabelSpec(outputs=(LABELS,), top_k=num_kept)
        self.total = len(index)

    def parts(self, dtype: np.dtype[np.void], rows: NDArray[np.int64]) -> Iterator[Part]:
        return image_parts(lambda row: self._read(row, dtype), rows, dtype, self.threads)

    def _read(self, row: int, dtype: np.dtype[np.void]) -> tuple[NDArray[np.void], NDArray[np.void] | None]:
        found = read_label_map(self.paths[row], num_classes=self.num_classes)
        height, width = int(self.index.heights[row]), int(self.index.widths[row])
        boxes = self.plan.boxes(self.index.numbers()[row], np.arange(self.views), height, width)
        logs = found.log_probabilities(crop_fractions(boxes, height, width), self.num_classes, upright=self.upright)
        if not self.spec.top_k:
            return dense_records(logs.astype(np.float16), dtype), None
        classes, values = top_k(logs, self.spec.top_k, 1.0)
        return top_k_records(classes, values.astype(np.float16), dtype), None


class TinyVitSource:
    """TinyViT's files: one view an epoch, each with the seed of its augmentation."""

    plan = None
    has_boxes = False
    mixing = BY_SEED
    unit = "label"

    def __init__(self, folder: Path, index: SampleIndex, card: TeacherCard) -> None:
        self.epochs = find_epochs(folder)
        self.index, self.num_classes = index, card.num_classes
        self.views = self.epochs[-1].epoch + 1
        self.spec = LabelSpec(outputs=(LABELS,), top_k=self.epochs[0].top_k)
        self.total = len(self.epochs) * len(index)

    def parts(self, dtype: np.dtype[np.void], rows: NDArray[np.int64]) -> Iterator[Part]:
        known = KeyPlaces(_names(self.index))
        for epoch in self.epochs:
            taken = np.ones(len(self.index), np.bool_)
            taken[rows] = False
            for labels in read_epoch(epoch, num_classes=self.num_classes):
                places = known.find(labels.keys)
                # A sampler's padding gives several ranks the same image; TinyViT's reader takes one of them.
                _, first = np.unique(places, return_index=True)
                wanted = first[(places[first] >= 0) & ~taken[places[first]]]
                taken[places[wanted]] = True
                yield Part(
                    done=len(wanted),
                    rows=places[wanted],
                    views=np.full(len(wanted), epoch.epoch),
                    records=top_k_records(
                        labels.classes[wanted], log_probabilities(labels.probabilities[wanted]), dtype
                    ),
                    seeds=labels.seeds[wanted],
                    absent=int((places < 0).sum()),
                )


def top_k_records(classes: NDArray[Any], logs: NDArray[np.float16], dtype: np.dtype[np.void]) -> NDArray[np.void]:
    """Records of the best classes [N, K] and their log-probabilities."""
    records = np.empty(len(classes), dtype)
    records["classes"], records["log_probabilities"] = classes, logs
    return records


def dense_records(logs: NDArray[np.float16], dtype: np.dtype[np.void]) -> NDArray[np.void]:
    """Records of log-probabilities of all classes [N, C]."""
    records = np.empty(len(logs), dtype)
    records[LABELS] = logs
    return records


ReadImage = Callable[[int], tuple[NDArray[np.void], NDArray[np.void] | None]]


def image_parts(read: ReadImage, rows: NDArray[np.int64], dtype: np.dtype[np.void], threads: int) -> Iterator[Part]:
    """Parts of some images each, in order, read on several threads a little ahead of who takes them."""

    def part(some: NDArray[np.int64]) -> Part:
        found: list[tuple[int, NDArray[np.void], NDArray[np.void] | None]] = []
        problems: list[BadLabelFile] = []
        absent = 0
        for row in some.tolist():
            try:
                found.append((row, *read(row)))
            except UnsafeLabelFile:
                raise
            except FileNotFoundError:
                absent += 1
            except BadLabelFile as problem:
                problems.append(problem)
        counts = [len(records) for _, records, _ in found]
        boxes = [some_boxes for _, _, some_boxes in found if some_boxes is not None]
        return Part(
            done=len(some),
            rows=np.repeat(np.array([row for row, _, _ in found], np.int64), counts),
            views=np.concatenate([np.arange(count) for count in counts] or [np.empty(0, np.int64)]),
            records=np.concatenate([records for _, records, _ in found] or [np.empty(0, dtype)]),
            boxes=np.concatenate(boxes) if boxes else None,
            problems=problems,
            absent=absent,
        )

    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="import") as pool:
        ahead: deque[Future[Part]] = deque()
        try:
            for first in range(0, len(rows), _IMAGES_AT_ONCE):
                ahead.append(pool.submit(part, rows[first : first + _IMAGES_AT_ONCE]))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()


def _names(index: SampleIndex) -> list[str]:
    return [index.name(row) for row in range(len(index))]


def _first(paths: Sequence[str], folder: Path) -> str:
    for path in paths:
        if os.path.isfile(path):
            return path
    raise ValueError(f"no label file of any of {len(paths)} images in {folder}: expected {paths[0]} and so on")
