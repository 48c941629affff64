"""Address space for all shards of a data set, each mapped behind the one before it: a batch is read as from one array.

Without it a random batch is read shard by shard, which for tens of shards costs ten times as much. Linux's and macOS's
mmap, as Python's own does not map at a given address.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from typing import IO

import numpy as np
from numpy.typing import NDArray

from teacherfarm.label_store.block_table import Geometry

_MAP_FIXED = 0x10
_FAILED = ctypes.c_void_p(-1).value


class ShardSpace:
    """``labels`` [all labels, bytes]; only what :meth:`map` put there may be read."""

    def __init__(self, address: int, geometry: Geometry) -> None:
        self._address = address
        self._geometry = geometry
        size = geometry.num_labels * geometry.label_bytes
        memory = (ctypes.c_uint8 * size).from_address(address)
        self.labels: NDArray[np.uint8] = np.frombuffer(memoryview(memory), np.uint8).reshape(-1, geometry.label_bytes)
        self.labels.flags.writeable = False
        # Only memory that was reserved here is given back, and nothing but this object hands it out.
        weakref.finalize(self, _libc().munmap, ctypes.c_void_p(address), ctypes.c_size_t(size))

    @classmethod
    def reserve(cls, geometry: Geometry) -> ShardSpace | None:
        """None where shards do not end at pages, or the system has no such address space: then each is mapped alone."""
        if geometry.shard_labels * geometry.label_bytes % mmap.PAGESIZE:
            return None
        size = geometry.num_labels * geometry.label_bytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        address = _libc().mmap(None, size, 0, flags, -1, 0)
        return None if address in (None, _FAILED) else cls(address, geometry)

    def map(self, number: int, file: IO[bytes]) -> NDArray[np.uint8]:
        """Map a shard's file of labels to its place; its labels. Raises OSError."""
        first, size = number * self._geometry.shard_labels, self._geometry.shard_size(number)
        address = self._address + first * self._geometry.label_bytes
        flags = mmap.MAP_SHARED | _MAP_FIXED
        length = size * self._geometry.label_bytes
        if _libc().mmap(address, length, mmap.PROT_READ, flags, file.fileno(), 0) != address:
            raise OSError(ctypes.get_errno(), f"shard {number} cannot be mapped")
        labels: NDArray[np.uint8] = self.labels[first : first + size]
        return labels


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    )
    return libc
