"""Contestants take turns in short slices, so that a drifting machine slows them all alike; ratios with their spread.

Knows no wire and no teacher: a contestant is anything that runs for some seconds and says how fast it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEAST_SLICES = 40
"""Slices of each contestant that a figure is made of; one more is run first and dropped."""
PERCENTILE = 90.0
"""Other load only ever slows a slice: a high percentile is what the contestant can do."""

RunSlice = Callable[[float], Awaitable[float]]
"""Runs for about so many seconds and returns crops/s."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One contestant's speed over its reference's. ``spread``: interquartile range of the slices' paired ratios."""

    value: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class SlicePlan:
    """How many rounds, and how long each slice is."""

    rounds: int
    slice_s: float


def plan_slices(
    seconds: float, num_contestants: int, *, shortest_s: float, longest_s: float, around_s: float = 0.0
) -> SlicePlan:
    """Spend ``seconds``: first on longer slices, then on more rounds; never fewer than the rounds a figure needs.

    ``around_s``: what a slice takes beside the time that it measures, for filling and draining.
    """
    least_rounds = LEAST_SLICES + 1
    slice_s = min(longest_s, max(shortest_s, seconds / (least_rounds * num_contestants) - around_s))
    rounds = int(seconds / ((slice_s + around_s) * num_contestants))
    return SlicePlan(rounds=max(least_rounds, rounds), slice_s=slice_s)


async def interleave(contestants: Mapping[str, RunSlice], *, rounds: int, slice_s: float) -> dict[str, list[float]]:
    """Crops/s of every slice by contestant, without the first round's; each round takes them in another order."""
    names = list(contestants)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in turns(names, number):
            rates[name].append(await contestants[name](slice_s))
    return {name: of_one[1:] for name, of_one in rates.items()}


def turns(names: Sequence[str], number: int) -> list[str]:
    """The order of one round: forwards and backwards in turn, so that nobody always follows the same neighbour."""
    first = (number // 2) % len(names)
    order = [*names[first:], *names[:first]]
    return order if number % 2 == 0 else order[::-1]


async def fastest(candidates: Mapping[str, RunSlice], *, seconds: float, shortest_s: float = 0.05) -> str:
    """The name of the candidate with the best high percentile, after a short interleaved search."""
    rounds = 6
    slice_s = max(shortest_s, seconds / (rounds * len(candidates)))
    rates = await interleave(candidates, rounds=rounds, slice_s=slice_s)
    return max(rates, key=lambda name: high(rates[name]))


def high(rates: Sequence[float]) -> float:
    """The 90th percentile."""
    return float(np.percentile(rates, PERCENTILE))


def ratio(rates: Sequence[float], reference: Sequence[float]) -> Ratio:
    """90th percentile over 90th percentile. ValueError when the slices are not pairs."""
    if len(rates) != len(reference) or not rates:
        raise ValueError(f"{len(rates)} slices against {len(reference)} of the reference are not pairs")
    return Ratio(
        value=high(rates) / high(reference),
        spread=interquartile_range([ours / theirs for ours, theirs in zip(rates, reference, strict=True)]),
    )


def interquartile_range(values: Sequence[float]) -> float:
    """How far apart the middle half lies."""
    low, up = np.percentile(values, (25.0, 75.0))
    return float(up - low)
