"""Between the probabilities that other projects keep and the float16 log-probabilities that are kept here. Knows no
files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_LOG_PROBABILITY = np.float16(-65504)
"""Stands for a probability of 0: finite, so that 0 * log 0 stays 0."""

_FLOAT32_NOISE = 1e-6
_STEPS_BACK = 4


def log_probabilities(probabilities: NDArray[Any]) -> NDArray[np.float16]:
    """Float16 logarithms; of 0 the least float16. A probability changes by at most 1.8e-4."""
    return _log(probabilities)


def probabilities(log_probabilities: NDArray[np.float16], *, whole: bool) -> NDArray[np.float32]:
    """Probabilities [..., K] that :func:`log_probabilities` turns back into the same numbers, and whose sum over the
    last axis is 1 (``whole``: all classes are there) or at most 1, within 1e-6.

    Rounding to float16 made most sums miss 1 by some 1e-4. What was rounded did sum to 1, so there are probabilities
    within the rounding that do: all move by the same share of the way to where they would round to another number. Only
    where even that does not reach 1 (labels that were no distribution) they are scaled instead.
    Not exact below 1e-38, where float32 ends.
    """
    logs = log_probabilities.astype(np.float64)
    values = np.exp(logs)
    total = values.sum(axis=-1, keepdims=True)
    excess = total - 1
    reach = np.where(excess > 0, np.float16(-np.inf), np.float16(0))
    with np.errstate(over="ignore"):
        neighbours = np.nextafter(log_probabilities, reach.astype(np.float16)).astype(np.float64)
    step = np.where(np.isfinite(neighbours), np.exp((logs + neighbours) / 2) - values, 0)
    room = np.abs(step.sum(axis=-1, keepdims=True))
    share = np.divide(np.abs(excess), room, out=np.full_like(excess, np.inf), where=room > 0)
    moved = (values + np.minimum(share, 1) * step).astype(np.float32)
    # At the end of its way, where float32 is no finer, a move can end at a neighbour: then it goes a little less far.
    for _ in range(_STEPS_BACK):
        moved = np.where(_log(moved) == log_probabilities, moved, np.nextafter(moved, values.astype(np.float32)))
    moved = np.where(_log(moved) == log_probabilities, moved, values)
    reached = (share < 1.01) | (np.abs(excess) - room < _FLOAT32_NOISE)
    moved = np.where(reached, moved, values / np.where(total > 0, total, 1))
    off = (np.abs(excess) if whole else excess) > _FLOAT32_NOISE
    return np.where(off, moved, values).astype(np.float32)


def _log(probabilities: NDArray[Any]) -> NDArray[np.float16]:
    with np.errstate(divide="ignore"):
        logs = np.log(probabilities.astype(np.float64))
    return np.clip(logs, LEAST_LOG_PROBABILITY, 0).astype(np.float16)
