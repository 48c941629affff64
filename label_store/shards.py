"""Shards of recorded labels: read from mapped memory, each block checked at first touch; written beside, then named.

A shard is two files: its labels, as they lie in memory, and its table of blocks. Knows places in its own shard alone.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from teacherfarm.label_store.block_table import ABSENT, FULL, PARTIAL, BlockTable, Geometry
from teacherfarm.label_store.label_directory import (
    LABELS_SUFFIX,
    SHARDS,
    TABLE_SUFFIX,
    UNFINISHED_SUFFIX,
    ShardFiles,
    put_in_place,
)
from teacherfarm.label_store.presence import Positions, Presence
from teacherfarm.label_store.shard_space import ShardSpace

UNTOUCHED, USABLE, WHOLE, NOTHING = range(4)
"""Trust in a block: not yet checked; checked, see its bitmap; checked and full; absent or damaged."""

OnDamage = Callable[[str, int, int], None]
"""Told the file, the first block and the number of blocks that are not what was written."""


class Shard:
    """A sealed shard. A damaged block, or a damaged table, reads as absent; ``on_damage`` is told once.

    ``space``: where all shards are mapped, one behind the other. ``trust`` [blocks]: where to keep what is known.
    """

    def __init__(
        self,
        root: Path,
        files: ShardFiles,
        geometry: Geometry,
        on_damage: OnDamage,
        *,
        space: ShardSpace | None = None,
        trust: NDArray[np.uint8] | None = None,
    ) -> None:
        self.files = files
        self._geometry = geometry
        self._on_damage = on_damage
        self._shift = geometry.block_labels.bit_length() - 1
        self._num_blocks = geometry.shard_blocks(files.number)
        self._labels = np.zeros((0, geometry.label_bytes), np.uint8)
        self._space = space
        self._trust = np.empty(self._num_blocks, np.uint8) if trust is None else trust
        self._trust[:] = NOTHING
        self.table: BlockTable | None = None
        try:
            self.table = read_table(root, files, geometry)
        except ValueError:
            on_damage(files.table_file, files.number, -1)
        if self.table is not None and self._map(root):
            self._trust[:] = np.where(self.table.states == ABSENT, NOTHING, UNTOUCHED)
            self._bitmap_rows = self.table.bitmap_rows()

    def take(self, places: Positions, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Copy the labels at ``places`` to ``out`` [N, bytes]; which of them are there.

        Rows of ``out`` that are not there are left as they come.
        """
        here = self.intact(places)
        out[here] = self._labels[places[here]]
        return here

    def intact(self, places: Positions) -> NDArray[np.bool_]:
        """Which labels are there, and in blocks whose checksum holds."""
        blocks = places >> self._shift
        untouched = self._trust[blocks] == UNTOUCHED
        if untouched.any():
            self._check(np.unique(blocks[untouched]))
        return self._there(places, blocks)

    def check_blocks(self, start: int, stop: int) -> None:
        """Check the blocks from ``start`` before ``stop`` that were not touched yet."""
        self._check(start + np.flatnonzero(self._trust[start:stop] == UNTOUCHED))

    def block(self, number: int) -> tuple[Positions, NDArray[np.uint8]]:
        """The intact labels of one block, and their places."""
        start = number << self._shift
        places = np.arange(start, start + self._geometry.block_size(self.files.number, number))
        places = places[self.intact(places)]
        return places, self._labels[places]

    def damaged_blocks(self) -> NDArray[np.int64]:
        """Blocks that were touched and found damaged; all that have labels where the table or the file is."""
        if self.table is None:
            return np.arange(self._num_blocks)
        return np.flatnonzero((self._trust == NOTHING) & (self.table.states != ABSENT))

    def _there(self, places: Positions, blocks: NDArray[np.int64]) -> NDArray[np.bool_]:
        trust = self._trust[blocks]
        here: NDArray[np.bool_] = trust == WHOLE
        partial = np.flatnonzero(trust == USABLE)
        if len(partial) and self.table is not None:
            inside = places[partial] & (self._geometry.block_labels - 1)
            bits: NDArray[np.uint8] = self.table.bitmaps[self._bitmap_rows[blocks[partial]], inside >> 3]
            here[partial] = (bits >> (inside & 7).astype(np.uint8) & 1).astype(np.bool_)
        return here

    def _check(self, blocks: NDArray[np.int64]) -> None:
        import xxhash

        assert self.table is not None
        digest, size = xxhash.xxh3_64_intdigest, self._geometry.block_labels
        number, seed = self.files.number, self._geometry.block_seed(self.files.number, 0)
        for block in blocks.tolist():
            content = self._labels[block * size : (block + 1) * size]
            if digest(content.data, seed + block) != self.table.checksums[block]:
                self._trust[block] = NOTHING
                self._on_damage(self.files.labels_file, number, block)
            else:
                self._trust[block] = WHOLE if self.table.states[block] == FULL else USABLE

    def _map(self, root: Path) -> bool:
        shape = (self._geometry.shard_size(self.files.number), self._geometry.label_bytes)
        try:
            with open(root / self.files.labels_file, "rb") as file:
                if os.fstat(file.fileno()).st_size != shape[0] * shape[1]:
                    raise ValueError("it is not as long as its labels")
                if self._space is not None:
                    self._labels = self._space.map(self.files.number, file)
                else:
                    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                    self._labels = np.frombuffer(content, np.uint8).reshape(shape)
        except (OSError, ValueError):
            self._on_damage(self.files.labels_file, self.files.number, -1)
            return False
        return True


