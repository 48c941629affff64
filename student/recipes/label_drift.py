"""How far two soft labels of the same crops are apart. Knows no files and no teacher."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.soft_label import LABELS, SoftLabels


def drift(recorded: SoftLabels, live: SoftLabels) -> NDArray[np.float64]:
    """The largest difference of a probability for each crop [N]; of features', relative to the largest value.

    Both are of one spec. Of top-k labels, a class that only one has is held against the least that the other keeps:
    near there classes change places without meaning anything.
    """
    apart = np.zeros(len(recorded), np.float64)
    for name in recorded.spec.outputs:
        if name != LABELS:
            apart = np.maximum(apart, _of_features(recorded.output(name), live.output(name)))
        elif recorded.is_top_k:
            apart = np.maximum(apart, np.maximum(_of_best(recorded, live), _of_best(live, recorded)))
        else:
            apart = np.maximum(apart, np.abs(recorded.probabilities() - live.probabilities()).max(axis=1))
    return apart


def _of_best(one: SoftLabels, other: SoftLabels) -> NDArray[np.float64]:
    ones, others = (np.exp(labels.log_probabilities.astype(np.float64)) for labels in (one, other))
    same = one.classes[:, :, None] == other.classes[:, None, :]
    there = (same * others[:, None, :]).sum(axis=2)
    absent = np.maximum(ones - others.min(axis=1, keepdims=True), 0.0)
    apart: NDArray[np.float64] = np.where(same.any(axis=2), np.abs(ones - there), absent).max(axis=1)
    return apart


def _of_features(ones: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float64]:
    ones, others = (values.astype(np.float64).reshape(len(values), -1) for values in (ones, others))
    apart: NDArray[np.float64] = np.abs(ones - others).max(axis=1) / np.maximum(np.abs(others).max(axis=1), 1e-12)
    return apart
