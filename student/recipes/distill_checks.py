"""What a run refuses before it begins: options that contradict each other, and a folder that holds another run."""

from __future__ import annotations

import argparse
from pathlib import Path

from teacherfarm.student.checkpoint import latest_checkpoint, list_checkpoints
from teacherfarm.student.recipes.distill_data import DistillData
from teacherfarm.student.recipes.trainee import Trainee


def check_options(options: argparse.Namespace, data: DistillData, trainee: Trainee) -> None:
    """Raise ValueError for what would train something else than was meant."""
    if options.batch_size < options.crops_per_image:
        raise ValueError(
            f"--batch-size counts crops and must hold one image's {options.crops_per_image}, got {options.batch_size}"
        )
    if options.accumulate < 1:
        raise ValueError(f"--accumulate counts the batches of a step, at least 1, got {options.accumulate}")
    if (trainee.asks_targets or options.hard_fallback) and data.train.match.unmatched:
        raise ValueError(
            f"method {trainee.method.name} learns from the data's own labels, too, and needs every class: "
            f"{data.train.match}. Give --class-map FILE"
        )
    if options.hard_fallback and options.on_starved != "skip":
        raise ValueError("--hard-fallback has an effect with --on-starved skip only")
    specs = {phase.asks.spec for phase in trainee.phases if phase.asks.spec is not None}
    if options.record is not None and len(specs) > 1:
        raise ValueError(f"method {trainee.method.name} asks for other outputs in each phase: --record keeps one kind")
    if options.hard_fallback and any(phase.asks.mixing != "none" for phase in trainee.phases):
        raise ValueError(
            f"--hard-fallback teaches a crop its own class, and method {trainee.method.name} mixes crops of several: "
            "leave one of them out"
        )
    never_again = any(phase.asks.fresh or phase.asks.mixing == "crops" for phase in trainee.phases)
    if never_again and (options.labels or options.record):
        raise ValueError(
            f"method {trainee.method.name} with these settings has the teacher label what is never seen again: "
            "leave --labels and --record out"
        )


def find_checkpoint(options: argparse.Namespace) -> Path | None:
    """The newest checkpoint with --resume; without it an older run in the folder is refused, not overwritten."""
    if options.resume:
        return latest_checkpoint(options.out)
    if list_checkpoints(options.out):
        raise ValueError(
            f"{options.out} holds an earlier run: --resume goes on with it, another --out starts a new one"
        )
    return None
