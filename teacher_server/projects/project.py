"""A project (tenant) and its allowance."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Project:
    """A tenant. ``weight`` is its share of each lane against other projects that want labels at the same time."""

    name: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"project {self.name!r} needs a positive weight, got {self.weight}")


DEFAULT_PROJECT = Project(name="default")
"""Everybody's project where no projects are configured."""
