"""Memory over a slower store: asked first, filled by what the other finds, written at once."""

from __future__ import annotations

from collections.abc import Sequence

from teacherfarm.label_store.label_store import LabelStore, LayerStats, StoreScope
from teacherfarm.label_store.memory_store import MemoryStore


class ReadThrough:
    """A label that was put is found from then on, whether or not the store below has written it yet."""

    def __init__(self, memory: MemoryStore, below: LabelStore) -> None:
        self._memory = memory
        self._below = below

    def __repr__(self) -> str:
        return f"<ReadThrough {self._memory!r} over {self._below!r}>"

    async def start(self) -> None:
        """Begin."""
        await self._below.start()

    async def get(self, scope: StoreScope, keys: Sequence[bytes]) -> list[bytes | None]:
        """The record of each key, None where neither has it."""
        found = self._memory.find(scope, keys)
        missing = [place for place, record in enumerate(found) if record is None]
        if not missing:
            return found
        fresh_keys, fresh = [], []
        for place, record in zip(
            missing, await self._below.get(scope, [keys[place] for place in missing]), strict=True
        ):
            if record is not None:
                found[place] = record
                fresh_keys.append(keys[place])
                fresh.append(record)
        self._memory.put(scope, fresh_keys, fresh)
        return found

    def put(self, scope: StoreScope, keys: Sequence[bytes], records: Sequence[bytes]) -> None:
        """Keep these in memory now, below some time soon."""
        self._memory.put(scope, keys, records)
        self._below.put(scope, keys, records)

    def stats(self) -> tuple[LayerStats, ...]:
        """Memory, then what lies below."""
        return self._memory.stats() + self._below.stats()

    async def close(self) -> None:
        """Write what is queued, and end."""
        await self._below.close()
