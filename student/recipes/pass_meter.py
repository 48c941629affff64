"""Counts one pass of a training run: loss and its parts, speed and stall, on the progress bar and in TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
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
    """``steps``: of the optimiser, in the whole run, before this pass; ``done_before``: batches of this pass done
    before a resume.
    """

    def __init__(
        self, title: str, *, loader: LabelledLoader[Any], ranks: Ranks, log: RunLog | None, steps: int, done_before: int
    ) -> None:
        self.steps = steps
        self._loader, self._ranks, self._log = loader, ranks, log
        # Sums of the loss's parts by name, and how many batches they are of.
        self._sums: dict[str, float] = {}
        self._recent: dict[str, Tensor] = {}
        self._num_sums = self._num_recent = 0
        self._crops, self._began_s = 0, time.perf_counter()
        # None: only where somebody watches a terminal.
        disable = None if ranks.first else True
        self._bar = tqdm(total=len(loader), initial=done_before, desc=title, unit=" steps", disable=disable)

    def batch(self, parts: Mapping[str, Tensor], num_crops: int) -> None:
        """One more batch was trained on, with a loss of these parts."""
        self._crops += num_crops
        self._num_recent += 1
        for name, part in parts.items():
            before = self._recent.get(name)
            self._recent[name] = part.detach().double() if before is None else before + part.detach()
        self._bar.update()

    def step(self) -> None:
        """The optimiser took one more step. Raises ValueError when the loss is no number any more (looked at now and
        then).
        """
        self.steps += 1
        if self.steps % STEPS_PER_READING == 0:
            self._read()

    def finish(self) -> dict[str, float]:
        """The mean of the pass over all ranks, of each part of the loss by name; ends the bar."""
        self._read()
        self._bar.close()
        names = sorted(self._sums)
        sums = torch.tensor([*(self._sums[name] for name in names), self._num_sums], dtype=torch.float64)
        if self._ranks.num_ranks > 1:
            sums = sums.to(self._ranks.device)
            torch.distributed.all_reduce(sums)
        *totals, count = sums.tolist()
        return {name: total / count for name, total in zip(names, totals, strict=True)} if count else {}

    def close(self) -> None:
        self._bar.close()

    @property
    def images_per_s(self) -> float:
        """Crops of all ranks per second of this pass."""
        return self._crops * self._ranks.num_ranks / max(time.perf_counter() - self._began_s, 1e-9)

    def _read(self) -> None:
        if not self._num_recent:
            return
        totals = dict(zip(self._recent, torch.stack(list(self._recent.values())).tolist(), strict=True))
        means = {name: total / self._num_recent for name, total in totals.items()}
        for name, total in totals.items():
            self._sums[name] = self._sums.get(name, 0.0) + total
        self._num_sums += self._num_recent
        self._recent, self._num_recent = {}, 0
        loss, stall = sum(means.values()), self._loader.stall
        if not math.isfinite(loss):
            self._bar.close()
            parts = ", ".join(f"{name} {mean:g}" for name, mean in means.items())
            raise ValueError(
                f"the loss is {loss} at step {self.steps} ({parts}): try a lower --lr, a longer --warmup-epochs, "
                "--clip-norm 1, or --amp off"
            )
        self._bar.set_postfix_str(f"loss {loss:.4f}, {self.images_per_s:.0f} images/s, stall {stall:.1%}")
        if self._log is not None:
            scalars = {f"loss/{name}": mean for name, mean in means.items()} if len(means) > 1 else {}
            self._log.step(self.steps, loss=loss, images_per_s=self.images_per_s, stall=stall, **scalars)
