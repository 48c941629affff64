"""A project (tenant), live: its allowance may change while its sessions are open, and acts at once."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from teacherfarm.teacher_server.projects.quota import Quota

SMALLEST_WEIGHT, LARGEST_WEIGHT = 0.001, 1000
LARGEST_LIMIT = 10**12


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What a project may use; 0 is no limit.

    ``weight``: its share of each teacher against other projects that want labels at the same time.
    ``crops_in_flight``: received and not yet answered, over all of its sessions. ``streams``: open sessions.
    ``teachers``: names, or patterns with ``*``, ``?`` and ``[...]``; ``datasets`` alike, those it may name crops of.
    ``share_labels``: find kept labels of other projects that share, and let them find its own, by the digest that the
    server makes of the pixels.
    """

    weight: float = 1.0
    crops_per_second: float = 0.0
    crops_in_flight: int = 0
    streams: int = 0
    teachers: tuple[str, ...] = ("*",)
    datasets: tuple[str, ...] = ("*",)
    share_labels: bool = False

    def __post_init__(self) -> None:
        # Beyond these, virtual time and counted crops would lose their last digits; NaN compares with nothing.
        if not SMALLEST_WEIGHT <= self.weight <= LARGEST_WEIGHT:
            raise ValueError(f"weight must be from {SMALLEST_WEIGHT} to {LARGEST_WEIGHT}, got {self.weight}")
        for name in ("crops_per_second", "crops_in_flight", "streams"):
            if not 0 <= getattr(self, name) <= LARGEST_LIMIT:
                raise ValueError(
                    f"{name} must be 0 (no limit) or more, and at most {LARGEST_LIMIT}, got {getattr(self, name)}"
                )


class Project:
    """A tenant. ``weight`` and ``quota`` follow its allowance; ``quota`` is None where nothing is limited."""

    def __init__(self, *, name: str, allowance: Allowance | None = None) -> None:
        self.name = name
        self.quota: Quota | None = None
        self.allow(allowance or Allowance())

    def __repr__(self) -> str:
        return f"<Project {self.name} {self.allowance}>"

    def allow(self, allowance: Allowance) -> None:
        """From now on this is what it may use; what is under way is not interrupted."""
        self.allowance, self.weight = allowance, allowance.weight
        if not (allowance.crops_per_second or allowance.crops_in_flight):
            self.quota = None
        elif self.quota is None:
            self.quota = Quota(crops_per_second=allowance.crops_per_second, crops_in_flight=allowance.crops_in_flight)
        else:
            self.quota.change(crops_per_second=allowance.crops_per_second, crops_in_flight=allowance.crops_in_flight)

    def may_use(self, teacher: str) -> bool:
        """Whether this teacher is one of those allowed."""
        return any(fnmatchcase(teacher, pattern) for pattern in self.allowance.teachers)

    def may_name(self, dataset: str) -> bool:
        """Whether it may name crops of this data set's samples."""
        return any(fnmatchcase(dataset, pattern) for pattern in self.allowance.datasets)
