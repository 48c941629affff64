"""Counts one pass of a training run: loss, speed and stall, on the progress bar and in TensorBoard."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.recipes.ranks import Ranks
from teacherfarm.student.recipes.run_log import RunLog

STEPS_PER_READING = 20
"""Reading the loss waits for the device, so it is done seldom."""


class PassMeter:
    """``steps``: of the whole run, before this pass; ``done_before``: batches of this pass done before a
    resume.
    """

    def __init__(
        self, title: str, *, loader: LabelledLoader[Any], ranks: Ranks, log: RunLog | None, steps: int, done_before: int
    ) -> None:
        self.steps = steps
        self._loader, self._ranks, self._log = loader, ranks, log
        self._sums = torch.zeros(2, dtype=torch.float64, device=ranks.device)
        self._recent = torch.zeros(2, dtype=torch.float64, device=ranks.device)
        self._crops, self._began_s = 0, time.perf_counter()
        # None: only where somebody watches a terminal.
        disable = None if ranks.first else True
        self._bar = tqdm(total=len(loader), initial=done_before, desc=title, unit=" steps", disable=disable)

    def step(self, loss: Tensor, num_crops: int) -> None:
        """One more step was taken. Raises ValueError when the loss is no number any more (looked at now and
        then).
        """
        self.steps += 1
        self._crops += num_crops
        self._recent += torch.stack([loss.detach().double(), torch.ones_like(loss, dtype=torch.float64)])
        self._bar.update()
        if self.steps % STEPS_PER_READING == 0:
            self._read()

    def finish(self) -> float:
        """The mean loss of the pass over all ranks; ends the bar."""
        self._read()
        self._bar.close()
        if self._ranks.num_ranks > 1:
            torch.distributed.all_reduce(self._sums)
        total, count = self._sums.tolist()
        return total / count if count else math.nan

    def close(self) -> None:
        self._bar.close()

    @property
    def images_per_s(self) -> float:
        """Crops of all ranks per second of this pass."""
        return self._crops * self._ranks.num_ranks / max(time.perf_counter() - self._began_s, 1e-9)

    def _read(self) -> None:
        total, count = self._recent.tolist()
        if not count:
            return
        self._sums += self._recent
        self._recent.zero_()
        loss, stall = total / count, self._loader.stall
        if not math.isfinite(loss):
            self._bar.close()
            raise ValueError(
                f"the loss is {loss} at step {self.steps}: try a lower --lr, a longer --warmup-epochs, "
                "--clip-norm 1, or --amp off"
            )
        self._bar.set_postfix_str(f"loss {loss:.4f}, {self.images_per_s:.0f} images/s, stall {stall:.1%}")
        if self._log is not None:
            self._log.step(self.steps, loss=loss, images_per_s=self.images_per_s, stall=stall)
