"""Wraps a user's DataLoader: asks a teacher for each batch's soft labels ahead of time, yields both in order.

This is the face; :mod:`teacherfarm.student.label_pass` is one pass behind it.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic

from teacherfarm.protos.soft_label import SoftLabels
from teacherfarm.student.batch_views import Batch, BatchViews
from teacherfarm.student.label_pass import LabelPass, LabelSource, LabelSourceBySample, PendingLabels, Progress
from teacherfarm.student.stall import Stall
from teacherfarm.student.teacher_watch import OnMismatch, TeacherWatch


class LabelledLoader(Generic[Batch]):
    """Iterates over ``(batch, soft labels)``; the batch is the user's own object, untouched.

    Wrap *after* the framework's ``prepare`` (accelerate, Lightning, DDP), which shards real DataLoaders only.
    Inside Lightning or accelerate this object then stands where the loader stood: ``set_epoch``, ``sampler``,
    ``batch_sampler``, ``dataset``, ``batch_size``, ``len`` and ``state_dict`` are forwarded.

    ``teacher_view(batch)``: the teacher's crops, uint8 [N, H, W, 3], array or CPU tensor; they must not
    change until the batch is yielded. ``keys(batch)``: 16 bytes per crop, where known. ``samples(batch)`` and
    ``views(batch)``: int64 [N], by which a teacher that records or replays goes (others do not need them); without any
    live teacher there is nothing to send and no ``teacher_view``. ``prefetch_batches``:
    the most batches asked ahead (default: about 1024 crops, at least 4 batches); the teacher's room bounds it
    as well. ``weight_view(batch)``: float [N], multiplied into ``labels.weight`` (0 for an image that could
    not be read). ``target_view(batch)``: class numbers [N] to compare the teacher with; when it disagrees far
    too often, ``on_mismatch`` says what to do.

    Faults of the teacher are raised where the batch would have been yielded. ``break`` and re-iterating are
    fine.
    """

    def __init__(
        self,
        loader: Iterable[Batch],
        teacher: LabelSource | LabelSourceBySample,
        teacher_view: Callable[[Batch], Any] | None = None,
        *,
        keys: Callable[[Batch], bytes] | None = None,
        samples: Callable[[Batch], Any] | None = None,
        views: Callable[[Batch], Any] | None = None,
        prefetch_batches: int | None = None,
        weight_view: Callable[[Batch], Any] | None = None,
        target_view: Callable[[Batch], Any] | None = None,
        on_mismatch: OnMismatch = "warn",
        priority: int = 0,
    ) -> None:
        if prefetch_batches is not None and prefetch_batches < 1:
            raise ValueError(f"prefetch_batches is at least 1, got {prefetch_batches}")
        by_sample = bool(getattr(teacher, "by_sample", False))
        if by_sample and (samples is None or views is None):
            raise ValueError(
                f"{type(teacher).__name__} goes by sample and view: LabelledLoader(..., samples=lambda batch: "
                "batch['samples'], views=lambda batch: batch['views']), as CropDataset's batches have them"
            )
        if teacher_view is None and not (by_sample and not getattr(teacher, "needs_pixels", True)):
            raise ValueError(
                "teacher_view says where the teacher's crops lie in a batch, for example lambda batch: batch['crops']; "
                "only recorded labels without any live teacher do without"
            )
        self.loader = loader
        self.teacher = teacher
        self.views = BatchViews(
            crops=teacher_view,
            keys=keys,
            samples=samples if by_sample else None,
            views=views if by_sample else None,
            weight=weight_view,
            targets=target_view,
        )
        self.prefetch_batches = prefetch_batches
        self.priority = priority
        self.watch = TeacherWatch(on_mismatch)
        self.epoch = 0
        self._progress = Progress()
        self._resume: Progress | None = None
        self._seen = Stall()
        # Weak: a pass that `break` has left must end at once, not when the next one begins.
        self._pass: weakref.ref[LabelPass[Batch]] | None = None

    def __iter__(self) -> Iterator[tuple[Batch, SoftLabels]]:
        self.close()
        self._progress, self._resume = self._resume or Progress(), None
        one_pass = LabelPass(
            self.loader,
            self.teacher,
            self.views,
            progress=self._progress,
            watch=self.watch,
            prefetch_batches=self.prefetch_batches,
            priority=self.priority,
        )
        self._pass, self._seen = weakref.ref(one_pass), one_pass.stall
        return one_pass

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        running = self._pass() if self._pass else None
        in_flight = len(running.in_flight) if running else 0
        return (
            f"<LabelledLoader epoch {self.epoch}, {self._progress.batches} batches consumed, {in_flight} in "
            f"flight, stall {self.stall:.1%}>"
        )

    def close(self) -> None:
        """End the running pass, if any; its outstanding answers are given up."""
        running = self._pass() if self._pass else None
        if running is not None:
            running.close("a newer pass over the same LabelledLoader began, or it was closed")

    @property
    def stall(self) -> float:
        """Share of the current (or last) pass that was spent waiting for labels, 0 to 1."""
        return self._seen.share

    @property
    def teacher_top1(self) -> float:
        """The teacher's running top-1 against ``target_view``; NaN where there is none."""
        return self.watch.top1

    @property
    def unanswered(self) -> int:
        """Crops of the current (or last) pass that had weight 0."""
        return self._seen.unanswered

    def report(self) -> str:
        """What bounds the student in the current (or last) pass, in words, and how many teachers would feed it."""
        running = self._pass() if self._pass else None
        if running is not None:
            running.note_load()
        return self._seen.report()

    @property
    def sampler(self) -> Any:
        return getattr(self.loader, "sampler", None)

    @property
    def batch_sampler(self) -> Any:
        return getattr(self.loader, "batch_sampler", None)

    @property
    def dataset(self) -> Any:
        return getattr(self.loader, "dataset", None)

    @property
    def batch_size(self) -> int | None:
        return getattr(self.loader, "batch_size", None)

    def set_epoch(self, epoch: int) -> None:
        """Tell the loader, or else its samplers, and its data set which epoch comes, where they ask for it."""
        if epoch != self.epoch:
            self._resume = None
        self.epoch = epoch
        inner = getattr(self.batch_sampler, "sampler", None)
        listeners = [self.loader] if hasattr(self.loader, "set_epoch") else [self.sampler, self.batch_sampler, inner]
        told: list[int] = []
        for listener in [*listeners, self.dataset]:
            if hasattr(listener, "set_epoch") and id(listener) not in told:
                told.append(id(listener))
                listener.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the student is: the epoch and the batches it has *consumed*; batches asked ahead do not
        count.

        After the last batch nothing is left of the pass, and one that is resumed from there is empty; the
        next ``set_epoch``, or asking for a batch beyond the last one, begins a new one.
        """
        progress = self._resume or self._progress
        return {"epoch": self.epoch, "num_batches": _length(self.loader), **dataclasses.asdict(progress)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass go on after the consumed batches, which are read again but not asked of the
        teacher.

        A loader with a ``load_state_dict`` of its own skips them itself. Raises ValueError when the loader's
        length differs from the one saved.
        """
        length = _length(self.loader)
        if state["batches"] and state["num_batches"] != length:
            raise ValueError(
                f"the loader had {state['num_batches']} batches when this state was saved and has {length} "
                "now: going on inside an epoch needs the same data set, batch size and number of ranks; "
                "start at an epoch's begin"
            )
        self.close()
        self.set_epoch(int(state["epoch"]))
        self._resume = Progress(**{field.name: state[field.name] for field in dataclasses.fields(Progress)})
        if self._resume.inner is not None:
            self.loader.load_state_dict(self._resume.inner)  # type: ignore[attr-defined]


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:  # an iterable data set of unknown length
        return None


__all__ = ["LabelSource", "LabelledLoader", "PendingLabels"]
