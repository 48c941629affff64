"""Kept labels as the gateway uses them: looked up before a teacher is asked, kept behind its answer.

One project's labels are found by the keys that its students claim, and by nobody else. Projects that share find each
other's, too: by a digest that is made here, of the pixels that came, so that a label in common is always the teacher's
answer to the very pixels that are asked about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.label_store.label_store import SHARED, LabelStore, StoreScope, record_kind
from teacherfarm.label_store.record_checks import unusable
from teacherfarm.protos.crop import CropFormat
from teacherfarm.protos.soft_label import LABELS, LabelSpec
from teacherfarm.protos.teacher_card import TeacherCard

BY_PIXELS = "BLAKE3 of pixels"


class Lookup:
    """What is known of some rows of a slice: ``found`` has their records, first those that were kept, then all."""

    def __init__(self, keys: Sequence[bytes], rows: Sequence[int], dtype: np.dtype[np.void]) -> None:
        self.keys, self.rows = keys, rows
        self.found: dict[int, bytes] = {}
        self.digests: dict[int, bytes] = {}
        self._dtype = dtype

    @property
    def missing(self) -> list[int]:
        """The rows that nothing is known of."""
        return [row for row in self.rows if row not in self.found]

    def answers(self) -> tuple[NDArray[np.void], list[int]]:
        """The records, and whose they are: of all rows but those that could not be had."""
        done = [row for row in self.rows if row in self.found]
        return np.frombuffer(b"".join([self.found[row] for row in done]), self._dtype), done


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where records of one form lie, and where the dense ones that they could be cut from."""

    scope: StoreScope
    dense: StoreScope | None


class KeptLabels:
    """The kept labels that the sessions of one project, teacher, label spec and crop format may use.

    ``shares``: whether the project shares, asked at each slice, since its file may change. ``counts``: told what was
    found and what was not.
    """

    def __init__(
        self,
        store: LabelStore,
        *,
        project: str,
        card: TeacherCard,
        artifact_digest: str,
        spec: LabelSpec,
        crop_format: CropFormat,
        shares: Callable[[], bool],
        counts: Callable[[int, int], None],
    ) -> None:
        self._store = store
        self._card, self._spec = card, spec
        self._dtype = spec.record_dtype(card)
        self._shares, self._counts = shares, counts
        own = StoreScope(
            project=project,
            artifact_digest=artifact_digest,
            record=record_kind(spec),
            record_bytes=self._dtype.itemsize,
            crops=f"{crop_format.codec} {crop_format.describe()}",
            teacher=card.name,
            teacher_digest=card.teacher_digest,
        )
        self._own = self._place(own)
        self._shared = self._place(replace(own, project=SHARED, crops=f"{BY_PIXELS} {crop_format.describe()}"))

    async def find(self, keys: Sequence[bytes], rows: Sequence[int]) -> Lookup:
        """Look these rows up among the project's own labels; ``keys`` of all rows are the student's."""
        lookup = Lookup(keys, rows, self._dtype)
        await self._fill(lookup.found, self._own, {row: keys[row] for row in rows})
        self._counts(len(lookup.found), 0)
        return lookup

    async def find_shared(
        self, lookup: Lookup, pixels: NDArray[Any], rows: Sequence[int]
    ) -> tuple[NDArray[Any], Sequence[int]]:
        """Look rows that are missing up by their pixels, where the project shares; what is left of both."""
        found: dict[int, bytes] = {}
        if self._shares() and len(rows):
            lookup.digests = dict(zip(rows, await pixel_digests(pixels), strict=True))
            await self._fill(found, self._shared, lookup.digests)
        self._counts(len(found), len(rows) - len(found))
        if not found:
            return pixels, rows
        self._put(self._own.scope, lookup.keys, found)
        lookup.found |= found
        left = [place for place, row in enumerate(rows) if row not in found]
        return pixels[left], [rows[place] for place in left]

    def keep(self, lookup: Lookup, computed: NDArray[np.void], rows: Sequence[int]) -> None:
        """The teacher answered these rows: they are found, and kept; but NaN, which its next answer may not be."""
        records = dict(zip(rows, self._apart(computed), strict=True))
        lookup.found |= records
        bad = unusable(computed)
        if bad.any():
            records = {row: records[row] for row, is_bad in zip(rows, bad.tolist(), strict=True) if not is_bad}
        self._put(self._own.scope, lookup.keys, records)
        if lookup.digests:
            # Only what was computed from these very pixels: what was found under a claimed key proves nothing.
            self._put(self._shared.scope, lookup.digests, records)

    async def _fill(self, found: dict[int, bytes], place: _Place, keys: Mapping[int, bytes]) -> None:
        """Records of the rows that have these keys."""
        kept = await self._store.get(place.scope, list(keys.values()))
        found |= {row: record for row, record in zip(keys, kept, strict=True) if record is not None}
        if place.dense is None or len(found) == len(keys):
            return
        missing = [row for row in keys if row not in found]
        kept = await self._store.get(place.dense, [keys[row] for row in missing])
        dense = {row: record for row, record in zip(missing, kept, strict=True) if record is not None}
        if dense:
            cut = dict(zip(dense, self._cut(list(dense.values())), strict=True))
            self._put(place.scope, keys, cut)
            found |= cut

    def _put(
        self, scope: StoreScope, keys: Sequence[bytes] | Mapping[int, bytes], records: Mapping[int, bytes]
    ) -> None:
        self._store.put(scope, [keys[row] for row in records], list(records.values()))

    def _cut(self, dense: list[bytes]) -> list[bytes]:
        """Top-k records of dense ones: from the same numbers that the teacher would give again."""
        values = np.frombuffer(b"".join(dense), LabelSpec(outputs=(LABELS,)).record_dtype(self._card))[LABELS]
        return self._apart(self._spec.pack({self._card.label_output: values}, self._card, self._dtype))

    def _apart(self, records: NDArray[np.void]) -> list[bytes]:
        size, joined = self._dtype.itemsize, records.tobytes()
        return [joined[start : start + size] for start in range(0, len(joined), size)]

    def _place(self, scope: StoreScope) -> _Place:
        if self._spec.outputs != (LABELS,) or not self._spec.top_k:
            return _Place(scope=scope, dense=None)
        spec = LabelSpec(outputs=(LABELS,))
        size = spec.record_dtype(self._card).itemsize
        return _Place(scope=scope, dense=replace(scope, record=record_kind(spec), record_bytes=size))


async def pixel_digests(pixels: NDArray[Any]) -> list[bytes]:
    """BLAKE3 of each crop's bytes, 32 of them, in a thread: reading 150 KB takes a tenth of a millisecond."""
    return await asyncio.get_running_loop().run_in_executor(None, _digests, pixels)


def _digests(pixels: NDArray[Any]) -> list[bytes]:
    from blake3 import blake3

    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1).view(np.uint8)
    return [blake3(row.data).digest() for row in rows]
