"""How busy a lane was between two moments: plain arithmetic over what it counts anyway."""

from __future__ import annotations

from dataclasses import dataclass

from teacherfarm.protos.messages import FarmLoad

SHORTEST_S = 0.05
"""Over less time than a few teacher batches take, a share says nothing."""


@dataclass(frozen=True, kw_only=True)
class LoadMark:
    """What a lane had counted at a moment: seconds that its slots ran, and crops that they answered."""

    time_s: float
    run_s: float
    crops: int


def load_between(before: LoadMark, after: LoadMark, *, slots: int, backends: int) -> FarmLoad | None:
    """The load from ``before`` to ``after``; None where the time between is too short to tell."""
    passed_s = after.time_s - before.time_s
    if passed_s < SHORTEST_S:
        return None
    # A teacher batch counts when it ends, so one that began before the mark may exceed the time since.
    busy = min(1.0, (after.run_s - before.run_s) / (slots * passed_s)) if slots else 0.0
    return FarmLoad(busy=busy, backends=backends, labels_per_s=(after.crops - before.crops) / passed_s)
