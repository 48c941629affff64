"""One period's labels in one LMDB file: written in blocks, found by an index of keys, checked one by one.

Blocks and not a record each: a record of 2 KB in LMDB's tree takes a page of 4 KB, and the tree's pages move with every
insertion. Three tables: scopes (id -> number and description), index (number, key -> block, row), blocks (number,
block -> sealed records in a row). Numbers and blocks mean nothing outside their file.
"""

from __future__ import annotations

import calendar
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from teacherfarm.label_store.label_store import CHECKSUM_BYTES, StoreScope, seal, unseal

SUFFIX = ".labels"
STAMP = "%Y%m%dT%H%M%S"
BLOCK_BYTES = 256 << 10
FULL_SHARE = 0.8
STEP_KEYS = 4096
"""Keys looked at in one transaction by whoever walks through all of them: LMDB reuses no page that a reader may see."""

_NUMBER = struct.Struct(">I")
_PLACE = struct.Struct(">II")

Rows = list[tuple[bytes, bytes]]
"""Keys and their records."""


class SegmentCutShort(Exception):
    """The file is shorter than its own tables say: reading it would end the process."""


@dataclass(frozen=True, kw_only=True)
class ScopeHold:
    """What a segment holds of one scope."""

    scope: StoreScope
    number: int
    labels: int
    bytes: int


