"""How much of its time a student waited for soft labels, and the same in words. Plain arithmetic; reads no clock."""

from __future__ import annotations

from dataclasses import dataclass

from teacherfarm.protos.messages import FarmLoad
from teacherfarm.student.sizing import teachers_missing, wanted_per_s

NOTICEABLE = 0.05
"""A smaller share is not worth a word of advice: in a short pass the first batch alone takes as much."""


@dataclass(kw_only=True)
class Stall:
    """Seconds of one pass (or of several, added up), and the crops that were labelled in them.

    ``load``: how busy the teacher was meanwhile, where a farm told.
    """

    total_s: float = 0.0
    labels_s: float = 0.0
    batches_s: float = 0.0
    crops: int = 0
    unanswered: int = 0
    load: FarmLoad | None = None

    @property
    def share(self) -> float:
        """Time spent on asking and waiting for labels over the whole time, 0 to 1."""
        return self.labels_s / self.total_s if self.total_s > 0 else 0.0

    @property
    def loader_share(self) -> float:
        """Time spent waiting for the wrapped loader's batches over the whole time, 0 to 1."""
        return self.batches_s / self.total_s if self.total_s > 0 else 0.0

    def __add__(self, other: Stall) -> Stall:
        return Stall(
            total_s=self.total_s + other.total_s,
            labels_s=self.labels_s + other.labels_s,
            batches_s=self.batches_s + other.batches_s,
            crops=self.crops + other.crops,
            unanswered=self.unanswered + other.unanswered,
            load=other.load or self.load,
        )

    def report(self) -> str:
        """One line: what bounds this student, by how much, and what would help."""
        if self.share >= NOTICEABLE and self.share >= self.loader_share:
            words = self._bound_by_labels()
        elif self.loader_share >= 0.1:
            words = (
                f"loader-bound {_percent(self.loader_share)}: waited {self.batches_s:.1f} of {self.total_s:.1f} s "
                f"for the DataLoader and {self.labels_s:.1f} s for labels; more or faster workers would "
                "feed this student"
            )
        else:
            words = f"student-bound: {self._waited} ({100 * self.share:.1f} %)"
        if self.unanswered:
            words += f"; {self.unanswered} of {self.crops} crops without an answer"
        return words

    @property
    def _waited(self) -> str:
        return f"waited {self.labels_s:.1f} of {self.total_s:.1f} s for labels"

    def _bound_by_labels(self) -> str:
        share, load = _percent(self.share), self.load
        if load is not None and not load.backends:
            return f"teacher-bound {share}: no backend runs this teacher at this moment; {self._waited}"
        wanted = wanted_per_s(crops=self.crops, total_s=self.total_s, waited_s=self.labels_s)
        got = self.crops / self.total_s
        missing = teachers_missing(wanted=wanted, got=got, load=load) if load is not None else None
        if load is None or missing is None:
            faster = 1 / max(1 - self.share, 0.01)
            return f"teacher-bound {share}: {self._waited}; teachers {faster:.3g} times as fast would feed it"
        if not missing:
            return (
                f"link-bound {share}: {self._waited} while its teachers were {_percent(load.busy)} busy; a larger "
                "window, jpeg crops or a faster link would feed this student (teacherfarm doctor ADDRESS says which)"
            )
        return (
            f"teacher-bound {share}: {missing} more {_teachers(missing)} would feed this student; {self._waited}, got "
            f"{got:.0f} of {wanted:.0f} crops/s from {load.backends} {_teachers(load.backends)}, "
            f"{_percent(load.busy)} busy"
        )


def _teachers(number: int) -> str:
    return "teacher" if number == 1 else "teachers"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