def read_table(root: Path, files: ShardFiles, geometry: Geometry) -> BlockTable:
    """A shard's table of blocks; ValueError when it is not there or not what was written."""
    import xxhash

    try:
        content = (root / files.table_file).read_bytes()
    except OSError as error:
        raise ValueError(f"{root / files.table_file} cannot be read: {error}") from error
    if xxhash.xxh3_128_hexdigest(content) != files.table_digest:
        raise ValueError(f"{root / files.table_file} is not what was written (its checksum differs)")
    num_blocks = geometry.shard_blocks(files.number)
    return BlockTable.decode(content, num_blocks=num_blocks, block_labels=geometry.block_labels)


class ShardWriter:
    """Makes a shard in files beside, from labels in any order; only the blocks that get labels take room on disk.

    Raises OSError when the disk is full: each block's room is taken before it is written to.
    """

    def __init__(self, path: Path, number: int, geometry: Geometry) -> None:
        self._path = path
        self._number = number
        self._geometry = geometry
        self._beside = path.with_suffix(f"{LABELS_SUFFIX}{UNFINISHED_SUFFIX}")
        self._size = geometry.shard_size(number)
        self._presence = Presence(geometry.shard_blocks(number) * geometry.block_labels)
        self._reserved = np.zeros(geometry.shard_blocks(number), np.bool_)
        self._file = open(self._beside, "x+b", buffering=0)  # noqa: SIM115 - until finish or close
        self._file.truncate(self._size * geometry.label_bytes)
        self._map = mmap.mmap(self._file.fileno(), 0)
        self._labels = np.frombuffer(self._map, np.uint8).reshape(self._size, geometry.label_bytes)

    def add(self, places: Positions, labels: NDArray[np.uint8]) -> int:
        """Put labels [N, bytes] at places that are still empty; of several for one place the first one stays.

        Returns how many were put.
        """
        first = np.unique(places, return_index=True)[1]
        first = first[~self._presence.has(places[first])]
        places, labels = places[first], labels[first]
        blocks = places // self._geometry.block_labels
        label_bytes, size = self._geometry.label_bytes, self._geometry.block_labels
        for block in np.unique(blocks[~self._reserved[blocks]]).tolist():
            room = self._geometry.block_size(self._number, block) * label_bytes
            # Writing to mapped memory that the disk has no room for would kill this process.
            os.posix_fallocate(self._file.fileno(), block * size * label_bytes, room)
            self._reserved[block] = True
        self._labels[places] = labels
        self._presence.add(places)
        return len(places)

    def finish(self) -> ShardFiles | None:
        """Checksums and table; both files durable and named. None, and no files, when there are no labels."""
        import xxhash

        num_labels = self._presence.count()
        if not num_labels:
            self.close()
            return None
        table = self._table()
        content = table.encode()
        self._map.flush()
        labels_path, table_path = self._path.with_suffix(LABELS_SUFFIX), self._path.with_suffix(TABLE_SUFFIX)
        table_beside = self._path.with_suffix(f"{TABLE_SUFFIX}{UNFINISHED_SUFFIX}")
        table_beside.write_bytes(content)
        put_in_place(table_beside, table_path)
        put_in_place(self._beside, labels_path)
        self.close()
        return ShardFiles(
            number=self._number,
            labels_file=f"{SHARDS}/{labels_path.name}",
            table_file=f"{SHARDS}/{table_path.name}",
            table_digest=xxhash.xxh3_128_hexdigest(content),
            num_labels=num_labels,
        )

    def close(self) -> None:
        """Let go of the files; what was not finished is removed."""
        self._labels = np.zeros((0, 0), np.uint8)
        self._map.close()
        self._file.close()
        self._beside.unlink(missing_ok=True)

    def _table(self) -> BlockTable:
        import xxhash

        num_blocks, size = len(self._reserved), self._geometry.block_labels
        seed = self._geometry.block_seed(self._number, 0)
        checksums, states = np.zeros(num_blocks, np.uint64), np.zeros(num_blocks, np.uint8)
        bitmaps = []
        for block in np.flatnonzero(self._reserved).tolist():
            start, stop = block * size, block * size + self._geometry.block_size(self._number, block)
            checksums[block] = xxhash.xxh3_64_intdigest(self._labels[start:stop].data, seed + block)
            full = self._presence.count(start, stop) == stop - start
            states[block] = FULL if full else PARTIAL
            if not full:
                bitmaps.append(self._presence.bits[start >> 3 : (start + size) >> 3])
        stacked = np.stack(bitmaps) if bitmaps else np.zeros((0, size // 8), np.uint8)
        return BlockTable(checksums=checksums, states=states, bitmaps=stacked)
