"""The demo's two pictures. Draws outcomes; trains and asks nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from teacherfarm.demo.distilling import Doubt, Runs
    from teacherfarm.demo.distilling import Outcome as Distilled
    from teacherfarm.demo.photographs import Labelled
    from teacherfarm.demo.photographs import Outcome as Photographs

INK, MUTED, FAINT = "#1f2430", "#6b7280", "#d9dde3"
SOFT, SOFT_DARK, HARD = "#1f77b4", "#0b3c61", "#c2703d"
DOTS_PER_INCH = 160
MARGIN_IN = 0.55


def draw_digits(outcome: Distilled, file: Path) -> None:
    """Test accuracy by pass, and three soft labels that say why."""
    figure = Figure(figsize=(11, 6.2), facecolor="white")
    best = max(runs.last.mean() for runs in outcome.over.values())
    num_seeds = len(outcome.alone.curves)
    _headline(
        figure,
        f"{outcome.num_hard} labels and a teacher: {best:.1%} instead of {outcome.alone.last.mean():.1%}",
        f"Test accuracy of a student with {outcome.student_parameters:,} parameters"
        + (f", mean and range of {num_seeds} seeds" if num_seeds > 1 else "")
        + f". Its teacher has {outcome.teacher_parameters:,} and learned from {outcome.num_training:,} labels.",
    )
    _draw_curves(figure.add_axes((0.078, 0.11, 0.545, 0.70)), outcome)
    left, side = 0.705, 0.19
    figure.text(left, 0.795, "Soft labels say what a digit resembles", color=INK, fontsize=10, weight="bold")
    for number, doubt in enumerate(outcome.doubts):
        bottom = 0.77 - side - number * 0.22
        picture = figure.add_axes((left, bottom, side * 6.2 / 11, side))
        bars = figure.add_axes((left + 0.135, bottom, 0.13, side))
        _draw_doubt(picture, bars, doubt)
    figure.savefig(file, dpi=DOTS_PER_INCH)


def _draw_curves(axes: Axes, outcome: Distilled) -> None:
    num_passes = len(outcome.alone.curves[0])
    passes = np.arange(1, num_passes + 1)
    lowest = min(min(curve) for runs in (outcome.alone, *outcome.over.values()) for curve in runs.curves)
    axes.axhline(outcome.teacher_accuracy, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    blank = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    text = f"teacher {outcome.teacher_accuracy:.1%}"
    axes.text(passes[0] + 0.1, outcome.teacher_accuracy + 0.004, text, color=MUTED, bbox=blank)
    _draw_runs(axes, passes, outcome.alone, HARD)
    (line, lined), *dotted = outcome.over.items()
    _draw_runs(axes, passes, lined, SOFT)
    for _, runs in dotted:
        axes.plot(passes, np.mean(runs.curves, axis=0), "o", color=SOFT_DARK, markersize=3.5, zorder=4, clip_on=False)
    soft, alone = lined.last.mean(), max(curve[-1] for curve in outcome.alone.curves)
    axes.text(num_passes, soft - 0.016, f"with soft labels {soft:.1%}", color=SOFT, weight="bold", va="top", ha="right")
    wires = f"line: over {line}" + "".join(f", dots: over {name}" for name, _ in dotted)
    axes.text(num_passes, soft - 0.032, wires, color=MUTED, fontsize=9, va="top", ha="right")
    text = f"alone {outcome.alone.last.mean():.1%}"
    axes.text(num_passes, alone + 0.01, text, color=HARD, weight="bold", va="bottom", ha="right")
    axes.set_xlim(1, max(2, num_passes))
    axes.set_ylim(max(0.0, np.floor(lowest * 20) / 20), 1.02)
    axes.set_xlabel("passes over the training digits", color=MUTED)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.tick_params(colors=MUTED, length=0)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    _no_frame(axes)


def _draw_runs(axes: Axes, passes: NDArray[np.int64], runs: Runs, colour: str) -> None:
    accuracy = np.array(runs.curves)
    axes.fill_between(passes, accuracy.min(axis=0), accuracy.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    axes.plot(passes, accuracy.mean(axis=0), color=colour, linewidth=2.2, zorder=3)


def _draw_doubt(picture: Axes, bars: Axes, doubt: Doubt) -> None:
    picture.imshow(doubt.crop[..., 0], cmap="gray_r", interpolation="nearest")
    picture.set_xticks([])
    picture.set_yticks([])
    for spine in picture.spines.values():
        spine.set_color(FAINT)
    best = np.argsort(-doubt.probabilities)[:3]
    for row, number in enumerate(best):
        share = float(doubt.probabilities[number])
        bars.barh(row, share, color=SOFT if number == doubt.target else FAINT, height=0.62)
        bars.text(-0.04, row, str(number), ha="right", va="center", color=INK, weight="bold", fontsize=10)
        bars.text(share + 0.03, row, f"{share:.0%}", va="center", color=INK if row == 0 else MUTED, fontsize=9)
    bars.set_xlim(0, 0.75)
    bars.set_ylim(2.6, -0.6)
    bars.set_xticks([])
    bars.set_yticks([])
    _no_frame(bars)


def draw_photographs(outcome: Photographs, file: Path) -> None:
    """Each photograph with its five likeliest classes."""
    rows = (len(outcome.photographs) + 1) // 2
    cell_in, head_in = 1.95, 1.15
    figure = Figure(figsize=(11, head_in + rows * cell_in + 0.1), facecolor="white")
    _headline(
        figure,
        "A soft label says more than one name",
        f"What EfficientNet-Lite0 answers about {len(outcome.photographs)} photographs: its five likeliest of "
        f"{outcome.num_classes:,} classes, served over ZeroMQ in {outcome.label_s * 1000:.0f} ms.",
    )
    width, height = figure.get_size_inches()
    side = cell_in - 0.25
    for number, photograph in enumerate(outcome.photographs):
        column, row = number % 2, number // 2
        left = MARGIN_IN + column * (width - MARGIN_IN) / 2
        bottom = height - head_in - (row + 1) * cell_in + 0.25
        picture = figure.add_axes((left / width, bottom / height, side / width, side / height))
        picture.imshow(photograph.crop, interpolation="lanczos")
        picture.set_axis_off()
        bars_width = width / 2 - MARGIN_IN / 2 - side - 0.75
        bars = figure.add_axes(((left + side + 0.2) / width, bottom / height, bars_width / width, side / height))
        _draw_labels(bars, photograph)
    figure.savefig(file, dpi=DOTS_PER_INCH)


def _draw_labels(axes: Axes, photograph: Labelled) -> None:
    for row, (name, share) in enumerate(zip(photograph.classes, photograph.probabilities, strict=True)):
        axes.barh(row + 0.2, share, color=SOFT if row == 0 else "#a9c9e3", height=0.34)
        axes.barh(row + 0.2, 1, color="#f1f3f6", height=0.34, zorder=0)
        axes.text(0, row - 0.03, name, va="bottom", color=INK, fontsize=9.5, weight="bold" if row == 0 else "normal")
        axes.text(
            1, row - 0.03, f"{share:.1%}", va="bottom", ha="right", color=INK if row == 0 else MUTED, fontsize=9.5
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(len(photograph.classes) - 0.55, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    _no_frame(axes)


def _headline(figure: Figure, title: str, below: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(MARGIN_IN / width, 1 - 0.48 / height, title, color=INK, fontsize=17, weight="bold")
    figure.text(MARGIN_IN / width, 1 - 0.76 / height, below, color=MUTED, fontsize=10)


def _no_frame(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
