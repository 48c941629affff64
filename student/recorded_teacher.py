"""Soft labels from recorded ones: a label source that goes by sample and view, for LabelledLoader.

    RecordedTeacher(labels, dataset)                     replays; no teacher at all
    RecordingTeacher(teacher, dataset, "labels/")        streams, and records what comes
    RecordedTeacher(labels, dataset, otherwise=...)      replays what there is, and asks one of the above or a client

Neither cuts crops nor trains. :mod:`teacherfarm.student.recording_teacher` has the second one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from teacherfarm.label_store.manifest import Manifest
from teacherfarm.label_store.recorded_labels import RecordedLabels
from teacherfarm.protos.crop import CROP_KEY_BYTES
from teacherfarm.protos.faults import LabelsMissing, ReplayRefused
from teacherfarm.protos.soft_label import SoftLabels
from teacherfarm.student.recorded_boxes import RecordedBoxes
from teacherfarm.student.recorded_samples import RecordedImages, refuse_mixed, rows_at
from teacherfarm.student.recording_teacher import CropsBySample, RecordingTeacher, Teacher

if TYPE_CHECKING:
    from teacherfarm.crops.view_schedule import ViewSchedule
    from teacherfarm.student.label_pass import LabelSource, LabelSourceBySample, PendingLabels

OnMissing = Literal["raise", "skip"]

UNBOUNDED = 1 << 30
"""Room of who asks nobody: the pass's own limit acts."""


class RecordedTeacher:
    """Answers from recorded labels; what is not there is asked of ``otherwise``, pixels and all.

    ``dataset``: whose ``samples`` and ``views`` the batches have; raises LabelsMismatch where its plan or rendering is
    not the recorded one, or ``otherwise`` another teacher or spec; ReplayRefused for views that come once. Without
    ``otherwise``, ``on_missing``: "raise" LabelsMissing, or "skip": those crops have weight 0. Negative samples are
    images that could not be read, and have weight 0.
    """

    by_sample: bool = True
    replays = True

    def __init__(
        self,
        labels: RecordedLabels,
        dataset: CropsBySample,
        *,
        otherwise: Teacher | RecordingTeacher | None = None,
        on_missing: OnMissing = "raise",
    ) -> None:
        if on_missing not in ("raise", "skip"):
            raise ValueError(f"on_missing is 'raise' or 'skip', got {on_missing!r}")
        self.labels = labels
        self.otherwise = otherwise
        self.on_missing = on_missing
        _refuse_fresh(labels, dataset.schedule, live=otherwise is not None)
        labels.check(wanted_labels(labels.manifest, dataset, otherwise))
        images = RecordedImages.of(labels.index, dataset.source)
        if isinstance(otherwise, RecordingTeacher):
            images = images.beside(otherwise.images)
        self.rows = images.rows
        dataset.expect(images.hashes, images.renamed)
        self.replayed = self.missing = 0

    @property
    def needs_pixels(self) -> bool:
        """Whether somebody may have to see the crops."""
        return self.otherwise is not None

    def __repr__(self) -> str:
        return f"<RecordedTeacher {self.replayed} labels replayed, {self.missing} missing, {self.labels!r}>"

    @property
    def stats(self) -> Any:
        """The counters of whoever is asked, where it has any."""
        return getattr(self.otherwise, "stats", None)

    def refresh(self) -> None:
        """See what was recorded since these labels were opened."""
        self.labels = RecordedLabels(self.labels.directory)

    def room(self) -> int:
        return UNBOUNDED if self.otherwise is None else self.otherwise.room()

    def submit(
        self,
        crops: Any,
        *,
        samples: NDArray[np.int64],
        views: NDArray[np.int64],
        keys: bytes = b"",
        priority: int = 0,
    ) -> ReplayedLabels:
        """The labels of some samples' views; ``crops`` may be None where there is no ``otherwise``."""
        refuse_mixed(crops)
        rows = rows_at(self.rows, samples)
        labels = self.labels.soft_labels(rows, views)
        missing = np.flatnonzero((labels.weight == 0) & (samples >= 0))
        self.replayed += int(np.count_nonzero(labels.weight))
        self.missing += len(missing)
        if not len(missing):
            return ReplayedLabels(labels)
        if self.otherwise is None:
            if self.on_missing == "skip":
                return ReplayedLabels(labels)
            return ReplayedLabels(labels, fault=self._name_missing(samples[missing], views[missing]))
        places = {"samples": samples[missing], "views": views[missing]} if _by_sample(self.otherwise) else {}
        asked = self.otherwise.submit(
            np.ascontiguousarray(np.asarray(crops)[missing]), keys=keys_at(keys, missing), priority=priority, **places
        )
        return ReplayedLabels(labels, missing=missing, asked=asked)

    def _name_missing(self, samples: NDArray[np.int64], views: NDArray[np.int64]) -> LabelsMissing:
        labels, sample = self.labels, int(samples[0])
        row = int(self.rows[sample])
        name = f"sample {sample} of the data set" if row < 0 else f"{labels.index.name(row)!r}"
        what = "was never recorded, under its name or another" if row < 0 else "was not recorded, or is damaged"
        return LabelsMissing(
            f"view {views[0]} of {name} {what} ({len(samples)} of this batch's labels are missing; {labels.directory} "
            f"holds {len(labels)} of {len(labels.index) * labels.manifest.views}): finish it with `teacherfarm label`, "
            "give a teacher as well, who is asked for what is missing, or skip such crops (weight 0)"
        )