class Segment:
    """An open file; close it. Readers and the one writer may be threads or processes of their own.

    Raises SegmentCutShort, lmdb.Error, OSError. ``repair``: make a file that was cut short safe to read; what was cut
    off is found missing, record by record.
    """

    def __init__(self, path: Path, *, map_bytes: int = 0, read_only: bool = False, repair: bool = False) -> None:
        self.path = path
        self.started_s = started_s(path)
        size = path.stat().st_size if path.exists() else 0
        # Without a size LMDB takes the one that the file was last written with.
        self._env = lmdb.open(
            str(path),
            subdir=False,
            map_size=map_bytes,
            max_dbs=3,
            readonly=read_only,
            create=not read_only,
            meminit=False,
            readahead=False,
        )
        try:
            if not read_only:
                # Readers that were killed would keep old pages from being used again.
                self._env.reader_check()
            needed = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
            if 0 < size < needed:
                if not repair:
                    raise SegmentCutShort(f"{path} has {size} of {needed} bytes")
                with path.open("r+b") as file:
                    file.truncate(needed)
            self._scopes, self._index, self._blocks = (
                self._env.open_db(name, create=not read_only) for name in (b"scopes", b"index", b"blocks")
            )
        except BaseException:
            self._env.close()
            raise

    def __repr__(self) -> str:
        return f"<Segment {self.path.name}, {self.disk_bytes >> 20} MiB>"

    @property
    def disk_bytes(self) -> int:
        """What it takes on disk."""
        return disk_bytes(self.path)

    @property
    def is_full(self) -> bool:
        """Whether what is left is little: changing a segment takes room, taking labels out of it, too."""
        info = self._env.info()
        return bool((info["last_pgno"] + 1) * self._env.stat()["psize"] > FULL_SHARE * info["map_size"])

    @property
    def num_labels(self) -> int:
        """Keys in the index."""
        with self._env.begin() as txn:
            return int(txn.stat(self._index)["entries"])

    def write(self, groups: Mapping[StoreScope, Rows]) -> None:
        """Keep these, all of them or none, for good once it returns. Raises lmdb.Error: MapFullError means no room."""
        with self._env.begin(write=True) as txn:
            for scope, rows in groups.items():
                prefix = _NUMBER.pack(self._number(txn, scope))
                block = self._next_block(txn, prefix)
                step = max(1, BLOCK_BYTES // (scope.record_bytes + CHECKSUM_BYTES))
                for first in range(0, len(rows), step):
                    part = rows[first : first + step]
                    sealed = b"".join([seal(scope.id, key, record) for key, record in part])
                    txn.put(prefix + _NUMBER.pack(block), sealed, db=self._blocks)
                    for row, (key, _) in enumerate(part):
                        txn.put(prefix + key, _PLACE.pack(block, row), db=self._index)
                    block += 1

    def read(self, scope: StoreScope, keys: Sequence[bytes], found: list[bytes | None]) -> int:
        """Fill in the records of keys that are not ``found`` yet; how many of them were damaged."""
        damaged = 0
        with self._env.begin(buffers=True) as txn:
            prefix = self._prefix(txn, scope)
            if prefix is None:
                return 0
            for place, key in enumerate(keys):
                if found[place] is None:
                    entry = txn.get(prefix + key, db=self._index)
                    if entry is not None:
                        found[place] = self._record(txn, scope, prefix, key, bytes(entry))
                        damaged += found[place] is None
        return damaged

    def holds(self) -> list[ScopeHold]:
        """What there is of each scope; counts every key."""
        counts: dict[int, int] = {}
        for number in self._numbers_of_keys():
            counts[number] = counts.get(number, 0) + 1
        with self._env.begin() as txn:
            described = [
                (_NUMBER.unpack(value[:4])[0], StoreScope.from_json(value[4:])) for _, value in txn.cursor(self._scopes)
            ]
        return [
            ScopeHold(
                scope=scope,
                number=number,
                labels=counts.get(number, 0),
                bytes=counts.get(number, 0) * (scope.record_bytes + CHECKSUM_BYTES),
            )
            for number, scope in described
        ]

    def check(self, hold: ScopeHold) -> Iterator[tuple[bytes, bool]]:
        """Every key of a scope, and whether its record is whole."""
        prefix = _NUMBER.pack(hold.number)
        for entries in self._steps(prefix):
            with self._env.begin(buffers=True) as txn:
                for name, entry in entries:
                    record = self._record(txn, hold.scope, prefix, name[4:], entry)
                    yield name[4:], record is not None

    def remove(self, hold: ScopeHold) -> Iterator[int]:
        """Take all of a scope out, some keys at a time; gives how many each time. Its space is used again."""
        prefix = _NUMBER.pack(hold.number)
        for table in (self._index, self._blocks):
            while True:
                with self._env.begin(write=True) as txn:
                    entries = _entries(txn, table, prefix, prefix, STEP_KEYS)
                    for name, _ in entries:
                        txn.delete(name, db=table)
                if not entries:
                    break
                if table is self._index:
                    yield len(entries)
        # Last: its number must not be given away while anything of it is left.
        with self._env.begin(write=True) as txn:
            txn.delete(hold.scope.id, db=self._scopes)

    def close(self) -> None:
        """Close the file; nobody may be reading it."""
        self._env.close()

    def _record(self, txn: Any, scope: StoreScope, prefix: bytes, key: bytes, entry: bytes) -> bytes | None:
        if len(entry) != _PLACE.size:
            return None
        block, row = _PLACE.unpack(entry)
        size = scope.record_bytes + CHECKSUM_BYTES
        sealed = txn.get(prefix + _NUMBER.pack(block), db=self._blocks)
        if sealed is None:
            return None
        return unseal(scope.id, key, bytes(sealed[row * size : (row + 1) * size]), scope.record_bytes)

    def _prefix(self, txn: Any, scope: StoreScope) -> bytes | None:
        value = txn.get(scope.id, db=self._scopes)
        return None if value is None else bytes(value[:4])

    def _number(self, txn: Any, scope: StoreScope) -> int:
        value = txn.get(scope.id, db=self._scopes)
        if value is not None:
            return int(_NUMBER.unpack(value[:4])[0])
        number = 1 + max((_NUMBER.unpack(other[:4])[0] for _, other in txn.cursor(self._scopes)), default=0)
        txn.put(scope.id, _NUMBER.pack(number) + scope.to_json(), db=self._scopes)
        return int(number)

    def _next_block(self, txn: Any, prefix: bytes) -> int:
        cursor = txn.cursor(self._blocks)
        after = _NUMBER.pack(_NUMBER.unpack(prefix)[0] + 1)
        there = cursor.prev() if cursor.set_range(after) else cursor.last()
        if there and cursor.key()[:4] == prefix:
            return int(_NUMBER.unpack(cursor.key()[4:])[0]) + 1
        return 0

    def _numbers_of_keys(self) -> Iterator[int]:
        for entries in self._steps(b""):
            for name, _ in entries:
                yield _NUMBER.unpack(name[:4])[0]

    def _steps(self, prefix: bytes) -> Iterator[list[tuple[bytes, bytes]]]:
        start = prefix
        while True:
            with self._env.begin() as txn:
                entries = _entries(txn, self._index, prefix, start, STEP_KEYS)
            if not entries:
                return
            yield entries
            start = entries[-1][0] + b"\0"


def _entries(txn: Any, table: Any, prefix: bytes, start: bytes, most: int) -> list[tuple[bytes, bytes]]:
    """Up to ``most`` entries of a table from ``start`` on whose keys begin with ``prefix``."""
    entries: list[tuple[bytes, bytes]] = []
    cursor = txn.cursor(table)
    there = cursor.set_range(start) if start else cursor.first()
    while there and len(entries) < most and cursor.key().startswith(prefix):
        entries.append(cursor.item())
        there = cursor.next()
    return entries


def new_path(folder: Path, now_s: float) -> Path:
    """A name for a segment that begins now and sorts behind all that are there."""
    stamp = time.strftime(STAMP, time.gmtime(now_s))
    last = max((path.name for path in segment_paths(folder)), default="")
    # Two may begin within a second, and clocks are set back.
    serial = 1 + int(last.removesuffix(SUFFIX).rpartition("-")[2] or 0) if last else 1
    return folder / f"{max(stamp, last[: len(stamp)])}-{serial:06d}{SUFFIX}"


def segment_paths(folder: Path) -> list[Path]:
    """The segments of a store, the oldest first."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if started_s(path))


def started_s(path: Path) -> float:
    """When a segment began, by its name; 0 for a file that is none."""
    stamp, _, serial = path.name.removesuffix(SUFFIX).partition("-")
    try:
        return float(calendar.timegm(time.strptime(stamp, STAMP))) if serial.isdigit() else 0.0
    except ValueError:
        return 0.0


def remove_segment(path: Path) -> None:
    """Delete a segment's files."""
    for file in (path, path.with_name(path.name + "-lock")):
        file.unlink(missing_ok=True)


def disk_bytes(path: Path) -> int:
    """What a file takes on disk; 0 where it is gone."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
