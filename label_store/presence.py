"""Which of many labels are there: one bit for each. Knows no files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]
"""Places of labels in view-major order: view * number of samples + row."""

_ONES = np.array([number.bit_count() for number in range(256)], np.uint8)


def count_ones(bits: NDArray[np.uint8]) -> int:
    """How many bits are set."""
    return int(_ONES[bits].sum(dtype=np.int64))


class Presence:
    """A set of places 0 .. size - 1."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.bits = np.zeros(-(-size // 8), np.uint8)

    def has(self, places: Positions) -> NDArray[np.bool_]:
        """One answer for each place."""
        bits: NDArray[np.uint8] = self.bits[places >> 3] >> (places & 7).astype(np.uint8) & 1
        return bits.astype(np.bool_)

    def add(self, places: Positions) -> None:
        np.bitwise_or.at(self.bits, places >> 3, np.left_shift(1, places & 7).astype(np.uint8))

    def add_packed(self, start: int, bits: NDArray[np.uint8]) -> None:
        """Add the places from ``start``, a multiple of 8, whose bits (lowest first) are set."""
        self.bits[start >> 3 : (start >> 3) + len(bits)] |= bits

    def count(self, start: int = 0, stop: int | None = None) -> int:
        """How many places from ``start``, a multiple of 8, before ``stop`` are there."""
        stop = self.size if stop is None else stop
        rest = int(self.bits[stop >> 3]) & ((1 << (stop & 7)) - 1) if stop & 7 else 0
        return count_ones(self.bits[start >> 3 : stop >> 3]) + rest.bit_count()
