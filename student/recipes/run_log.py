"""A training run's figures, one row a pass: a CSV file, TensorBoard, and a picture of the curves."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

CSV_FILE = "log.csv"
CURVES_FILE = "curves.png"
PART = "loss/"
"""Before the names of the loss's parts, as columns and scalars."""


@dataclass(frozen=True, kw_only=True)
class PassRow:
    """One pass over the data. ``epoch``: epochs completed after it. Shares are from 0 to 1."""

    epoch: int
    steps: int
    learning_rate: float
    loss: float
    images_per_s: float
    stall: float
    unanswered: int
    val_loss: float
    val_top1: float
    val_top5: float


class RunLog:
    """Appends rows; ``resume_epoch``: rows of later epochs are from a run that was cut off, and go.

    ``parts``: the loss's parts of each row, by name; a method's phases may have different ones.
    """

    def __init__(self, folder: Path, *, resume_epoch: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        kept = [(row, parts) for row, parts in _read(folder / CSV_FILE) if row.epoch <= resume_epoch]
        self.rows = [row for row, _ in kept]
        self.parts: list[dict[str, float]] = [parts for _, parts in kept]
        self._write_all()
        purge = self.rows[-1].steps + 1 if self.rows else 0
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tensorboard.close()

    def step(self, step: int, **scalars: float) -> None:
        """Figures of one step, for TensorBoard alone."""
        for name, value in scalars.items():
            self._tensorboard.add_scalar(f"step/{name}", value, step)

    def add(self, row: PassRow, parts: Mapping[str, float]) -> None:
        """One more pass is done."""
        self.rows.append(row)
        self.parts.append(dict(parts))
        self._write_all()
        for name, value in parts.items():
            self._tensorboard.add_scalar(f"pass/{PART}{name}", value, row.steps)
        for name, value in dataclasses.asdict(row).items():
            if name != "steps":
                self._tensorboard.add_scalar(f"pass/{name}", value, row.steps)

    def draw(self) -> Path:
        """Loss, accuracy and stall over epochs, as a picture."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(12, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        losses, accuracies, speeds = figure.subplots(1, 3)
        epochs = [row.epoch for row in self.rows]
        losses.plot(epochs, [row.loss for row in self.rows], marker=".", label="training: the method's")
        losses.plot(epochs, [row.val_loss for row in self.rows], marker=".", label="validation: hard labels")
        losses.set_ylabel("loss")
        accuracies.plot(epochs, [100 * row.val_top1 for row in self.rows], marker=".", label="top-1")
        accuracies.plot(epochs, [100 * row.val_top5 for row in self.rows], marker=".", label="top-5")
        accuracies.set_ylabel("validation, %")
        speeds.plot(epochs, [100 * row.stall for row in self.rows], marker=".", color="tab:red", label="stall")
        speeds.set_ylabel("time spent waiting for labels, %")
        speeds.set_ylim(0, 100)
        for axes in (losses, accuracies, speeds):
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            axes.legend()
        path = self.folder / CURVES_FILE
        figure.savefig(path, dpi=120)
        return path

    def _part_names(self) -> list[str]:
        return list(dict.fromkeys(name for parts in self.parts for name in parts))

    def _write_all(self) -> None:
        names = [field.name for field in dataclasses.fields(PassRow)]
        temporary = self.folder / f".{CSV_FILE}.tmp"
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*names, *(PART + name for name in self._part_names())])
            writer.writeheader()
            for row, parts in zip(self.rows, self.parts, strict=True):
                writer.writerow(dataclasses.asdict(row) | {PART + name: value for name, value in parts.items()})
        temporary.replace(self.folder / CSV_FILE)


def _read(path: Path) -> list[tuple[PassRow, dict[str, float]]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        kinds = {field.name: int if field.type == "int" else float for field in dataclasses.fields(PassRow)}
        return [
            (
                PassRow(**{name: kinds[name](value) for name, value in row.items() if name in kinds}),  # type: ignore[arg-type]
                {name.removeprefix(PART): float(value) for name, value in row.items() if name not in kinds and value},
            )
            for row in csv.DictReader(file)
        ]
