"""How many teachers a student needs: from its own wait and from the load that the server tells. Plain arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

from teacherfarm.protos.messages import FarmLoad

SATURATED = 0.9
"""Teachers this busy have no time to spare: forming the next teacher batch takes the rest. As in rules.yml."""
NEGLIGIBLE = 0.1
"""What is missing beyond whole teachers is rounded down up to here: figures are no more exact than that."""
LEAST_WORK_SHARE = 0.01
"""A student that did nothing but wait is taken to work this share of its time."""


def wanted_per_s(*, crops: int, total_s: float, waited_s: float) -> float:
    """Crops/s that a student would take if it never waited for labels."""
    return crops / max(total_s - waited_s, LEAST_WORK_SHARE * total_s) if total_s > 0 else 0.0


def teachers_missing(*, wanted: float, got: float, load: FarmLoad) -> int | None:
    """How many more backends like the present ones would bring a student from ``got`` to ``wanted`` labels/s.

    0: the present ones have the time for it, so something else is in the way. None: nobody can tell, because there is
    no backend or it has not answered anything yet. Assumes that the other students go on asking what they ask now.
    """
    if not load.backends or load.labels_per_s <= 0 or load.busy <= 0:
        return None
    capacity = load.labels_per_s / min(1.0, load.busy / SATURATED)
    spare = capacity - load.labels_per_s
    missing = (wanted - got - spare) / (capacity / load.backends)
    return max(1, math.ceil(missing - NEGLIGIBLE)) if missing > 0 else 0


@dataclass(frozen=True, kw_only=True)
class LoadSum:
    """What servers told so far, added up, so that the load of any time between two moments can be said."""

    seconds: float = 0.0
    busy_s: float = 0.0
    labels: float = 0.0
    backends: int = 0

    def plus(self, load: FarmLoad, seconds: float) -> LoadSum:
        """With ``load`` having lasted ``seconds``."""
        return LoadSum(
            seconds=self.seconds + seconds,
            busy_s=self.busy_s + load.busy * seconds,
            labels=self.labels + load.labels_per_s * seconds,
            backends=load.backends,
        )

    def since(self, earlier: LoadSum) -> FarmLoad | None:
        """The mean load since an earlier sum; None where no server said anything in between."""
        seconds = self.seconds - earlier.seconds
        if seconds <= 0:
            return None
        return FarmLoad(
            busy=(self.busy_s - earlier.busy_s) / seconds,
            backends=self.backends,
            labels_per_s=(self.labels - earlier.labels) / seconds,
        )
