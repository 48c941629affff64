"""The same crop, asked again while it is being computed, waits for that answer instead of asking the teacher twice.

A claim covers the rows of one slice: rows that nobody is computing are fresh and become the claim's own, the others
join somebody else's. An owner who leaves or fails passes its crops on: those who joined claim them anew, with their own
pixels. Joins happen inside one scope only (project, teacher, label spec), so no tenant sees another's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.crop import CROP_KEY_BYTES


class Claim:
    """One slice's hold on its crops. Must be released, whatever happens; fulfil it before, if there are answers."""

    def __init__(self, in_flight: InFlight, scope: Hashable, keys: list[bytes], rows: Sequence[int]) -> None:
        self._in_flight = in_flight
        self._scope = scope
        self._owned: dict[bytes, int] = {}
        self._records: NDArray[Any] | None = None
        self._unanswered: set[int] = set()
        self._released = False
        self._waiter: asyncio.Future[None] | None = None
        self.fresh: list[int] = []
        self.joined: list[tuple[int, Claim, int]] = []
        owners = in_flight.owners(scope)
        for row in rows:
            key = keys[row]
            owner = owners.get(key)
            if owner is None:
                owners[key] = self
                self._owned[key] = len(self.fresh)
                self.fresh.append(row)
            else:
                self.joined.append((row, owner, owner._owned[key]))

    def fulfil(self, records: NDArray[Any], answered: Sequence[int] | None = None) -> None:
        """Hand the answers of the fresh rows, in their order, to everybody who joined.

        ``answered``: those of the fresh rows that the records are of, where others got none.
        """
        if answered is not None and len(answered) < len(self.fresh):
            places = {row: place for place, row in enumerate(self.fresh)}
            indices = [places[row] for row in answered]
            spread = np.zeros(len(self.fresh), records.dtype)
            spread[indices] = records
            self._unanswered = set(range(len(self.fresh))) - set(indices)
            records = spread
        self._records = records

    def release(self) -> None:
        """Stop owning: whoever joined gets the answers, or has to ask by itself where there are none."""
        owners = self._in_flight.owners(self._scope)
        for key in self._owned:
            if owners.get(key) is self:
                del owners[key]
        self._in_flight.forget_when_empty(self._scope)
        self._released = True
        if self._waiter is not None:
            self._waiter.set_result(None)

    async def answer(self, index: int) -> Any | None:
        """The record of one fresh row once the owner released, or None where it left without."""
        records = await self.answers()
        return None if records is None or index in self._unanswered else records[index]

    async def answers(self) -> NDArray[Any] | None:
        """The owner's records once it released, or None where it left without."""
        if not self._released:
            if self._waiter is None:
                self._waiter = asyncio.get_running_loop().create_future()
            # Shielded: one of several who wait may be cancelled without the others.
            await asyncio.shield(self._waiter)
        return self._records


class InFlight:
    """Every crop that is being computed, by scope and key."""

    def __init__(self) -> None:
        self._scopes: dict[Hashable, dict[bytes, Claim]] = {}

    def __repr__(self) -> str:
        return f"<InFlight {sum(map(len, self._scopes.values()))} crop(s)>"

    def owners(self, scope: Hashable) -> dict[bytes, Claim]:
        """Who computes what in a scope; for claims only."""
        return self._scopes.setdefault(scope, {})

    def forget_when_empty(self, scope: Hashable) -> None:
        """Drop the books of a scope in which nothing is computed."""
        if not self._scopes.get(scope, True):
            del self._scopes[scope]

    def claim(self, scope: Hashable, keys: list[bytes], rows: Sequence[int]) -> Claim:
        """Claim the crops of these rows."""
        return Claim(self, scope, keys, rows)


def split_keys(keys: bytes) -> list[bytes]:
    """Joined crop keys, apart."""
    return [keys[start : start + CROP_KEY_BYTES] for start in range(0, len(keys), CROP_KEY_BYTES)]
