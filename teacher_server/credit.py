"""How many crops each session may have in flight, handed out from one global byte budget. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from teacherfarm.protos.faults import Overloaded

RETRY_AFTER_S = 1.0
NEWCOMERS_SHARE = 0.25
UNBOUNDED = 1 << 62


@dataclass(eq=False)
class Credit:
    """One session's account: crops received and not yet taken by its user count against its window.

    ``most_crops``: the session's share of what its project may have under way.
    """

    crop_bytes: int
    slice_crops: int
    pool: CreditPool = field(repr=False)
    project: str = ""
    most_crops: int = UNBOUNDED
    received_crops: int = 0
    answered_crops: int = 0
    taken_crops: int = 0

    @property
    def window_crops(self) -> int:
        return self.pool.window_crops(self)

    @property
    def untaken_crops(self) -> int:
        return self.received_crops - self.taken_crops

    def receive(self, num_crops: int) -> None:
        """So many crops were taken in."""
        self.received_crops += num_crops
        self.pool.book(self, num_crops)

    def withdraw(self, num_crops: int) -> None:
        """So many got a fault, which needs no taking."""
        self.received_crops -= num_crops
        self.pool.book(self, -num_crops)

    def answer(self, num_crops: int) -> None:
        """So many were answered with labels."""
        self.answered_crops += num_crops

    def took(self, taken_crops: int) -> None:
        """The student says how many answers its user has taken so far; it cannot take what it was not sent."""
        newly_taken = min(taken_crops, self.answered_crops) - self.taken_crops
        if newly_taken > 0:
            self.taken_crops += newly_taken
            self.pool.book(self, -newly_taken)

    def has_room(self, num_crops: int) -> bool:
        """Whether that many more crops fit the window and the memory; an empty session has room for one slice."""
        crops = self.untaken_crops + num_crops
        return crops <= self.slice_crops or (crops <= self.window_crops and self.pool.has_room(self, num_crops))


class CreditPool:
    """Shares ``budget_bytes`` equally among the projects with open sessions, and a project's share among its sessions.

    A session gets at most ``most_crops`` and at least one slice.
    """

    def __init__(self, *, budget_bytes: int, most_crops: int) -> None:
        self._budget_bytes = budget_bytes
        self._most_crops = most_crops
        self._open: set[Credit] = set()
        self._sessions: Counter[str] = Counter()
        self.used_bytes = 0

    def __repr__(self) -> str:
        return f"<CreditPool {self.used_bytes} of {self._budget_bytes} bytes used by {len(self._open)} session(s)>"

    def open(self, *, crop_bytes: int, slice_crops: int, project: str = "") -> Credit:
        """An account for one more session; raises Overloaded when the budget holds no slice for it."""
        smallest = sum(credit.crop_bytes * credit.slice_crops for credit in self._open) + crop_bytes * slice_crops
        # The last of it is for projects that have no session yet: one with many must not lock the others out.
        budget = self._budget_bytes if project not in self._sessions else self._budget_bytes * (1 - NEWCOMERS_SHARE)
        if smallest > budget:
            raise Overloaded(
                f"{len(self._open)} sessions fill this server's memory for crops ({self._budget_bytes} bytes); "
                "come back later, or start the server with more --memory-mb",
                retry_after_s=RETRY_AFTER_S,
            )
        credit = Credit(crop_bytes=crop_bytes, slice_crops=slice_crops, pool=self, project=project)
        self._open.add(credit)
        self._sessions[project] += 1
        return credit

    def close(self, credit: Credit) -> None:
        """The session is over; its share goes to the others."""
        if credit not in self._open:
            return
        self.book(credit, -credit.untaken_crops)
        self._open.remove(credit)
        self._sessions[credit.project] -= 1
        if not self._sessions[credit.project]:
            del self._sessions[credit.project]

    def book(self, credit: Credit, num_crops: int) -> None:
        """A session holds so many crops more; nothing of a closed one counts any more."""
        if credit in self._open:
            self.used_bytes += num_crops * credit.crop_bytes

    def has_room(self, credit: Credit, num_crops: int) -> bool:
        """Whether the budget holds so many more crops: sessions may still fill the larger windows of earlier."""
        return self.used_bytes + num_crops * credit.crop_bytes <= self._budget_bytes

    def window_crops(self, credit: Credit) -> int:
        """A session's window at this moment."""
        sharers = max(1, len(self._sessions)) * max(1, self._sessions[credit.project])
        share = self._budget_bytes // sharers // credit.crop_bytes
        # Earlier sessions may still fill larger windows: what does not fit now would only be sent to be refused.
        free = max(0, self._budget_bytes - self.used_bytes) // credit.crop_bytes
        return max(credit.slice_crops, min(share, self._most_crops, credit.most_crops, credit.untaken_crops + free))