class ReplayedLabels:
    """Labels of one batch: there already, but for some rows that a teacher was asked for."""

    def __init__(
        self,
        labels: SoftLabels,
        *,
        missing: NDArray[np.int64] | None = None,
        asked: PendingLabels | None = None,
        fault: LabelsMissing | None = None,
    ) -> None:
        self._labels, self._missing, self._asked, self._fault = labels, missing, asked, fault

    def done(self) -> bool:
        return self._asked is None or self._asked.done()

    def cancel(self) -> None:
        if self._asked is not None:
            self._asked.cancel()

    def result(self, timeout: float | None = None) -> SoftLabels:
        if self._fault is not None:
            raise self._fault
        if self._asked is not None and self._missing is not None:
            answer = self._asked.result(timeout)
            self._labels.records[self._missing] = answer.records
            self._labels.weight[self._missing] = answer.weight
            self._asked = None
        return self._labels


def refuse_replay(teacher: LabelSource | LabelSourceBySample, method: str, why: str) -> None:
    """For methods that need a new crop at each step: raise ReplayRefused where ``teacher`` replays recorded labels."""
    if getattr(teacher, "replays", False):
        raise ReplayRefused(f"{method} cannot learn from recorded labels: {why}. Ask a live teacher, without replaying")


def wanted_labels(manifest: Manifest, dataset: CropsBySample, teacher: Teacher | RecordingTeacher | None) -> Manifest:
    """The manifest that labels for this data set and teacher would have; what neither decides is as recorded."""
    rendering = dataset.teacher_rendering or manifest.rendering
    # Boxes that were recorded are those of these very labels, not of a plan.
    plan = None if isinstance(dataset.plan, RecordedBoxes) else dataset.plan
    if teacher is None:
        return dataclasses.replace(manifest, plan=plan, rendering=rendering, samples="", mixing="none")
    return Manifest.of(
        teacher.card,
        teacher.spec,
        plan=plan,
        rendering=rendering,
        views=manifest.views,
        samples="",
        has_boxes=manifest.has_boxes,
    )


def keys_at(keys: bytes, places: Sequence[int] | NDArray[np.int64]) -> bytes:
    """Some crops' keys out of all of a batch's."""
    return np.frombuffer(keys, np.uint8).reshape(-1, CROP_KEY_BYTES)[places].tobytes() if keys else b""


def _by_sample(teacher: object) -> bool:
    return bool(getattr(teacher, "by_sample", False))


def _refuse_fresh(labels: RecordedLabels, schedule: ViewSchedule, *, live: bool) -> None:
    views = labels.manifest.views
    if live:
        return
    if schedule.views is None:
        raise ReplayRefused(
            f"order 'fresh' never repeats a view, and {labels.directory} holds {views} views of each sample: replay "
            f"with ViewSchedule(views={views}, order='permute') (m of M drawn at each visit, as FKD) or order='cycle' "
            "(in turn), or give a teacher as well"
        )
    if schedule.views > views:
        raise ReplayRefused(
            f"the schedule goes through {schedule.views} views, and {labels.directory} holds {views} of each sample: "
            f"use views={views} or fewer, or give a teacher as well"
        )
