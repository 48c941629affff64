"""What waits to be written, bounded in bytes: a full queue drops what comes, so that nobody waits and nothing grows."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from teacherfarm.label_store.label_store import StoreScope

Groups = dict[StoreScope, list[tuple[bytes, bytes]]]
"""Keys and records by scope, in the order they came."""

OBJECTS_BYTES = 96
"""What Python adds to a key and its record, measured: two objects and their places in lists."""


class WriteQueue:
    """Filled by one thread and emptied by one, without a lock: each end writes its own count alone."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._waiting: deque[tuple[StoreScope, Sequence[bytes], Sequence[bytes], int]] = deque()
        self._put_bytes = 0
        self._taken_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, scope: StoreScope, keys: Sequence[bytes], records: Sequence[bytes]) -> bool:
        """Whether there was room; if not, nothing is kept."""
        size = len(keys) * (scope.record_bytes + len(keys[0]) + OBJECTS_BYTES) if keys else 0
        if self._put_bytes - self._taken_bytes + size > self._most_bytes:
            return False
        self._put_bytes += size
        self._waiting.append((scope, keys, records, size))
        return True

    def take(self, about_bytes: int) -> tuple[Groups, int]:
        """The oldest, up to about so many bytes, by scope; and how many labels."""
        groups: Groups = {}
        num_labels = taken = 0
        while self._waiting and taken < about_bytes:
            scope, keys, records, size = self._waiting.popleft()
            groups.setdefault(scope, []).extend(zip(keys, records, strict=True))
            num_labels += len(keys)
            taken += size
        self._taken_bytes += taken
        return groups, num_labels
