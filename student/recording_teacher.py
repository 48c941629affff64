"""Asks a teacher, and records what it answers by sample and view: a label source for LabelledLoader.

Neither cuts crops nor trains; what is recorded is replayed by :mod:`teacherfarm.student.recorded_teacher`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from teacherfarm.label_store.manifest import Manifest
from teacherfarm.label_store.recorded_labels import LabelRecorder
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.faults import RecordingStopped
from teacherfarm.protos.soft_label import LabelSpec, SoftLabels
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.recorded_samples import RecordedImages, index_of, refuse_mixed, rows_at

if TYPE_CHECKING:
    from teacherfarm.crops.crop_plan import CropPlan
    from teacherfarm.crops.view_schedule import ViewSchedule
    from teacherfarm.student.image_sources import ImageSource
    from teacherfarm.student.label_pass import PendingLabels

_log = logging.getLogger(__name__)


class CropsBySample(Protocol):
    """What a CropDataset says of its crops."""

    @property
    def source(self) -> ImageSource: ...
    @property
    def plan(self) -> CropPlan: ...
    @property
    def schedule(self) -> ViewSchedule: ...
    @property
    def teacher_rendering(self) -> Rendering | None: ...
    def expect(self, hashes: NDArray[np.void], renamed: Mapping[int, int]) -> None:
        """Leave out images that hold something else by now, and cut those of another name as under the recorded one."""


class Teacher(Protocol):
    """A label source that says who it is: a TeacherClient."""

    @property
    def card(self) -> TeacherCard: ...
    @property
    def spec(self) -> LabelSpec: ...
    def submit(self, crops: Any, *, keys: bytes = b"", priority: int = 0) -> PendingLabels: ...
    def room(self) -> int: ...


class RecordingTeacher:
    """Asks ``teacher``, and records every label that comes, for the data set's samples and views, in ``directory``.

    A new directory reads the data set once to index it; ``progress`` is told how many more images are done. Labels
    that are there already are asked again but not written again, unless ``again`` (as RecordedTeacher asks only for
    what it misses). Full disk: one warning, ``stopped`` says why, and labels go on coming. Close it: the last of
    several processes seals what all have recorded. Raises LabelsMismatch where the directory holds other labels.
    """

    by_sample = True
    needs_pixels = True

    def __init__(
        self,
        teacher: Teacher,
        dataset: CropsBySample,
        directory: str | Path,
        *,
        views: int | None = None,
        again: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        number = views or dataset.schedule.views
        if number is None:
            raise ValueError(
                "how many views of each sample to keep? Fresh crops have no end: give views=, at least the number of "
                "epochs, or a schedule with views"
            )
        if dataset.teacher_rendering is None:
            raise ValueError("a teacher that is asked must see crops: give the data set its teacher_rendering")
        self.teacher = teacher
        self.again = again
        self.recorded = 0
        self.stopped: RecordingStopped | None = None
        index = index_of(dataset.source, directory, progress=progress)
        manifest = Manifest.of(
            teacher.card,
            teacher.spec,
            plan=dataset.plan,
            rendering=dataset.teacher_rendering,
            views=number,
            samples=index.digest(),
        )
        self.recorder = LabelRecorder(str(directory), manifest, index)
        self.images = RecordedImages.of(index, dataset.source)
        self.rows = self.images.rows
        self.serve(dataset)

    def __repr__(self) -> str:
        return f"<RecordingTeacher {self.recorded} labels recorded, {self.recorder!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def card(self) -> TeacherCard:
        return self.teacher.card

    @property
    def spec(self) -> LabelSpec:
        return self.teacher.spec

    @property
    def stats(self) -> Any:
        """The asked client's counters, where it has any."""
        return getattr(self.teacher, "stats", None)

    def serve(self, dataset: CropsBySample) -> None:
        """Record the crops of this data set, too: one of the same images in the same order."""
        dataset.expect(self.images.hashes, self.images.renamed)

    def room(self) -> int:
        return self.teacher.room()

    def submit(
        self,
        crops: Any,
        *,
        samples: NDArray[np.int64],
        views: NDArray[np.int64],
        keys: bytes = b"",
        priority: int = 0,
    ) -> LabelsToRecord:
        """Ask; the labels are recorded when they are collected."""
        refuse_mixed(crops)
        asked = self.teacher.submit(crops, keys=keys, priority=priority)
        return LabelsToRecord(self, asked, rows_at(self.rows, samples), np.asarray(views, np.int64))

    def record(self, rows: NDArray[np.int64], views: NDArray[np.int64], labels: SoftLabels) -> None:
        """Keep the answered ones of some labels [N]."""
        if self.stopped is not None:
            return
        wanted = (rows >= 0) & (labels.weight > 0) & (views < self.recorder.manifest.views)
        # What could not be read when it was indexed has no size: nobody could tell later whether it changed.
        wanted &= self.recorder.index.heights[rows] > 0
        if not self.again:
            wanted[wanted] = ~self.recorder.present(rows[wanted], views[wanted])
        try:
            self.recorder.add(rows[wanted], views[wanted], labels.records[wanted])
            self.recorded += int(np.count_nonzero(wanted))
        except RecordingStopped as fault:
            self._stop(fault)

    def commit(self) -> None:
        """Make what came so far durable, and visible to those who open the labels."""
        if self.stopped is None:
            try:
                self.recorder.commit()
            except RecordingStopped as fault:
                self._stop(fault)

    def close(self, *, seal: bool = True) -> None:
        """End the recording; safe to call twice."""
        try:
            self.recorder.close(seal=seal and self.stopped is None)
        except RecordingStopped as fault:
            self._stop(fault)

    def _stop(self, fault: RecordingStopped) -> None:
        if self.stopped is None:
            self.stopped = fault
            _log.warning("recording stopped, training goes on: %s", fault)


class LabelsToRecord:
    """A teacher's answer on its way into the record."""

    def __init__(
        self, recording: RecordingTeacher, asked: PendingLabels, rows: NDArray[np.int64], views: NDArray[np.int64]
    ) -> None:
        self._recording, self._asked, self._rows, self._views = recording, asked, rows, views

    def done(self) -> bool:
        return self._asked.done()

    def cancel(self) -> None:
        self._asked.cancel()

    def result(self, timeout: float | None = None) -> SoftLabels:
        labels = self._asked.result(timeout)
        self._recording.record(self._rows, self._views, labels)
        return labels
