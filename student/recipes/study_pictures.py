"""Pictures of a study's tables: bytes against divergence on logarithmic axes, with front and budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacherfarm.student.recipes.study_drift import NO_DRIFT
from teacherfarm.student.recipes.study_rows import Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart."""
GREY = "#777777"


def draw_labels(table: Table, path: Path, *, title: str) -> None:
    """One panel a temperature; colours are number types, filled marks smoothing, hollow ones renorm."""
    figure, panels = _figure(len(table.temperatures), 1)
    number_types = list(dict.fromkeys(row.cells["numbers"] for row in table.rows))
    for axes, temperature in zip(panels[0], table.temperatures, strict=True):
        for number_type, colour in zip(number_types, COLOURS, strict=False):
            for completion, filled in (("smoothing", True), ("renorm", False)):
                rows = [row for row in table.rows if row.cells["numbers"] == number_type]
                rows = [row for row in rows if row.cells["completion"] in ("", completion)]
                label = number_type if filled else f"{number_type}, renorm"
                _series(axes, rows, temperature, colour, label, filled=filled)
        offered = [row for row in table.rows if row.advice and row.cells["completion"] in ("", "smoothing")]
        _name(axes, offered, temperature, lambda row: row.cells["label"], above=False)
        _frame(axes, table, temperature)
        axes.set_xlabel("bytes per label")
    panels[0][0].set_ylabel("mean KL(label || full precision), nats")
    _finish(figure, panels[0][0], path, title)


def draw_crops(table: Table, path: Path, *, title: str) -> None:
    """Divergence above, changed top-1 below; one column a temperature (top-1 does not depend on it)."""
    figure, panels = _figure(len(table.temperatures), 2)
    groups = list(dict.fromkeys(row.cells["kind"] for row in table.rows))
    for place, temperature in enumerate(table.temperatures):
        drift, changed = panels[0][place], panels[1][place]
        for group, colour in zip(groups, COLOURS, strict=False):
            rows = [row for row in table.rows if row.cells["kind"] == group]
            joined = group.startswith("jpeg") or group == "smaller"
            _series(drift, rows, temperature, colour, group, joined=joined)
            sizes = [row.num_bytes for row in rows]
            shares = [100 * (1 - row.drift[temperature].top1) for row in rows]
            changed.plot(sizes, shares, "o-" if joined else "o", color=colour, markersize=4, linewidth=1)
        jpegs = [row for row in table.rows if row.cells["kind"] == "jpeg 4:2:0"]
        _name(drift, jpegs, temperature, lambda row: row.cells["way"].split()[1].rstrip(","), above=False)
        others = [row for row in table.rows if row.cells["kind"] in ("smaller", "reference")]
        _name(drift, others, temperature, lambda row: row.cells["way"].split(" bilinear")[0], above=True)
        _frame(drift, table, temperature)
        changed.set_xscale("log")
        changed.set_xlim(drift.get_xlim())
        changed.set_xlabel("bytes per crop")
        changed.grid(alpha=0.3)
    panels[0][0].set_ylabel("mean KL(label || label of raw crop), nats")
    panels[1][0].set_ylabel("crops whose top-1 changed, %")
    _finish(figure, panels[0][0], path, title)


def _figure(columns: int, rows: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2 * columns, 1.6 + 4.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _series(
    axes: Axes,
    rows: Sequence[Row],
    temperature: float,
    colour: str,
    label: str,
    *,
    filled: bool = True,
    joined: bool = True,
) -> None:
    sizes = [row.num_bytes for row in rows]
    means = [_height(row, temperature) for row in rows]
    face = colour if filled else "white"
    line = ("-" if filled else ":") if joined else ""
    axes.plot(
        sizes,
        means,
        marker="o",
        linestyle=line,
        linewidth=1,
        color=colour,
        markerfacecolor=face,
        markersize=5,
        label=label,
    )


def _frame(axes: Axes, table: Table, temperature: float) -> None:
    """Axes, front, budget, and the chosen row where this is the budget's temperature."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    front = table.front(temperature)
    means = [_height(row, temperature) for row in front]
    sizes = [row.num_bytes for row in front]
    axes.plot(sizes, means, color=GREY, linewidth=6, alpha=0.25, zorder=0, label="Pareto front")
    axes.axhline(table.budget, color="#b00020", linestyle="--", linewidth=1, label=f"budget {table.budget:g} nats")
    chosen = table.smallest(offered=True) if temperature == table.temperature else None
    if chosen is not None:
        place = (chosen.num_bytes, _height(chosen, temperature))
        axes.plot(*place, marker="o", markersize=14, markerfacecolor="none", color="#b00020", label="chosen")
    lowest = min(_height(row, temperature) for row in table.rows)
    if lowest <= NO_DRIFT:
        axes.text(0.01, 0.015, f"{NO_DRIFT:g}: none but rounding", transform=axes.transAxes, fontsize=7, color=GREY)
    axes.set_title(f"temperature {temperature:g}", fontsize=10)
    axes.grid(alpha=0.3)


def _name(axes: Axes, rows: Sequence[Row], temperature: float, name: Any, *, above: bool) -> None:
    for row in rows:
        axes.annotate(
            name(row),
            (row.num_bytes, _height(row, temperature)),
            textcoords="offset points",
            xytext=(0, 7 if above else -13),
            ha="center",
            fontsize=7,
        )


def _height(row: Row, temperature: float) -> float:
    return max(row.drift[temperature].kl_mean, NO_DRIFT)


def _finish(figure: Any, first: Axes, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=11)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
