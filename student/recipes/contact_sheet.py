"""A picture of crops on which the teacher and the folder disagree most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

COLUMNS = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class Disagreement:
    """One crop [H, W, 3]: the folder's class, the teacher's and its probability, the log-probability of the
    folder's.
    """

    pixels: NDArray[Any]
    folder: str
    teachers: str
    probability: float
    log_probability: float


def draw_contact_sheet(disagreements: Sequence[Disagreement], path: Path) -> None:
    """Write the picture; its folder must exist."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(disagreements) // COLUMNS)
    figure = Figure(figsize=(2.2 * COLUMNS, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes in (grid := figure.subplots(rows, COLUMNS, squeeze=False)).flat:
        axes.axis("off")
    for axes, one in zip(grid.flat, disagreements, strict=False):
        axes.imshow(one.pixels)
        axes.set_title(f"{one.folder[:24]}\nteacher: {one.teachers[:24]} {one.probability:.0%}", fontsize=7)
    figure.savefig(path, dpi=120)
