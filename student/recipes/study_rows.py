"""The two tables of a study as values: each format or way with its bytes and its drift at each temperature."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from teacherfarm.student.recipes.study_drift import NO_DRIFT, Drift, pareto, smallest_within

FIGURES = ("kl_mean", "kl_error", "kl_p99", "kl_worst", "missed_mean", "moved_mean", "top1")


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One line. ``cells``: what is varied, by column. ``settings``: what to write to get it at each temperature, empty
    where no setting gives it. ``seconds``: to make and undo one, where measured.
    """

    cells: Mapping[str, str]
    num_bytes: float
    drift: Mapping[float, Drift]
    settings: Mapping[float, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return ", ".join(cell for cell in self.cells.values() if cell)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows, and which of them is smallest within ``budget`` nats of mean divergence at ``temperature``."""

    rows: Sequence[Row]
    temperatures: Sequence[float]
    temperature: float
    budget: float

    def front(self, temperature: float, rows: Iterable[Row] | None = None) -> list[Row]:
        """Of ``rows`` (default: all), those that no other beats in both bytes and mean divergence."""
        among = self.rows if rows is None else rows
        return pareto(among, _num_bytes, lambda row: max(row.drift[temperature].kl_mean, NO_DRIFT))

    def smallest(self, *, offered: bool) -> Row | None:
        """Within the budget; ``offered``: among what a setting gives."""
        rows = [row for row in self.rows if row.settings or not offered]
        return smallest_within(rows, _num_bytes, lambda row: row.drift[self.temperature], self.budget)

    def lines(self, *, everything: bool) -> list[str]:
        """For a terminal: bytes, then mean, 99th percentile and worst divergence and equal top-1 at each temperature.
        ``*`` marks the front of that temperature, ``>`` the chosen row. Without ``everything``, rows that no setting
        gives and that are on no front are left out.
        """
        fronts = [row for temperature in self.temperatures for row in self.front(temperature)]
        rows = [row for row in self.rows if everything or row.settings or row in fronts]
        return aligned(self._shown(rows), num_left=1 + len(self.rows[0].cells))

    def markdown(self) -> list[str]:
        """All rows as a Markdown table."""
        header, *rows = self._shown(self.rows)
        rule = ["---"] * len(header)
        return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]

    def write_csv(self, path: Path) -> None:
        """Every figure, one line for each row and temperature."""
        with path.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            columns = [*self.rows[0].cells, "bytes", "temperature", *FIGURES, "pareto", "microseconds", "setting"]
            writer.writerow(columns)
            for temperature in self.temperatures:
                front = self.front(temperature)
                for row in self.rows:
                    figures = [f"{getattr(row.drift[temperature], name):.9g}" for name in FIGURES]
                    cells: list[object] = [*row.cells.values(), f"{row.num_bytes:.1f}", f"{temperature:g}", *figures]
                    writer.writerow(
                        [*cells, int(row in front), f"{row.seconds * 1e6:.0f}", row.settings.get(temperature, "")]
                    )

    def _shown(self, rows: Sequence[Row]) -> list[list[str]]:
        chosen = self.smallest(offered=True)
        timed = any(row.seconds for row in self.rows)
        header = ["", *self.rows[0].cells, "bytes", *(["µs"] if timed else [])]
        for temperature in self.temperatures:
            header += [f"T={temperature:g} mean", "p99", "worst", "top-1", ""]
        shown = [header]
        fronts = {temperature: self.front(temperature) for temperature in self.temperatures}
        for row in rows:
            cells = [">" if row is chosen else "", *row.cells.values(), f"{row.num_bytes:.0f}"]
            cells += [f"{row.seconds * 1e6:.0f}"] if timed else []
            for temperature in self.temperatures:
                drift = row.drift[temperature]
                cells += [nats(drift.kl_mean), nats(drift.kl_p99), nats(drift.kl_worst), f"{drift.top1:.1%}"]
                cells.append("*" if row in fronts[temperature] else "")
            shown.append(cells)
        return shown


def nats(value: float) -> str:
    """A divergence with two digits; what is rounding alone is shown as 0."""
    if not math.isfinite(value):
        return "inf"
    return "0" if value < NO_DRIFT else f"{value:.2g}"


def aligned(rows: Sequence[Sequence[str]], *, num_left: int) -> list[str]:
    """Lines with equal columns, the first ``num_left`` of them to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < num_left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
    ]


def _num_bytes(row: Row) -> float:
    return row.num_bytes
