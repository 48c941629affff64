"""Random numbers without state: Philox4x32-10 (Salmon et al., SC 2011), vectorised over counters with whole numbers
only.

The same key and counter give the same 128 bits on every machine. Knows nothing of crops or views.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_SEED = 2**64 - 1

# One seed serves several purposes, which therefore share out the draw numbers; crop plans count up from 0.
FLIP_DRAW = 0xFFFF_FFFF
VIEW_DRAWS = 0x8000_0000
TRANSFORM_DRAW = 0x7FFF_FFFF

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def random_words(seed: int, samples: ArrayLike, views: ArrayLike, draws: ArrayLike) -> NDArray[np.uint64]:
    """Four independent 32-bit numbers [4, ...] for each (sample, view, draw), broadcast against one another.

    ``seed`` and ``samples`` have 64 bits, ``views`` and ``draws`` 32: together the key and the whole counter, so two
    different places never share a block.
    """
    sample = np.asarray(samples, np.uint64)
    view = np.asarray(views).astype(np.uint64) & _MASK
    draw = np.asarray(draws).astype(np.uint64) & _MASK
    shape = np.broadcast_shapes(sample.shape, view.shape, draw.shape)
    # Words 0 and 2 are multiplied in each round, 1 and 3 mixed in: two arrays of two keep the number of calls
    # low.
    even = np.empty((2, *shape), np.uint64)
    odd = np.empty((2, *shape), np.uint64)
    even[0], odd[0] = sample & _MASK, sample >> _SHIFT
    even[1], odd[1] = view, draw
    tail = (1,) * len(shape)
    multiplier = np.array(_MULTIPLIERS, np.uint64).reshape(2, *tail)
    keys = _round_keys(seed).reshape(_ROUNDS, 2, *tail)
    for key in keys:
        product = even * multiplier
        even = (product >> _SHIFT)[::-1] ^ odd ^ key
        odd = (product & _MASK)[::-1]
    return np.stack((even[0], odd[0], even[1], odd[1]))


def _round_keys(seed: int) -> NDArray[np.uint64]:
    low, high = seed & 0xFFFFFFFF, seed >> 32
    rows = [((low + turn * _WEYL[0]) & 0xFFFFFFFF, (high + turn * _WEYL[1]) & 0xFFFFFFFF) for turn in range(_ROUNDS)]
    return np.array(rows, np.uint64)


def check_seed(seed: int) -> None:
    """Raise ValueError unless ``seed`` fits into 64 bits."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"a seed is a whole number from 0 to 2**64 - 1, got {seed}")
