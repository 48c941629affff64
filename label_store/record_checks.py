"""Which label records a broken teacher made: not a number, or without a best class. Such labels are never kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.soft_label import LABELS

_MAGNITUDE, _INFINITE, _MINUS_INFINITE = 0x7FFF, 0x7C00, 0xFC00
"""Of float16's bits: a zero probability is minus infinity, and fine; these comparisons are many times numpy's isnan."""


def unusable(records: NDArray[np.void]) -> NDArray[np.bool_]:
    """True for records [N] whose top-1 or features are NaN or infinite."""
    bad = np.zeros(len(records), np.bool_)
    for name in records.dtype.names or ():
        values = records[name]
        if values.dtype.kind != "f":
            continue
        axes = tuple(range(1, values.ndim))
        if name in (LABELS, "log_probabilities"):
            bits = values.view("<u2")
            bad |= (((bits & _MAGNITUDE) > _INFINITE) | (bits == _INFINITE)).any(axis=axes)
            bad |= bits[:, 0] == _MINUS_INFINITE if name != LABELS else (bits == _MINUS_INFINITE).all(axis=axes)
        else:
            bad |= ~np.isfinite(values).all(axis=axes)
    return bad
