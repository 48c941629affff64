"""How busy a lane was between two moments: plain arithmetic over what it counts anyway."""

from __future__ import annotations

from dataclasses import dataclass

from teacherfarm.protos.messages import FarmLoad

SHORTEST_S = 0.05
"""Over less time than a few teacher batches take, a share says nothing."""


class BusyTime:
    """Seconds that slots were busy, added up over the slots. Those that are busy now count up to the moment asked."""

    __slots__ = ("_books",)

    def __init__(self) -> None:
        # How many are busy, and what is left of their time when all that began is taken off and all that ended is
        # added. One value, since a monitor's thread reads while the event loop's writes.
        self._books = (0, 0.0)

    def begin(self, now_s: float) -> None:
        """One more slot is busy."""
        busy, rest_s = self._books
        self._books = (busy + 1, rest_s - now_s)

    def end(self, now_s: float) -> None:
        """One fewer."""
        busy, rest_s = self._books
        self._books = (busy - 1, rest_s + now_s)

    def seconds(self, now_s: float) -> float:
        """The sum so far."""
        busy, rest_s = self._books
        return rest_s + busy * now_s


@dataclass(frozen=True, kw_only=True)
class LoadMark:
    """What a lane had counted at a moment: seconds that its slots were busy, and crops that they answered."""

    time_s: float
    busy_s: float
    crops: int


def load_between(before: LoadMark, after: LoadMark, *, slots: int, backends: int) -> FarmLoad | None:
    """The load from ``before`` to ``after``; None where the time between is too short to tell."""
    passed_s = after.time_s - before.time_s
    if passed_s < SHORTEST_S:
        return None
    # Slots come and go; those that there are now may have been fewer than before.
    busy = min(1.0, (after.busy_s - before.busy_s) / (slots * passed_s)) if slots else 0.0
    return FarmLoad(busy=busy, backends=backends, labels_per_s=(after.crops - before.crops) / passed_s)
