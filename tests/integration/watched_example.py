"""Runs a script and keeps what its distiller was trained with: ``python watched_example.py FOLDER SCRIPT ARGUMENTS``.

Each rank writes FOLDER/RANK.npz: samples, epoch and pixels of each step, the labels beside them, the final weights.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import numpy as np
import torch

from teacherfarm.student.methods.distiller import Distiller

torch.set_num_threads(1)


def main() -> None:
    folder, script = Path(sys.argv[1]), sys.argv[2]
    kept: dict[str, list[np.ndarray]] = {"samples": [], "epochs": [], "pixels": [], "labels": [], "losses": []}
    distillers: list[Distiller] = []
    forward = Distiller.forward

    def watched(self: Distiller, pixels: torch.Tensor, step: object) -> dict[str, torch.Tensor]:
        parts = forward(self, pixels, step)
        if self.training:
            distillers[:] = [self]
            kept["samples"].append(step.samples.numpy())
            kept["epochs"].append(np.full(len(pixels), step.epoch))
            kept["pixels"].append(pixels.numpy())
            kept["labels"].append(step.labels.log_probabilities)
            kept["losses"].append(np.array([float(sum(parts.values()))]))
        return parts

    Distiller.forward = watched
    sys.argv = sys.argv[2:]
    runpy.run_path(script, run_name="__main__")
    weights = torch.cat([parameter.detach().flatten() for parameter in distillers[0].parameters()])
    values = {name: np.concatenate(parts) for name, parts in kept.items()}
    np.savez(folder / f"{os.environ.get('RANK', '0')}.npz", weights=weights.numpy(), **values)


if __name__ == "__main__":
    main()
