"""Pictures of a study's tables: bytes against divergence on logarithmic axes, with front and budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacherfarm.student.recipes.study_drift import NO_DRIFT
from teacherfarm.student.recipes.study_pixels import REFERENCE_BYTES
from teacherfarm.student.recipes.study_rows import Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart."""
RED, GREY = "#b00020", "#777777"


def draw_labels(table: Table, path: Path, *, title: str) -> None:
    """One panel a temperature. Colours are number types; filled marks smoothing, hollow ones renorm, squares dense; the
    thin lines of what a label spec asks for reach up to the 99th percentile.
    """
    figure, panels = _figure(len(table.temperatures))
    number_types = list(dict.fromkeys(row.cells["numbers"] for row in table.rows))
    for axes, temperature in zip(panels, table.temperatures, strict=True):
        for height, (number_type, colour) in enumerate(zip(number_types, COLOURS, strict=False)):
            own = [row for row in table.rows if row.cells["numbers"] == number_type]
            for completion, look in (
                ("smoothing", {"marker": "o", "label": number_type}),
                ("renorm", {"marker": "o", "linestyle": ":", "markerfacecolor": "white"}),
                ("", {"marker": "s"}),
            ):
                rows = [row for row in own if row.cells["completion"] == completion]
                # The first, which label specs ask for, above the others that nearly coincide with it.
                _plot(axes, rows, temperature, color=colour, zorder=9 - height, **look)
        offered = [row for row in table.rows if row.settings and row.cells["completion"] != "renorm"]
        spread = [(row.num_bytes, _height(row, temperature), row.drift[temperature].kl_p99) for row in offered]
        axes.vlines(*zip(*spread, strict=True), color=COLOURS[0], linewidth=0.8, zorder=1)
        _name(axes, offered, temperature, lambda row: row.cells["label"], (0, -13))
        _frame(axes, table, temperature, table.rows)
        axes.set_xlabel("bytes per label")
    _plot(
        panels[0], [], table.temperature, marker="o", linestyle=":", markerfacecolor="white", color=GREY, label="renorm"
    )
    _plot(panels[0], [], table.temperature, marker="s", linestyle="", color=GREY, label="dense")
    panels[0].set_ylabel("mean KL(label || full precision), nats")
    _finish(figure, panels[0], path, title)


def draw_crops(table: Table, path: Path, *, title: str) -> None:
    """One panel a temperature, one for changed top-1. Ways without any drift have no place on these axes; the title
    names them.
    """
    figure, panels = _figure(len(table.temperatures) + 1)
    drifting = [row for row in table.rows if row.drift[table.temperature].kl_mean > NO_DRIFT]
    kinds = list(dict.fromkeys(row.cells["kind"] for row in drifting))
    shown = [
        (kind, colour, [row for row in drifting if row.cells["kind"] == kind])
        for kind, colour in zip(kinds, COLOURS, strict=False)
    ]
    for axes, temperature in zip(panels, table.temperatures, strict=False):
        for kind, colour, rows in shown:
            _plot(axes, rows, temperature, marker="o", linestyle=_line(kind), color=colour, label=kind)
        best = [row for row in drifting if row.cells["kind"] == "jpeg 4:4:4"]
        _name(axes, best, temperature, lambda row: row.cells["way"].removeprefix("quality "), (9, 3))
        others = [row for row in drifting if not row.cells["kind"].startswith("jpeg")]
        others.sort(key=lambda row: _height(row, temperature))
        for place, drop in enumerate((-12, -3, 6)):
            # In threes, so that names of points that nearly coincide do not.
            _name(axes, others[place::3], temperature, _rendering_name, (-6, drop))
        _frame(axes, table, temperature, drifting)
        axes.set_xlabel("bytes per crop")
    changed = panels[-1]
    for kind, colour, rows in shown:
        sizes = [row.num_bytes for row in rows]
        shares = [100 * (1 - row.drift[table.temperature].top1) for row in rows]
        changed.plot(sizes, shares, marker="o", markersize=5, linewidth=1, linestyle=_line(kind), color=colour)
    changed.set_xscale("log")
    changed.set_ylim(bottom=0)
    changed.set_xlabel("bytes per crop")
    changed.set_ylabel("crops whose top-1 changed, %")
    changed.set_title("top-1", fontsize=10)
    changed.grid(alpha=0.3)
    panels[0].set_ylabel("mean KL(label || label of raw crop), nats")
    exact = [f"{row.cells['way']}: {row.num_bytes:.0f} bytes" for row in table.rows if row not in drifting]
    exact.append(f"by reference: {REFERENCE_BYTES} bytes")
    _finish(figure, panels[0], path, f"{title}\nno drift: {'; '.join(exact)}")


def _rendering_name(row: Row) -> str:
    return row.cells["way"].partition(" px ")[2] or row.cells["way"]


def _line(kind: str) -> str:
    return "-" if kind.startswith("jpeg") or kind == "smaller" else ""


def _figure(columns: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * columns, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _plot(axes: Axes, rows: Sequence[Row], temperature: float, **look: Any) -> None:
    sizes = [row.num_bytes for row in rows]
    axes.plot(sizes, [_height(row, temperature) for row in rows], **{"linewidth": 1, "markersize": 5, **look})


def _frame(axes: Axes, table: Table, temperature: float, rows: Iterable[Row]) -> None:
    """Axes, front, budget, and the chosen row where this is the budget's temperature."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    front = table.front(temperature, rows)
    _plot(axes, front, temperature, color=GREY, linewidth=7, alpha=0.25, markersize=0, zorder=0, label="Pareto front")
    axes.axhline(table.budget, color=RED, linestyle="--", linewidth=1, label=f"budget {table.budget:g} nats")
    chosen = table.smallest(offered=True) if temperature == table.temperature else None
    if chosen is not None and chosen in rows:
        look: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 15, "markerfacecolor": "none"}
        _plot(axes, [chosen], temperature, **look, color=RED, label="chosen")
    if min(_height(row, temperature) for row in rows) <= NO_DRIFT:
        axes.text(0.01, 0.015, f"{NO_DRIFT:g}: none but rounding", transform=axes.transAxes, fontsize=7, color=GREY)
    axes.set_title(f"temperature {temperature:g}", fontsize=10)
    axes.grid(alpha=0.3)


def _name(
    axes: Axes, rows: Sequence[Row], temperature: float, name: Callable[[Row], str], offset: tuple[int, int]
) -> None:
    """Each row's name beside its point, ``offset`` in typographic points: to the left of it where that is negative."""
    from matplotlib.patheffects import withStroke

    side = "center" if not offset[0] else "left" if offset[0] > 0 else "right"
    for row in rows:
        place = (row.num_bytes, _height(row, temperature))
        text = axes.annotate(name(row), place, textcoords="offset points", xytext=offset, ha=side, fontsize=7)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])  # lines may pass behind it


def _height(row: Row, temperature: float) -> float:
    return max(row.drift[temperature].kl_mean, NO_DRIFT)


def _finish(figure: Any, first: Axes, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=11)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=9, fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
