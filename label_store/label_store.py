"""What a store of soft labels is: records by scope and crop key, looked up before a teacher is asked and written
behind the answer. Knows no place to keep them.

A scope says which labels may answer which question: whose they are, of which served file, in which form. Keys mean
nothing outside their scope, so nobody finds what another project keeps, whatever keys it claims.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Protocol

from teacherfarm.protos.soft_label import LABELS, LabelSpec

SCOPE_ID_BYTES = 16
CHECKSUM_BYTES = 8
SHARED = ""
"""The project of labels that projects share by choice; no project can be called so."""


@dataclass(frozen=True, kw_only=True)
class StoreScope:
    """Labels that may stand for each other.

    ``project``: whose, or :data:`SHARED`. ``artifact_digest``: of the file that made them. ``record``: what a record
    holds (:func:`record_kind`). ``crops``: what its keys are keys of. ``teacher`` and ``teacher_digest`` are for people
    and take no part in the comparison: the artifact decides.
    """

    project: str
    artifact_digest: str
    record: tuple[str, ...]
    record_bytes: int
    crops: str
    teacher: str = field(default="", compare=False)
    teacher_digest: str = field(default="", compare=False)

    @cached_property
    def id(self) -> bytes:
        """16 bytes for all that is compared."""
        compared = [getattr(self, one.name) for one in fields(self) if one.compare]
        return hashlib.blake2b(json.dumps(compared).encode(), digest_size=SCOPE_ID_BYTES).digest()

    def to_json(self) -> bytes:
        """What :meth:`from_json` reads."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> StoreScope:
        """Raises ValueError for what is no scope."""
        try:
            values = json.loads(text)
            return cls(**(values | {"record": tuple(values["record"])}))
        except (TypeError, KeyError, ValueError, RecursionError) as error:
            raise ValueError(f"not a scope of a label store: {bytes(text[:200])!r} ({error})") from error


def record_kind(spec: LabelSpec) -> tuple[str, ...]:
    """What a record of a resolved spec holds, in its order. Equal kinds of one teacher are equal records."""
    kind = []
    for name in spec.outputs:
        if name != LABELS:
            kind.append(f"{name} in {spec.feature_type}")
        elif spec.top_k:
            kind.append(f"{LABELS}, top {spec.top_k} at T={spec.temperature!r}")
        else:
            kind.append(LABELS)
    return tuple(kind)


@dataclass(frozen=True, kw_only=True)
class LayerStats:
    """One layer of a store, since its start where it counts. ``why``: what keeps it from working, or empty.

    ``kept_labels`` and ``kept_bytes``: now; -1 where only the layer's own server could tell. ``written``: labels that
    are kept for good (LMDB: after their commit). ``dropped``: never written, because the queue was full or the layer
    out of order. ``damaged``: records that a checksum refused.
    """

    layer: str
    kept_labels: int = 0
    kept_bytes: int = 0
    written: int = 0
    dropped: int = 0
    damaged: int = 0
    why: str = ""


class LabelStore(Protocol):
    """Every method is called on one event loop but ``stats``, which any thread may ask."""

    async def start(self) -> None:
        """Begin; raises nothing for what may come later."""

    async def get(self, scope: StoreScope, keys: Sequence[bytes]) -> list[bytes | None]:
        """The record of each key, None where there is none. Never raises for a store that is out of order."""

    def put(self, scope: StoreScope, keys: Sequence[bytes], records: Sequence[bytes]) -> None:
        """Keep these, some time soon; never waits. What there is no room for is dropped and counted."""

    def stats(self) -> tuple[LayerStats, ...]:
        """One for each layer, the nearest first."""

    async def close(self) -> None:
        """Write what is queued, and end."""


def seal(scope_id: bytes, key: bytes, record: bytes) -> bytes:
    """A record with the checksum of itself and of its place."""
    import xxhash

    return record + xxhash.xxh3_64_digest(scope_id + key + record)


def unseal(scope_id: bytes, key: bytes, sealed: bytes, record_bytes: int) -> bytes | None:
    """The record, or None where it is not whole or not of this place."""
    import xxhash

    record = sealed[:record_bytes]
    if len(sealed) != record_bytes + CHECKSUM_BYTES or not record_bytes:
        return None
    return record if xxhash.xxh3_64_digest(scope_id + key + record) == sealed[record_bytes:] else None
