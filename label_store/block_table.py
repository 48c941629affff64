"""The side table of a shard: for each block of labels its checksum, and which of them are there.

A full block needs no bitmap and a missing one neither, so that a label costs about eight bits in a thousand. Knows
bytes alone: the files are ``shards.py``'s.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teacherfarm.label_store.presence import count_ones

ABSENT, PARTIAL, FULL = 0, 1, 2
"""States of a block."""

MOST_BLOCK_LABELS = 1024
LEAST_BLOCK_LABELS = 16
_MOST_BLOCK_BYTES = 256 << 10
_MOST_SHARD_BYTES = 512 << 20
_PAGE_BYTES = 4096
_HEADER = struct.Struct("<8sIIQ")
_MAGIC = b"TFBLOCK1"


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How labels lie on disk: view by view, and within a view in the samples' order; cut into shards of blocks.

    ``label_bytes``: of one stored label. ``block_labels``: a power of two.
    """

    num_samples: int
    views: int
    label_bytes: int
    block_labels: int
    shard_labels: int

    def __post_init__(self) -> None:
        if min(self.num_samples, self.views, self.label_bytes) < 1:
            raise ValueError(f"recorded labels have at least one sample, view and byte, got {self}")
        size = self.block_labels
        if not LEAST_BLOCK_LABELS <= size <= MOST_BLOCK_LABELS or size & (size - 1):
            raise ValueError(f"block_labels is a power of two from {LEAST_BLOCK_LABELS} to {MOST_BLOCK_LABELS}: {self}")
        if self.shard_labels < size or self.shard_labels % size:
            raise ValueError(f"shard_labels is a multiple of block_labels: {self}")

    @classmethod
    def of(cls, *, num_samples: int, views: int, label_bytes: int) -> Geometry:
        """Blocks of 1024 labels or about 256 KiB, shards of about 512 MiB."""
        block_labels = MOST_BLOCK_LABELS
        while block_labels > LEAST_BLOCK_LABELS and block_labels * label_bytes > _MOST_BLOCK_BYTES:
            block_labels //= 2
        # Shards end at pages of memory, so that they can be mapped one behind the other.
        step = _PAGE_BYTES // math.gcd(_PAGE_BYTES, block_labels * label_bytes)
        blocks = max(1, _MOST_SHARD_BYTES // (block_labels * label_bytes) // step) * step
        return cls(
            num_samples=num_samples,
            views=views,
            label_bytes=label_bytes,
            block_labels=block_labels,
            shard_labels=blocks * block_labels,
        )

    @property
    def num_labels(self) -> int:
        """Labels when all are there."""
        return self.num_samples * self.views

    @property
    def num_shards(self) -> int:
        return -(-self.num_labels // self.shard_labels)

    def shard_size(self, number: int) -> int:
        """Labels of a shard when all are there."""
        return min(self.shard_labels, self.num_labels - number * self.shard_labels)

    def shard_blocks(self, number: int) -> int:
        return -(-self.shard_size(number) // self.block_labels)

    def block_size(self, number: int, block: int) -> int:
        """Labels of a shard's block when all are there."""
        return min(self.block_labels, self.shard_size(number) - block * self.block_labels)

    def block_seed(self, number: int, block: int) -> int:
        """What a block's checksum starts from: blocks that changed places are found, too."""
        return number * (self.shard_labels // self.block_labels) + block


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockTable:
    """``checksums`` and ``states`` of all blocks, a row of ``bitmaps`` for each partial one, lowest bit first."""

    checksums: NDArray[np.uint64]
    states: NDArray[np.uint8]
    bitmaps: NDArray[np.uint8]

    def bitmap_rows(self) -> NDArray[np.int64]:
        """The row of ``bitmaps`` of each block; means nothing where a block is not partial."""
        return np.cumsum(self.states == PARTIAL, dtype=np.int64) - 1

    def count(self, sizes: NDArray[np.int64]) -> int:
        """Labels that are there, given what each block holds when full."""
        return int(sizes[self.states == FULL].sum() + count_ones(self.bitmaps))

    def encode(self) -> bytes:
        header = _HEADER.pack(_MAGIC, len(self.states), len(self.bitmaps), self.bitmaps.shape[1])
        return b"".join((header, self.checksums.astype("<u8").tobytes(), self.states.tobytes(), self.bitmaps.tobytes()))

    @classmethod
    def decode(cls, content: bytes, *, num_blocks: int, block_labels: int) -> BlockTable:
        """Raises ValueError when the bytes are no table of so many blocks."""
        if len(content) < _HEADER.size:
            raise ValueError(f"a table of blocks has at least {_HEADER.size} bytes, got {len(content)}")
        magic, blocks, partial, bitmap_bytes = _HEADER.unpack_from(content)
        if (magic, blocks, bitmap_bytes) != (_MAGIC, num_blocks, block_labels // 8):
            raise ValueError(f"not a table of {num_blocks} blocks of {block_labels} labels")
        if len(content) != _HEADER.size + blocks * 9 + partial * bitmap_bytes:
            raise ValueError(
                f"a table of {blocks} blocks, {partial} of them partial, does not have {len(content)} bytes"
            )
        states = np.frombuffer(content, np.uint8, blocks, _HEADER.size + 8 * blocks)
        if states.max(initial=0) > FULL or int((states == PARTIAL).sum()) != partial:
            raise ValueError("a table's states and bitmaps do not fit together")
        return cls(
            checksums=np.frombuffer(content, "<u8", blocks, _HEADER.size),
            states=states,
            bitmaps=np.frombuffer(content, np.uint8, offset=_HEADER.size + 9 * blocks).reshape(partial, bitmap_bytes),
        )
