"""Labels in this process's memory: the least recently used go when there is no more room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from teacherfarm.label_store.label_store import LayerStats, StoreScope

ENTRY_BYTES = 232
"""What a label takes beside its key and record, measured: two objects, their places and their neighbours."""


class MemoryStore:
    """At most ``most_bytes``, all of Python's own overhead included."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._records: OrderedDict[bytes, bytes] = OrderedDict()
        self._bytes = 0
        self._written = 0

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self._records)} label(s), {self._bytes >> 20} of {self.most_bytes >> 20} MiB>"

    async def start(self) -> None:
        """Nothing to begin."""

    def find(self, scope: StoreScope, keys: Sequence[bytes]) -> list[bytes | None]:
        """As :meth:`get`, at once."""
        scope_id, records = scope.id, self._records
        found = []
        for key in keys:
            name = scope_id + key
            record = records.get(name)
            if record is not None:
                records.move_to_end(name)
            found.append(record)
        return found

    async def get(self, scope: StoreScope, keys: Sequence[bytes]) -> list[bytes | None]:
        """The record of each key, None where there is none."""
        return self.find(scope, keys)

    def put(self, scope: StoreScope, keys: Sequence[bytes], records: Sequence[bytes]) -> None:
        """Keep these; what was not used for longest goes."""
        scope_id, kept = scope.id, self._records
        for key, record in zip(keys, records, strict=True):
            name = scope_id + key
            before = kept.pop(name, None)
            if before is not None:
                self._bytes -= ENTRY_BYTES + len(name) + len(before)
            kept[name] = record
            self._bytes += ENTRY_BYTES + len(name) + len(record)
        self._written += len(keys)
        while self._bytes > self.most_bytes:
            name, record = kept.popitem(last=False)
            self._bytes -= ENTRY_BYTES + len(name) + len(record)

    def stats(self) -> tuple[LayerStats, ...]:
        """This one layer."""
        return (
            LayerStats(layer="memory", kept_labels=len(self._records), kept_bytes=self._bytes, written=self._written),
        )

    async def close(self) -> None:
        """Nothing to write."""
