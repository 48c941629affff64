"""How much of its time a student waited for soft labels, and the same in words. Plain arithmetic; reads no clock."""

from __future__ import annotations

from dataclasses import dataclass

NOTICEABLE = 0.02
"""A smaller share is not worth a word of advice."""


@dataclass(kw_only=True)
class Stall:
    """Seconds of one pass (or of several, added up), and the crops that were labelled in them."""

    total_s: float = 0.0
    labels_s: float = 0.0
    batches_s: float = 0.0
    crops: int = 0
    unanswered: int = 0

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
        )

    def report(self) -> str:
        """One line: what bounds this student, by how much, and what would help."""
        waited = f"waited {self.labels_s:.1f} of {self.total_s:.1f} s for labels"
        if self.share >= NOTICEABLE and self.share >= self.loader_share:
            faster = 1 / max(1 - self.share, 0.01)
            words = f"teacher-bound {self.share:.0%}: {waited}; teachers {faster:.1f} times as fast would feed it"
        elif self.loader_share >= 0.1:
            words = (
                f"loader-bound {self.loader_share:.0%}: waited {self.batches_s:.1f} of {self.total_s:.1f} s "
                f"for the DataLoader and {self.labels_s:.1f} s for labels; more or faster workers would "
                "feed this student"
            )
        else:
            words = f"student-bound: {waited} ({self.share:.1%})"
        if self.unanswered:
            words += f"; {self.unanswered} of {self.crops} crops without an answer"
        return words
