"""A client's books: which batches are asked, which slices are unsent, sent or answered. Pure; nothing is sent here.

Every row of every open batch is in exactly one place: unsent, sent on the present session, put off by the server for a
moment, or answered. So none is lost when a session dies, and an answer that comes twice finds nothing to answer.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass

from teacherfarm.student.batch import PendingBatch

UNBOUNDED = 1 << 62


@dataclass(frozen=True, slots=True)
class PendingSlice:
    """Rows ``first`` to ``first + num_crops`` of a batch."""

    batch: PendingBatch
    first: int
    num_crops: int


class Ledger:
    """The books of one client. ``sent_crops``: in flight on the present session.

    ``put_off_crops``: refused for a moment. They keep their place in the window, or younger ones would be sent in their
    stead only to be refused, too.
    """

    def __init__(self) -> None:
        self.sent_crops = 0
        self.put_off_crops = 0
        self._put_off: set[tuple[int, int]] = set()
        self._batches: dict[int, PendingBatch] = {}
        self._unsent: deque[PendingSlice] = deque()
        self._sent: dict[tuple[int, int], PendingSlice] = {}

    def __repr__(self) -> str:
        return f"<Ledger {len(self._batches)} batches, {len(self._unsent)} slices unsent, {self.sent_crops} crops sent>"

    def __len__(self) -> int:
        """Batches without a complete answer."""
        return len(self._batches)

    @property
    def awaits_answers(self) -> bool:
        """Whether anything is in flight on the present session."""
        return bool(self._sent)

    def open(self, batch: PendingBatch) -> None:
        """A new batch; nothing of it is sent before :meth:`queue`."""
        self._batches[batch.id] = batch

    def queue(self, batch: PendingBatch) -> None:
        """All rows of an open batch may be sent."""
        self._unsent.append(PendingSlice(batch, 0, len(batch.crops)))

    def close(self, batch: PendingBatch) -> None:
        """The batch is answered, failed or given up; what it still has in flight no longer matters."""
        self._batches.pop(batch.id, None)
        if batch.missing_crops:
            # Its pixels must not wait for a session.
            self._unsent = deque(slice_ for slice_ in self._unsent if slice_.batch is not batch)

    def forget_given_up(self) -> None:
        """Let go of batches that nobody waits for, pixels and all, also while there is no session."""
        for batch in [batch for batch in self._batches.values() if batch.given_up]:
            self.close(batch)

    def next_to_send(
        self, *, window_crops: int, slice_crops: int, reference_crops: int = 0, most_crops: int = UNBOUNDED
    ) -> PendingSlice | None:
        """The next slice, now counted as sent; None where nothing waits or the window is full.

        A window smaller than a slice lets one slice through, so that it cannot stop a session for good.
        ``most_crops``: the client's own window, or one batch where that is larger: what was given up on while a
        server stalls stays in flight, so the server's window alone would not bound this side's memory.
        """
        while self._unsent:
            waiting = self._unsent[0]
            if waiting.batch.given_up:
                self._unsent.popleft()
                self.close(waiting.batch)
                continue
            num_crops = waiting.batch.rows_at_once(
                waiting.first, waiting.num_crops, slice_crops=slice_crops, reference_crops=reference_crops
            )
            allowed = min(window_crops, max(most_crops, len(waiting.batch.crops)))
            in_window = self.sent_crops + self.put_off_crops
            if in_window and in_window + num_crops > allowed:
                return None
            self._unsent.popleft()
            if num_crops < waiting.num_crops:
                rest = PendingSlice(waiting.batch, waiting.first + num_crops, waiting.num_crops - num_crops)
                self._unsent.appendleft(rest)
            slice_ = PendingSlice(waiting.batch, waiting.first, num_crops)
            self._sent[slice_.batch.id, slice_.first] = slice_
            self.sent_crops += num_crops
            return slice_
        return None

    def answered(self, batch_id: int, first: int) -> PendingSlice | None:
        """The slice that an answer belongs to, no longer in flight; None where it was answered before."""
        slice_ = self._sent.pop((batch_id, first), None)
        if slice_ is not None:
            self.sent_crops -= slice_.num_crops
        return slice_

    def put_off(self, slice_: PendingSlice) -> None:
        """A slice was refused for now, and :meth:`send_again` will be called with it."""
        self._put_off.add((slice_.batch.id, slice_.first))
        self.put_off_crops += slice_.num_crops

    def send_again(self, slice_: PendingSlice) -> None:
        """A slice that was refused goes before all younger ones: whoever asked waits for the oldest."""
        name = (slice_.batch.id, slice_.first)
        if name in self._put_off:
            self._put_off.remove(name)
            self.put_off_crops -= slice_.num_crops
        younger = (n for n, other in enumerate(self._unsent) if (other.batch.id, other.first) > name)
        self._unsent.insert(next(younger, len(self._unsent)), slice_)

    def session_died(self) -> int:
        """Everything in flight goes first again, in the order asked; the number of crops that this concerns."""
        left = [slice_ for _, slice_ in sorted(self._sent.items(), key=lambda item: item[0])]
        again = [slice_ for slice_ in left if not slice_.batch.given_up]
        for slice_ in left:
            if slice_.batch.given_up:
                self.close(slice_.batch)
        self._unsent.extendleft(reversed(again))
        self._sent.clear()
        self.sent_crops = 0
        return sum(slice_.num_crops for slice_ in again)

    def asked_before(self, time_s: float) -> list[PendingBatch]:
        """Batches that wait since before ``time_s``."""
        # Batches are in the order asked, so the first that is younger ends the search.
        return list(itertools.takewhile(lambda batch: batch.asked_s < time_s, self._batches.values()))

    def close_all(self) -> list[PendingBatch]:
        """Forget everything; the batches that got no answer."""
        batches = list(self._batches.values())
        self._batches.clear()
        self._unsent.clear()
        self._sent.clear()
        self._put_off.clear()
        self.sent_crops = self.put_off_crops = 0
        return batches
