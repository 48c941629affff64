"""How far approximate labels lie from full-precision ones, and which of several ways to keep them is worth its bytes.

Pure arithmetic in float64; knows neither formats nor pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Way = TypeVar("Way")

NO_DRIFT = 1e-9
"""Divergences below this are rounding of float32 distributions, and shown as this."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What replaces full-precision distributions p by labels q costs, over N crops.

    ``kl_mean``, ``kl_p99``, ``kl_worst``: KL(q || p) in nats, "from p": what a student's loss on q is above its
    minimum when the student already says p. ``kl_error``: standard error of the mean. ``missed_mean``: KL(p || q) in
    nats, infinite as soon as q gives nothing to a class that p gives something to. ``moved_mean``: total variation,
    the share of the mass that lies elsewhere. ``top1``: share of crops whose most probable class is the same.
    """

    num_crops: int
    kl_mean: float
    kl_error: float
    kl_p99: float
    kl_worst: float
    missed_mean: float
    moved_mean: float
    top1: float

    def keeps(self, budget: float) -> bool:
        """Whether the mean divergence is within ``budget`` nats."""
        return self.kl_mean <= budget


def tempered(log_probabilities: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """Log-probabilities [N, C] at a temperature, in float64."""
    scaled = log_probabilities.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    scaled -= np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return scaled


def drift(labels: NDArray[Any], full: NDArray[np.float64]) -> Drift:
    """Of probabilities ``labels`` [N, C] (rows need not sum to 1 exactly) from log-probabilities ``full`` [N, C]."""
    label = labels.astype(np.float64)
    label /= label.sum(axis=1, keepdims=True)
    truth = np.exp(full)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_label = np.log(label)
        divergence = np.where(label > 0, label * (log_label - full), 0.0).sum(axis=1)
        missed = np.where(truth > 0, truth * (full - log_label), 0.0).sum(axis=1)
    divergence, missed = np.maximum(divergence, 0.0), np.maximum(missed, 0.0)
    return Drift(
        num_crops=len(label),
        kl_mean=float(divergence.mean()),
        kl_error=float(divergence.std() / math.sqrt(len(label))),
        kl_p99=float(np.quantile(divergence, 0.99)),
        kl_worst=float(divergence.max()),
        missed_mean=float(missed.mean()),
        moved_mean=float(0.5 * np.abs(label - truth).sum(axis=1).mean()),
        top1=float((label.argmax(axis=1) == full.argmax(axis=1)).mean()),
    )


def pareto(ways: Iterable[Way], size: Callable[[Way], float], loss: Callable[[Way], float]) -> list[Way]:
    """The ways that no other beats in both size and loss, smallest first. What a larger one gains must be worth
    telling: a hundredth of the loss.
    """
    front: list[Way] = []
    for way in sorted(ways, key=lambda way: (size(way), loss(way))):
        if not front or loss(way) < 0.99 * loss(front[-1]):
            front.append(way)
    return front


def smallest_within(
    ways: Sequence[Way], size: Callable[[Way], float], drift_of: Callable[[Way], Drift], budget: float
) -> Way | None:
    """The smallest way whose mean divergence keeps the budget (of equal sizes the nearest); None where none does."""
    within = [way for way in ways if drift_of(way).keeps(budget)]
    return min(within, key=lambda way: (size(way), drift_of(way).kl_mean), default=None)
