"""One pass of a LabelledLoader: reads ahead, asks the teacher, hands out in order, and knows what was
consumed.

Everything happens in the caller's thread. Knows neither models nor losses, nor how labels travel.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from teacherfarm.protos.soft_label import SoftLabels
from teacherfarm.student.accounts import ClientStats
from teacherfarm.student.batch_views import Batch, BatchViews, Question
from teacherfarm.student.sizing import LoadSum
from teacherfarm.student.stall import Stall
from teacherfarm.student.teacher_watch import TeacherWatch

PREFETCH_CROPS = 1024
"""Crops asked ahead by default (at least 4 batches): 0.2 s of a student that takes 5 000 crops/s."""


class PendingLabels(Protocol):
    """The labels of one crop batch to come."""

    def done(self) -> bool: ...

    def result(self, timeout: float | None = None) -> SoftLabels: ...

    def cancel(self) -> None:
        """Nobody will collect these labels: they must not count against the window."""


class LabelSource(Protocol):
    """Whoever answers crops, and refuses those that are not what the teacher takes: a TeacherClient."""

    def submit(self, crops: Any, *, keys: bytes = b"", priority: int = 0) -> PendingLabels: ...

    def room(self) -> int:
        """Crops that can be submitted now without waiting."""


class LabelSourceBySample(Protocol):
    """One that goes by sample and view, int64 [N]: RecordedTeacher, RecordingTeacher.

    ``crops`` is None where ``needs_pixels`` is false. ``by_sample`` is true; others have no such thing.
    """

    by_sample: bool

    @property
    def needs_pixels(self) -> bool: ...

    def submit(
        self,
        crops: Any,
        *,
        samples: NDArray[np.int64],
        views: NDArray[np.int64],
        keys: bytes = b"",
        priority: int = 0,
    ) -> PendingLabels: ...

    def room(self) -> int: ...


@dataclass(kw_only=True)
class Progress:
    """How far a pass is, and what its order came from: torch's random state when it began, or the loader's
    own state.
    """

    batches: int = 0
    torch_rng: torch.Tensor | None = None
    generator_rng: torch.Tensor | None = None
    inner: Any = None


@dataclass(frozen=True, kw_only=True)
class _Fetched(Generic[Batch]):
    batch: Batch
    question: Question
    inner_state: Any


@dataclass(frozen=True, kw_only=True)
class _Asked(Generic[Batch]):
    batch: Batch
    labels: PendingLabels
    inner_state: Any


class LabelPass(Generic[Batch]):
    """An iterator over ``(batch, soft labels)``, once through the wrapped loader."""

    def __init__(
        self,
        loader: Iterable[Batch],
        teacher: LabelSource | LabelSourceBySample,
        views: BatchViews[Batch],
        *,
        progress: Progress,
        watch: TeacherWatch,
        prefetch_batches: int | None,
        priority: int,
    ) -> None:
        self.progress = progress
        self.stall = Stall()
        self.in_flight: deque[_Asked[Batch]] = deque()
        self._loader = loader
        self._teacher = teacher
        self._views = views
        self._watch = watch
        self._limit = prefetch_batches
        self._priority = priority
        self._fetched: _Fetched[Batch] | None = None
        self._batches: Iterator[Batch] | None = None
        self._all_fetched = False
        self._ended = ""
        self._last_s = time.perf_counter()
        self._load_before: LoadSum | None = _load_sum(teacher)

    def __iter__(self) -> LabelPass[Batch]:
        return self

    def __next__(self) -> tuple[Batch, SoftLabels]:
        if self._ended:
            raise RuntimeError(f"this pass has ended: {self._ended}")
        try:
            return self._next()
        except StopIteration:
            raise
        except BaseException as error:
            self.close(
                f"it raised {type(error).__name__}; loader.load_state_dict(loader.state_dict()) lets the "
                "next pass go on where this one stopped"
            )
            raise

    def __del__(self) -> None:
        self.close("it was given up")

    def close(self, why: str) -> None:
        """Give up what is outstanding; ``why`` is told to whoever asks for another batch."""
        self._end_load()
        self._ended = self._ended or why
        self._batches = self._fetched = None
        while self.in_flight:
            self.in_flight.popleft().labels.cancel()

    def _next(self) -> tuple[Batch, SoftLabels]:
        if self._batches is None and not self._all_fetched:
            self._batches = self._begin()
        self._top_up()
        if not self.in_flight:
            self._count_time()
            self._end_load()
            self.progress.batches, self.progress.inner = 0, None
            raise StopIteration
        asked = self.in_flight.popleft()
        before_s = time.perf_counter()
        try:
            labels = asked.labels.result()
        except BaseException:
            asked.labels.cancel()
            raise
        self.stall.labels_s += time.perf_counter() - before_s
        labels = self._weighted(asked.batch, labels)
        self.stall.crops += len(labels)
        self.stall.unanswered += int((labels.weight == 0).sum())
        if self._views.targets is not None:
            self._watch.note(labels, np.asarray(self._views.targets(asked.batch)))
        self.progress.batches += 1
        self.progress.inner = asked.inner_state
        self._count_time()
        return asked.batch, labels

    def _begin(self) -> Iterator[Batch]:
        """The wrapped loader's iterator, past the batches that were consumed before a resume, in the same
        order.
        """
        progress, generator = self.progress, getattr(self._loader, "generator", None)
        if progress.inner is not None or progress.batches == 0:
            progress.torch_rng = torch.get_rng_state()
            progress.generator_rng = generator.get_state() if isinstance(generator, torch.Generator) else None
            return iter(self._loader)
        here = torch.get_rng_state()
        if progress.torch_rng is not None:
            torch.set_rng_state(progress.torch_rng)
        if progress.generator_rng is not None and isinstance(generator, torch.Generator):
            generator.set_state(progress.generator_rng)
        skip_samples = getattr(getattr(self._loader, "sampler", None), "skip_samples", None)
        if callable(skip_samples):
            skip_samples(progress.batches * self._loader.batch_size)  # type: ignore[attr-defined]
            batches = iter(self._loader)
        else:
            batches = iter(self._loader)
            _read_past(batches, progress.batches)
        torch.set_rng_state(here)
        return batches

    def _top_up(self) -> None:
        """Ask ahead while there is room, but never wait for room while a batch could be yielded: nobody would
        make any.

        Once the oldest answer is there, at most two batches are read, so that the depth still grows by one
        each time.
        """
        read = 0
        while self._limit is None or len(self.in_flight) < self._limit:
            if self._fetched is None:
                enough = read >= 2 and self.in_flight and self.in_flight[0].labels.done()
                if self._all_fetched or enough or (self.in_flight and self._teacher.room() < 1):
                    return
                self._fetched = self._fetch()
                read += 1
                if self._fetched is None:
                    return
            fetched, question = self._fetched, self._fetched.question
            if self.in_flight and self._teacher.room() < question.num_crops:
                return
            before_s = time.perf_counter()
            labels = self._teacher.submit(question.crops, priority=self._priority, **question.arguments)
            self.stall.labels_s += time.perf_counter() - before_s
            self.in_flight.append(_Asked(batch=fetched.batch, labels=labels, inner_state=fetched.inner_state))
            self._fetched = None
            if self._limit is None:
                self._limit = max(4, -(-PREFETCH_CROPS // question.num_crops))

    def _fetch(self) -> _Fetched[Batch] | None:
        assert self._batches is not None
        before_s = time.perf_counter()
        try:
            batch = next(self._batches)
        except StopIteration:
            self._all_fetched, self._batches = True, None
            return None
        self.stall.batches_s += time.perf_counter() - before_s
        question = self._views.question(batch)
        return _Fetched(batch=batch, question=question, inner_state=_inner_state(self._loader))

    def _weighted(self, batch: Batch, labels: SoftLabels) -> SoftLabels:
        if self._views.weight is None:
            return labels
        weight = np.asarray(self._views.weight(batch), np.float32)
        if weight.shape != (len(labels),):
            raise ValueError(
                f"weight_view must give {len(labels)} numbers, one for each crop, got {list(weight.shape)}"
            )
        return dataclasses.replace(labels, weight=labels.weight * weight)

    def note_load(self) -> None:
        """Bring ``stall.load`` up to now; once the pass has ended it stays as it was."""
        if self._load_before is not None:
            self.stall.load = _load_sum(self._teacher).since(self._load_before)

    def _end_load(self) -> None:
        self.note_load()
        self._load_before = None

    def _count_time(self) -> None:
        now_s = time.perf_counter()
        self.stall.total_s += now_s - self._last_s
        self._last_s = now_s


def _load_sum(teacher: object) -> LoadSum:
    """What servers told of their load; nothing where the teacher is no client of a farm."""
    stats = getattr(teacher, "stats", None)
    return stats.load if isinstance(stats, ClientStats) else LoadSum()


def _read_past(batches: Iterator[Any], num_batches: int) -> None:
    for index in range(num_batches):
        if next(batches, batches) is batches:
            raise ValueError(f"the saved state has consumed {num_batches} batches, but the loader ends after {index}")


def _inner_state(loader: Any) -> Any:
    """A stateful loader's own state; its batches read so far are exactly those up to the one just read."""
    state_dict = getattr(loader, "state_dict", None)
    if not callable(state_dict) or not callable(getattr(loader, "load_state_dict", None)):
        return None
    try:
        return state_dict()
    except AttributeError:  # accelerate's loaders have the method even where the wrapped loader has none
        return None
