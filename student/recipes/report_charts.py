"""Charts of a report as SVG inside the page: curves over epochs, a reliability diagram. Knows nothing of training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from teacherfarm.student.tally import BINS

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 38
NUM_COLOURS = 7


@dataclass(frozen=True, kw_only=True)
class Series:
    """A curve; values that are no numbers leave gaps. ``colour`` 0 to 6."""

    name: str
    values: Sequence[float]
    colour: int


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Where values lie in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        along = (x - self.x[0]) / (self.x[1] - self.x[0] or 1)
        up = (y - self.y[0]) / (self.y[1] - self.y[0] or 1)
        return LEFT + along * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def line_chart(
    title: str,
    xs: Sequence[float],
    series: Sequence[Series],
    *,
    unit: str = "",
    from_zero: bool = False,
    levels: Sequence[tuple[str, float]] = (),
    x_label: str = "epochs",
    x_places: Sequence[float] = (),
) -> str:
    """A figure of curves over ``xs``; "" where no value is a number. ``levels``: named horizontal lines. ``x_places``:
    those that are written below it (default: some of ``xs``).
    """
    levels = [(name, level) for name, level in levels if math.isfinite(level)]
    numbers = [value for one in series for value in one.values if math.isfinite(value)]
    if not numbers:
        return ""
    ticks = nice_ticks([*numbers, *(level for _, level in levels), *([0.0] if from_zero else [])])
    # A single place lies in the middle.
    margin = 0.0 if len(set(xs)) > 1 else 0.5
    axes = Axes(x=(min(xs) - margin, max(xs) + margin), y=(ticks[0], ticks[-1]))
    parts = [_grid(axes, ticks, x_places or x_ticks(xs), x_label, unit)]
    for name, level in levels:
        (x0, y0), (x1, _) = axes.at(axes.x[0], level), axes.at(axes.x[1], level)
        parts.append(f'<line class="level" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y0:.1f}" stroke="var(--c6)">')
        parts.append(f"<title>{escape(name)}: {number(level)}{unit}</title></line>")
        parts.append(
            f'<text x="{x1:.1f}" y="{y0 - 5:.1f}" text-anchor="end">{escape(name)} {number(level)}{unit}</text>'
        )
    parts += [_curve(axes, xs, one, unit, x_label) for one in series]
    keys = "".join(key(one.name, one.colour) for one in series) if len(series) > 1 else ""
    return figure(title, "".join(parts), keys)


def reliability(title: str, models: Sequence[tuple[str, NDArray[np.float64], int]]) -> str:
    """How often answers of a confidence are right; ``models``: name, bins (tally.Answers.bins), colour."""
    axes = Axes(x=(0.0, 100.0), y=(0.0, 100.0))
    shares = [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    parts = [_grid(axes, shares, shares, "confidence, %", " %")]
    (x0, y0), (x1, y1) = axes.at(0, 0), axes.at(100, 100)
    parts.append(f'<line class="level" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="var(--c6)"/>')
    for name, bins, colour in models:
        crops, confidence, right = bins
        if not (total := crops.sum()):
            continue
        filled = [index for index in range(BINS) if crops[index]]
        points = [(100 * confidence[i] / crops[i], 100 * right[i] / crops[i]) for i in filled]
        places = [axes.at(x, y) for x, y in points]
        parts.append(_polyline(places, colour))
        for (x, y), place, index in zip(points, places, filled, strict=True):
            radius = 3 + 9 * math.sqrt(crops[index] / total)
            told = f"{name}: {x:.1f} % sure, {y:.1f} % right ({int(crops[index])} crops)"
            parts.append(_dot(place, colour, told, radius))
    keys = "".join(key(name, colour) for name, _, colour in models)
    return figure(title, "".join(parts), keys)


def confidences(title: str, models: Sequence[tuple[str, NDArray[np.float64], int]]) -> str:
    """How many of the answers are how sure; ``models`` as in :func:`reliability`."""
    middles = [100 * (index + 0.5) / BINS for index in range(BINS)]
    series = [Series(name=name, values=list(100 * bins[0] / bins[0].sum()), colour=c) for name, bins, c in models]
    places = [20.0, 40.0, 60.0, 80.0]
    return line_chart(title, middles, series, unit=" %", from_zero=True, x_label="confidence, %", x_places=places)


def figure(title: str, svg: str, keys: str = "") -> str:
    """An SVG with its title and what its colours mean."""
    return (
        f"<figure><figcaption>{escape(title)}<span>{keys}</span></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{svg}</svg></figure>'
    )


def key(name: str, colour: int) -> str:
    """A colour and what it means."""
    return f'<span class="key" style="--colour:var(--c{colour % NUM_COLOURS})">{escape(name)}</span>'


def nice_ticks(values: Iterable[float], most: int = 6) -> list[float]:
    """Round numbers, equally far apart, from at or below the least value to at or above the largest."""
    values = list(values)
    low, high = min(values), max(values)
    if low == high:
        low, high = (0.0, 2 * low) if low > 0 else (2 * low, 0.0) if low else (0.0, 1.0)
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999), 10 * power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [count * step for count in range(first, last + 1)]


def x_ticks(xs: Sequence[float]) -> list[float]:
    """At most nine of the places themselves, equally many apart."""
    places = sorted(set(xs))
    stride = -(-len(places) // 9)
    return places[stride - 1 :: stride]


def number(value: float) -> str:
    """As few digits as tell it: 0.0123, 4.56, 1 234."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.4g}" if abs(value) >= 1e-4 or not value else f"{value:.1e}"


def _grid(axes: Axes, ys: Sequence[float], xs: Sequence[float], x_label: str, unit: str) -> str:
    parts = []
    for y in ys:
        (left, height), (right, _) = axes.at(axes.x[0], y), axes.at(axes.x[1], y)
        parts.append(f'<line class="axis" x1="{left:.1f}" y1="{height:.1f}" x2="{right:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{left - 6:.1f}" y="{height + 4:.1f}" text-anchor="end">{number(y)}{unit}</text>')
    for x in xs:
        place, _ = axes.at(x, axes.y[0])
        parts.append(
            f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(round(x, 1))}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    return "".join(parts) + f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'


def _curve(axes: Axes, xs: Sequence[float], one: Series, unit: str, x_label: str) -> str:
    parts: list[str] = []
    run: list[tuple[float, float]] = []
    for x, y in zip(xs, one.values, strict=True):
        if not math.isfinite(y):
            parts.append(_polyline(run, one.colour))
            run = []
            continue
        run.append(axes.at(x, y))
    parts.append(_polyline(run, one.colour))
    radius = 3.0 if len(xs) <= 40 else 1.5
    for x, y in zip(xs, one.values, strict=True):
        if math.isfinite(y):
            told = f"{one.name}: {number(y)}{unit} at {number(x)} {x_label}"
            parts.append(_dot(axes.at(x, y), one.colour, told, radius))
    return "".join(parts)


def _polyline(places: Sequence[tuple[float, float]], colour: int) -> str:
    if len(places) < 2:
        return ""
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="curve" stroke="var(--c{colour % NUM_COLOURS})" points="{points}"/>'


def _dot(place: tuple[float, float], colour: int, told: str, radius: float) -> str:
    x, y = place
    fill = f"var(--c{colour % NUM_COLOURS})"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{fill}"><title>{escape(told)}</title></circle>'
