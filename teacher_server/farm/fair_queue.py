"""Whose slice is next: shares between projects by weight alone, turns between a project's streams, priority within it.

Pure: no clock, nothing awaited. Shares are kept by virtual time (start-time fair queueing, Goyal et al. 1996): each
project's clock advances by crops / weight as it is served and the project that is furthest behind goes next, which is
deficit round robin without a quantum to choose. A project that was idle starts at the present, with no credit saved up.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, Protocol, TypeVar


class Queued(Protocol):
    """What the queue needs to know of a slice."""

    @property
    def project(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def stream(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def num_crops(self) -> int: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def alone(self) -> bool:
        """Must not share a teacher batch."""
        ...

    @property
    def abandoned(self) -> bool:
        """Nobody waits for it any more."""
        ...


S = TypeVar("S", bound=Queued)


class _Tenant(Generic[S]):
    """One project's waiting slices: by priority, then in turns over streams, each stream in the order asked."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.levels: dict[int, OrderedDict[str, deque[S]]] = {}

    def push(self, slice_: S) -> None:
        level = self.levels.setdefault(slice_.priority, OrderedDict())
        level.setdefault(slice_.stream, deque()).append(slice_)

    def restore(self, slice_: S) -> None:
        level = self.levels.setdefault(slice_.priority, OrderedDict())
        level.setdefault(slice_.stream, deque()).appendleft(slice_)
        level.move_to_end(slice_.stream, last=False)

    def find(self, most_crops: int, outputs: tuple[str, ...] | None) -> tuple[int, str, S] | None:
        """The slice that is next and fits, see :meth:`FairQueue.pop`; abandoned ones are dropped on the way."""
        for priority in tuple(self.levels) if len(self.levels) == 1 else sorted(self.levels, reverse=True):
            found, empty = None, []
            for stream, waiting in self.levels[priority].items():
                while waiting and waiting[0].abandoned:
                    waiting.popleft()
                if not waiting:
                    empty.append(stream)
                    continue
                head = waiting[0]
                if outputs is None or (head.num_crops <= most_crops and head.outputs == outputs and not head.alone):
                    found = (priority, stream, head)
                    break
            for stream in empty:
                self._forget(priority, stream)
            if found is not None:
                return found
        return None

    def take(self, priority: int, stream: str) -> None:
        level = self.levels[priority]
        level[stream].popleft()
        if level[stream]:
            level.move_to_end(stream)
        else:
            self._forget(priority, stream)

    def withdraw(self, slice_: S) -> None:
        waiting = self.levels.get(slice_.priority, OrderedDict()).get(slice_.stream)
        if waiting is not None and slice_ in waiting:
            waiting.remove(slice_)
            if not waiting:
                self._forget(slice_.priority, slice_.stream)

    def _forget(self, priority: int, stream: str) -> None:
        level = self.levels[priority]
        del level[stream]
        if not level:
            del self.levels[priority]


class FairQueue(Generic[S]):
    """Waiting slices of every project."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant[S]] = {}
        self._now = 0.0

    def __repr__(self) -> str:
        return f"<FairQueue {sum(bool(t.levels) for t in self._tenants.values())} project(s) waiting>"

    def push(self, slice_: S) -> None:
        """Add a slice behind its stream's others of the same priority."""
        tenant = self._tenants.setdefault(slice_.project, _Tenant())
        if not tenant.levels:
            tenant.clock = max(tenant.clock, self._now)
        tenant.push(slice_)

    def restore(self, slice_: S) -> None:
        """Put a slice back that was popped and not served: its project gets its time back, it is its next."""
        tenant = self._tenants.get(slice_.project)
        if tenant is None:
            tenant = self._tenants[slice_.project] = _Tenant()
            tenant.clock = self._now
        else:
            tenant.clock -= slice_.num_crops / slice_.weight
        tenant.restore(slice_)

    def withdraw(self, slice_: S) -> None:
        """Take an abandoned slice out now: its pixels must not lie here until its turn would have come."""
        tenant = self._tenants.get(slice_.project)
        if tenant is not None:
            tenant.withdraw(slice_)

    def pop(self, most_crops: int, outputs: tuple[str, ...] | None = None) -> S | None:
        """Take the next slice, or None where none fits.

        With ``outputs``: only one of at most ``most_crops`` crops that asks for just these outputs and need not be
        alone. A project whose next slices do not fit is passed over for now; its clock stands still meanwhile.
        """
        tenants = self._tenants
        for name in tuple(tenants) if len(tenants) == 1 else sorted(tenants, key=lambda name: tenants[name].clock):
            tenant = tenants[name]
            if found := tenant.find(most_crops, outputs):
                priority, stream, head = found
                tenant.take(priority, stream)
                self._now = max(self._now, tenant.clock)
                tenant.clock += head.num_crops / head.weight
                return head
            if not tenant.levels and tenant.clock <= self._now:
                # Not before its clock has passed: asking slice by slice must not win extra turns.
                del self._tenants[name]
        return None
