"""How a run of E epochs divides into passes over the data, and the learning rate in each of them. Pure
arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass over the data: it begins when ``epoch`` epochs are done and counts ``crops_per_image`` of
    them.
    """

    epoch: int
    crops_per_image: int

    @property
    def epoch_after(self) -> int:
        return self.epoch + self.crops_per_image

    @property
    def visit(self) -> int:
        """The pass number by which a view schedule of so many crops per visit goes."""
        return self.epoch // self.crops_per_image


def plan_passes(epochs: int, crops_per_image: int) -> list[Pass]:
    """Passes of m crops per image, each counting m epochs; the last m epochs (at least) single-crop (FKD's
    accounting).
    """
    if epochs < 1 or crops_per_image < 1:
        raise ValueError(f"epochs and crops per image are at least 1, got {epochs} and {crops_per_image}")
    multi = (epochs - crops_per_image) // crops_per_image if crops_per_image > 1 else 0
    passes = [Pass(epoch=n * crops_per_image, crops_per_image=crops_per_image) for n in range(max(multi, 0))]
    first_single = passes[-1].epoch_after if passes else 0
    return passes + [Pass(epoch=epoch, crops_per_image=1) for epoch in range(first_single, epochs)]


def learning_rate(epoch: float, *, peak: float, epochs: int, warmup_epochs: float, floor: float = 0.0) -> float:
    """Linear warm-up from a hundredth of the peak, then half a cosine down to ``floor`` at the end."""
    if epoch < warmup_epochs:
        return peak * (0.01 + 0.99 * epoch / warmup_epochs)
    share = min((epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9), 1.0)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * share))
