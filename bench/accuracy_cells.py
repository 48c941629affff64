"""The accuracy study's contestants: the student alone and each method, and one run of one of them with one seed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.farm_process import ROOT

ALONE = "alone"


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """``options``: what `teacherfarm distill` gets besides what all get; ``why``: why it gets them. ``slow``: its runs
    come last.
    """

    name: str
    method: str
    options: tuple[str, ...] = ()
    why: str = ""
    slow: bool = False


def contestants(epochs: int) -> tuple[Contestant, ...]:
    """In the order of the table."""
    return (
        Contestant(name=ALONE, method="kd", options=("--soft-weight", "0"), why="the data's own labels only"),
        Contestant(name="kd", method="kd"),
        Contestant(name="fkd", method="fkd"),
        Contestant(name="ferkd", method="ferkd"),
        Contestant(name="meal-v2", method="meal-v2", why="one teacher, not several"),
        Contestant(
            name="dkd",
            method="dkd",
            options=("--warm-up-epochs", f"{epochs * 20 / 240:.3g}"),
            why="the paper's share of warm-up: 20 of 240 epochs",
        ),
        Contestant(name="dist", method="dist"),
        Contestant(name="funmatch", method="funmatch"),
        Contestant(name="fitnet", method="fitnet"),
        Contestant(name="at", method="at"),
        Contestant(name="sp", method="sp"),
        Contestant(name="vid", method="vid"),
        Contestant(
            name="crd",
            method="crd",
            options=("--negatives", "512"),
            why="512 negatives in place of 16384, which a CPU is not made for",
        ),
        Contestant(name="semckd", method="semckd", slow=True),
        Contestant(name="srrl", method="srrl"),
        *(
            Contestant(name=f"simkd f={factor}", method="simkd", options=("--factor", str(factor)))
            for factor in (2, 4, 8)
        ),
        Contestant(name="sskd", method="sskd", why="its phases share the epochs"),
    )


LEFT_OUT: Mapping[str, str] = {
    "relabel": "needs label maps that were made beforehand",
    "embedding": "for teachers without classes",
    "tokens": "for transformers",
    "sigmoid-kd": "for teachers of independent classes",
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every contestant gets alike."""

    student: str
    epochs: int
    batch_crops: int = 128
    peak_rate: float = 0.05
    weight_decay: float = 5e-4


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One finished run. ``top1``: a share. ``cpu_s``: of the student's process. ``answer_mb``, ``crop_mb``: what the
    server sent and received, evaluation included.
    """

    name: str
    seed: int
    top1: float
    cpu_s: float
    crop_mb: float
    answer_mb: float
    key: str


def run_cell(
    contestant: Contestant, seed: int, budget: Budget, *, data: Path, address: str, out: Path
) -> tuple[float, float]:
    """Train in a process of its own; top-1 on the test images, and its CPU seconds. Raises RuntimeError."""
    folder = out / "runs" / f"{contestant.name.replace(' ', '-')}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
    folder.mkdir(parents=True)
    arguments = [
        *("distill", str(data), "--val-folder", "test", "--teacher-address", address, "--out", str(folder / "run")),
        *("--method", contestant.method, *contestant.options, "--student", budget.student, "--seed", str(seed)),
        *("--epochs", str(budget.epochs), "--batch-size", str(budget.batch_crops), "--lr", str(budget.peak_rate)),
        *("--lr-per", "step", "--weight-decay", str(budget.weight_decay), "--warmup-epochs", "0.25"),
        *("--mean", "0.5071", "0.4867", "0.4408", "--std", "0.2675", "0.2565", "0.2761"),
        *("--device", "cpu", "--workers", "0", "--measure-link", "0", "--keep", "1"),
    ]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "teacherfarm.cli", *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        said = (folder / "log.txt").read_text().strip().splitlines()
        raise RuntimeError(f"{contestant.name}, seed {seed}: {said[-1] if said else 'no word'} ({folder}/log.txt)")
    result = json.loads((folder / "run" / "result.json").read_text())
    return float(result["top1"]), usage.ru_utime + usage.ru_stime


def cell_file(out: Path, name: str, seed: int) -> Path:
    """Where a finished cell is kept."""
    return out / "cells" / f"{name.replace(' ', '-')}-{seed}.json"


def read_cell(out: Path, name: str, seed: int, key: str) -> Cell | None:
    """A cell that was finished under the same conditions."""
    file = cell_file(out, name, seed)
    cell = Cell(**json.loads(file.read_text())) if file.is_file() else None
    return cell if cell is not None and cell.key == key else None


def keep_cell(out: Path, cell: Cell) -> None:
    """Write a cell whole or not at all."""
    file = cell_file(out, cell.name, cell.seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(asdict(cell), indent=1) + "\n")
    part.replace(file)
