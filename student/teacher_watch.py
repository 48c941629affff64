"""Keeps the teacher's running top-1 against the data set's targets and speaks up once when it is implausibly low.

A teacher whose classes are in another order, or whose crops have swapped channels, trains a bad student in silence.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from teacherfarm.protos.faults import BadTeacher

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from teacherfarm.protos.soft_label import SoftLabels

OnMismatch = Literal["warn", "raise", "ignore"]

ENOUGH_CROPS = 500
LOW_TOP1 = 0.3
TIMES_CHANCE = 5.0


class TeacherMismatch(UserWarning):
    """The teacher disagrees with the data set's targets far too often."""


class TeacherWatch:
    """Running top-1 over every crop that has an answer and a target (negative targets do not count)."""

    def __init__(self, on_mismatch: OnMismatch = "warn") -> None:
        if on_mismatch not in ("warn", "raise", "ignore"):
            raise ValueError(f"on_mismatch is 'warn', 'raise' or 'ignore', got {on_mismatch!r}")
        self.on_mismatch = on_mismatch
        self.crops = 0
        self.agreed = 0
        self._spoken = False

    @property
    def top1(self) -> float:
        """Share of the crops whose most probable class is the target; NaN before the first."""
        return self.agreed / self.crops if self.crops else float("nan")

    def note(self, labels: SoftLabels, targets: NDArray[Any]) -> None:
        """Count one batch; after 500 crops warn (or raise BadTeacher) once if top-1 is below 0.3 and 5 x chance."""
        targets = np.asarray(targets)
        if targets.shape != (len(labels),) or not np.issubdtype(targets.dtype, np.integer):
            raise ValueError(
                f"target_view must give one class number for each of {len(labels)} crops, got "
                f"{targets.dtype} {list(targets.shape)}"
            )
        counted = (labels.weight > 0) & (targets >= 0)
        self.crops += int(counted.sum())
        self.agreed += int((labels.top1[counted] == targets[counted]).sum())
        low = min(LOW_TOP1, TIMES_CHANCE / labels.num_classes)
        if self._spoken or self.on_mismatch == "ignore" or self.crops < ENOUGH_CROPS or self.top1 >= low:
            return
        self._spoken = True
        message = (
            f"the teacher's top-1 against your targets is {self.top1:.1%} over {self.crops} crops of "
            f"{labels.num_classes} classes. Likely reasons: your class numbers are in another order than "
            "the teacher's; the crops' channels are BGR where the teacher takes RGB; the crops were "
            "normalised or scaled before they became uint8; this teacher was trained for other classes. "
            "`teacherfarm check DATA --teacher-address ...` finds out which. In a loop of "
            "your own, on_mismatch='ignore' silences this"
        )
        if self.on_mismatch == "raise":
            raise BadTeacher(message)
        warnings.warn(message, TeacherMismatch, stacklevel=4)
