"""How a run of E epochs divides into passes over the data, and the learning rate in each of them. Pure
arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["cosine", "steps", "constant"]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass over the data: it begins when ``epoch`` epochs are done and counts ``crops_per_image`` of
    them. ``phase``: which of the method's.
    """

    epoch: int
    crops_per_image: int
    phase: int = 0

    @property
    def epoch_after(self) -> int:
        return self.epoch + self.crops_per_image

    @property
    def visit(self) -> int:
        """The pass number by which a view schedule of so many crops per visit goes."""
        return self.epoch // self.crops_per_image


def crops_of_batch(batch_size: int, crops_per_image: int) -> int:
    """Of every batch of a run, in passes of several crops of an image and of one alike: some methods have layers of
    that size. As many whole images as fit, one at least.
    """
    return max(batch_size // crops_per_image, 1) * crops_per_image


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


def plan_phases(spans: Sequence[tuple[int, int]], crops_per_image: int) -> list[Pass]:
    """The passes of phases that last from one epoch to another, each by the same accounting."""
    return [
        Pass(epoch=begin + one.epoch, crops_per_image=one.crops_per_image, phase=phase)
        for phase, (begin, end) in enumerate(spans)
        for one in plan_passes(end - begin, crops_per_image)
    ]


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """A phase's learning rate: a linear warm-up from a hundredth of the peak, then half a cosine down to ``floor`` at
    the end, or times ``factor`` at each of ``steps``, or constant. Epochs are counted from the phase's begin.
    """

    peak: float
    epochs: float
    warmup_epochs: float = 0.0
    schedule: Schedule = "cosine"
    steps: tuple[float, ...] = ()
    factor: float = 0.1
    floor: float = 0.0

    def __post_init__(self) -> None:
        if (self.schedule == "steps") != bool(self.steps):
            raise ValueError("--lr-schedule steps and --lr-steps EPOCH ... go together: give both or neither")

    def at(self, epoch: float) -> float:
        """After so many epochs of the phase."""
        if epoch < self.warmup_epochs:
            return self.peak * (0.01 + 0.99 * epoch / self.warmup_epochs)
        if self.schedule == "steps":
            return self.peak * self.factor ** sum(epoch >= step for step in self.steps)
        if self.schedule == "constant":
            return self.peak
        share = min((epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9), 1.0)
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * share))
