"""When a teacher batch is formed and of how many crops. Pure: the time is an argument, a decision is returned.

Waiting time counts from the first crop that waits. Slices of one output set share a teacher batch, so nobody pays for a
neighbour's feature maps.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from teacherfarm.teacher_server.farm.fair_queue import FairQueue, Queued

S = TypeVar("S", bound=Queued)


@dataclass(frozen=True)
class TeacherBatch(Generic[S]):
    """Slices that go through the teacher together."""

    slices: tuple[S, ...]
    outputs: tuple[str, ...]
    num_crops: int


@dataclass(frozen=True)
class WaitUntil:
    """Too few crops yet: ask again at this time, or when more arrive."""

    time_s: float


class Batcher(Generic[S]):
    """Forms teacher batches of at most ``largest`` crops.

    A batch is formed when ``preferred`` crops wait, or when the first of them has waited ``longest_wait_s``.
    """

    def __init__(self, *, largest: int, preferred: int = 1, longest_wait_s: float = 0.0) -> None:
        if not 1 <= preferred <= largest:
            raise ValueError(f"preferred batch {preferred} must lie in 1..{largest}")
        self._largest = largest
        self._preferred = preferred
        self._longest_wait_s = longest_wait_s
        self._queue: FairQueue[S] = FairQueue()
        # In the order of arrival; what left the queue leaves here, too, and with it its pixels.
        self._arrivals: OrderedDict[int, tuple[float, S]] = OrderedDict()
        self.waiting_crops = 0

    def push(self, slice_: S, now_s: float) -> None:
        """Queue a slice that arrived now."""
        self._queue.push(slice_)
        self._arrivals[id(slice_)] = (now_s, slice_)
        self.waiting_crops += slice_.num_crops

    def restore(self, slice_: S, arrived_s: float) -> None:
        """Put a slice that was in a teacher batch back where it was: before its stream's others, and not paid for."""
        self._queue.restore(slice_)
        self._arrivals[id(slice_)] = (arrived_s, slice_)
        self._arrivals.move_to_end(id(slice_), last=False)
        self.waiting_crops += slice_.num_crops

    def withdraw(self, slice_: S) -> None:
        """Take an abandoned slice out, if it still waits."""
        self._queue.withdraw(slice_)
        self._left(slice_)

    def next_batch(self, now_s: float) -> TeacherBatch[S] | WaitUntil | None:
        """The next teacher batch, the time to ask again, or None where nothing waits."""
        arrived_s = self._first_arrival_s()
        if arrived_s is None:
            return None
        due_s = arrived_s + self._longest_wait_s
        if self.waiting_crops < self._preferred and now_s < due_s:
            return WaitUntil(due_s)
        first = self._pop(self._largest, None)
        if first is None:
            return None
        slices, num_crops = [first], first.num_crops
        while self.waiting_crops and num_crops < self._largest and not first.alone:
            more = self._pop(self._largest - num_crops, first.outputs)
            if more is None:
                break
            slices.append(more)
            num_crops += more.num_crops
        return TeacherBatch(tuple(slices), first.outputs, num_crops)

    def _pop(self, most_crops: int, outputs: tuple[str, ...] | None) -> S | None:
        slice_ = self._queue.pop(most_crops, outputs)
        if slice_ is not None:
            self._left(slice_)
        return slice_

    def _left(self, slice_: S) -> None:
        if self._arrivals.pop(id(slice_), None) is not None:
            self.waiting_crops -= slice_.num_crops

    def _first_arrival_s(self) -> float | None:
        while self._arrivals:
            arrived_s, slice_ = next(iter(self._arrivals.values()))
            if not slice_.abandoned:
                return arrived_s
            self.withdraw(slice_)
        return None
