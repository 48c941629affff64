"""Looking after a label store from outside, beside the server that uses it: what is there, is it whole, take it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from teacherfarm.label_store.label_store import StoreScope
from teacherfarm.protos.faults import LabelStoreFault

WITHOUT_REDIS = "needs Redis's library: pip install 'teacherfarm[redis]'"
Progress = Callable[[int], object]
"""Told how many labels more were looked at."""
Chosen = Callable[[StoreScope], bool]


@dataclass(frozen=True, kw_only=True)
class ScopeSummary:
    """What a store holds of one scope; None: of scopes that it does not know any more."""

    scope: StoreScope | None
    labels: int
    bytes: int


@dataclass(kw_only=True)
class Verdict:
    """What a check of every label found. ``damaged``: where, in words."""

    checked: int = 0
    damaged: list[str] = field(default_factory=list)


class StoreUpkeep(Protocol):
    """An open store. Each method may run while a server reads and writes it."""

    def __len__(self) -> int:
        """About how many labels there are."""

    def disk_bytes(self) -> int:
        """What it takes where it is kept."""

    def summaries(self, progress: Progress) -> list[ScopeSummary]:
        """What there is, the largest first."""

    def verify(self, progress: Progress) -> Verdict:
        """Check every label against its checksum."""

    def evict(self, chosen: Chosen | None, older_than_s: float, progress: Progress) -> int:
        """Take out the labels of chosen scopes (None: of all) that are older than this; how many."""

    def close(self) -> None:
        """Let go of it."""


def is_store(location: str) -> bool:
    """Whether this names a label store, and not recorded labels."""
    from teacherfarm.label_store.lmdb_upkeep import is_store_folder

    scheme, _, place = location.partition(":")
    return scheme in ("redis", "rediss", "lmdb") or ("://" not in location and is_store_folder(Path(place or location)))


def open_upkeep(location: str) -> StoreUpkeep:
    """``lmdb:DIR``, the folder itself, or redis://HOST:PORT/0. Raises ValueError, LabelStoreFault."""
    if location.startswith(("redis:", "rediss:")):
        try:
            from teacherfarm.label_store.redis_upkeep import RedisUpkeep
        except ModuleNotFoundError as error:
            raise ValueError(f"{location.partition(':')[0]}:// {WITHOUT_REDIS}") from error
        return RedisUpkeep(location)
    from teacherfarm.label_store.lmdb_upkeep import LmdbUpkeep, is_store_folder

    folder = Path(location.removeprefix("lmdb:"))
    if not is_store_folder(folder):
        raise LabelStoreFault(f"{folder} is no label store: expected the DIR of `teacherfarm serve --store lmdb:DIR`")
    return LmdbUpkeep(folder)


def describe(scope: StoreScope | None) -> str:
    """A scope in words."""
    if scope is None:
        return "of scopes that Redis forgot"
    whose = f"project {scope.project}" if scope.project else "shared by projects"
    return f"{whose}, {scope.teacher or 'teacher'} {scope.artifact_digest[:12]}, {' + '.join(scope.record)}"
