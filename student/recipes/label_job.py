"""One labelling of a data set, as every process in it sees it: what to label, by whom, where to keep it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.label_store.recorded_card import write_card
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.blocking import TeacherClient
from teacherfarm.student.by_reference import ByReference
from teacherfarm.student.image_sources import SampleImages
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.own_pixels import OwnPixels
from teacherfarm.student.recipes.folders import training_images
from teacherfarm.student.recipes.views_to_label import Todo, ViewsToLabel, loader_of
from teacherfarm.student.recording_teacher import RecordingTeacher
from teacherfarm.student.settings import Timeouts

Progress = Callable[[int], None]
"""Told how many more are done."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Plain values, which travel to other machines."""

    samples: str
    out: str
    address: str
    teacher: str
    api_key: str | None
    digest: str
    answer_s: float
    spec: LabelSpec
    views: int
    seed: int
    scale: tuple[float, float] | None
    batch_size: int
    by_reference: str = ""

    @classmethod
    def of(cls, options: argparse.Namespace) -> Job:
        """Raises ValueError for options that do not go together."""
        if options.views < 1 or options.batch_size < 1:
            raise ValueError(f"--views and --batch-size are at least 1, got {options.views} and {options.batch_size}")
        if options.dense and options.temperature != 1:
            raise ValueError("--dense labels take any temperature later: leave --temperature out")
        return cls(
            samples=training_images(options.data, options.train_folder),
            out=options.out,
            address=options.teacher_address,
            teacher=options.teacher,
            api_key=options.api_key,
            digest=options.digest,
            answer_s=options.answer_timeout,
            spec=LabelSpec() if options.dense else LabelSpec(top_k=options.top_k, temperature=options.temperature),
            views=options.views,
            seed=options.seed,
            scale=tuple(options.crop_scale) if options.crop_scale else None,
            batch_size=options.batch_size,
            by_reference=options.by_reference,
        )


def connect(job: Job, by_reference: ByReference | None = None) -> TeacherClient:
    """A client; its first use connects."""
    return TeacherClient(
        job.address,
        job.teacher,
        api_key=job.api_key,
        digest=job.digest,
        spec=job.spec,
        timeouts=Timeouts(answer_s=job.answer_s),
        by_reference=by_reference,
    )


class Labelling:
    """A process's part in a job: connected to the teacher, the data set open, one of the recording's writers."""

    def __init__(self, job: Job, *, indexing: Progress | None = None) -> None:
        self.job = job
        self.source = SampleImages(job.samples)
        self.teacher = connect(job)
        try:
            card = self.teacher.card
            self.dataset = ViewsToLabel(
                self.source,
                plan=CropPlan(seed=job.seed, scale=job.scale or card.crop_scale, ratio=card.crop_ratio),
                teacher_rendering=card.rendering,
                views=job.views,
            )
            if job.by_reference:
                self.teacher.close()
                self.teacher = connect(job, self._references())
            self.recording = RecordingTeacher(
                self.teacher, self.dataset, job.out, views=job.views, again=True, progress=indexing
            )
            if job.by_reference:
                self.dataset.refer(self.recording.recorder.index, self.recording.rows)
            write_card(job.out, card)
        except BaseException:
            self.teacher.close()
            raise

    def _references(self) -> ByReference:
        """What the server cannot cut is sent as pixels."""
        dataset = self.dataset
        own = OwnPixels(self.source, dataset.teacher_rendering, dataset.plan, number=dataset.number)
        return ByReference(
            dataset=self.job.by_reference,
            rendering=dataset.teacher_rendering,
            plan=dataset.plan,
            on_refused="send",
            own_pixels=own,
            sample_name=own.name,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(seal=False)

    def todo(self, samples: NDArray[np.int64]) -> Todo:
        """What is missing of some of the data set's samples, unreadable ones left out."""
        rows, index = self.recording.rows, self.recording.recorder.index
        known = samples[rows[samples] >= 0]
        return Todo(
            samples=known[index.heights[rows[known]] > 0],
            rows=rows,
            views=self.job.views,
            batch_size=self.job.batch_size,
            present=self.recording.recorder.present,
        )

    def label(self, todo: Todo, *, workers: int, progress: Progress, stop: Callable[[], bool] = lambda: False) -> int:
        """Ask for what is missing and record it; how many labels came. Raises RecordingStopped on a full disk."""
        loader = LabelledLoader(
            loader_of(self.dataset, todo, workers=0 if self.job.by_reference else workers),
            self.recording,
            lambda batch: batch["crops"],
            keys=lambda batch: batch["keys"],
            samples=lambda batch: batch["samples"],
            views=lambda batch: batch["views"],
            weight_view=lambda batch: batch["weight"],
        )
        before = self.recording.recorded
        for _, labels in loader:
            if self.recording.stopped is not None:
                raise self.recording.stopped
            progress(len(labels))
            if stop():
                loader.close()
                break
        self.recording.commit()
        return self.recording.recorded - before

    def close(self, *, seal: bool) -> None:
        """End the session, and the recording; safe to call twice."""
        try:
            self.recording.close(seal=seal)
        finally:
            self.teacher.close()
