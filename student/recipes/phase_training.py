"""One phase of a run: the method's loss, an optimiser, a learning rate, gradients of several batches and ranks."""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from teacherfarm.student.methods.method import Step
from teacherfarm.student.recipes.passes import LearningRate
from teacherfarm.student.recipes.ranks import Ranks
from teacherfarm.student.recipes.trainee import Trainee

AMP_TYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class PhaseTraining:
    """Phase ``number`` of a method, with an optimiser of its own; making it freezes and unfreezes."""

    def __init__(
        self, trainee: Trainee, number: int, options: argparse.Namespace, ranks: Ranks, scaler: torch.amp.GradScaler
    ) -> None:
        self.number = number
        self.phase = trainee.phases[number]
        self.distiller = trainee.distiller
        self.distiller.enter(number)
        self.trained = [parameter for parameter in self.distiller.parameters() if parameter.requires_grad]
        if not self.trained:
            raise ValueError(
                f"phase {self.phase.name!r} of method {options.method} has nothing to train in this student"
            )
        # What a method does not use (SimKD: the student's own classifier) gets no gradient.
        self.model: nn.Module = self.distiller
        if ranks.num_ranks > 1:
            self.model = DistributedDataParallel(self.distiller, find_unused_parameters=True)
        self.optimizer = make_optimizer(options, self.trained)
        self.scaler = scaler
        self._rate = learning_rate(options, self.phase.end - self.phase.begin)
        self._per_step = options.lr_per == "step"
        self._clip_norm = options.clip_norm
        self._amp = AMP_TYPES[options.amp]
        self._device = ranks.device.type

    def rate(self, pass_epoch: int, epoch: float) -> float:
        """The learning rate ``epoch`` epochs into the run, in a pass that began after ``pass_epoch`` of them."""
        return self._rate.at((epoch if self._per_step else pass_epoch) - self.phase.begin)

    def backward(self, pixels: Tensor, step: Step, *, share: float, last: bool) -> dict[str, Tensor]:
        """Add the gradient of ``share`` of one batch's loss, and return the loss's parts; ``last``: of the batches that
        make a step, which is when ranks exchange gradients.
        """
        apart = self.model.no_sync() if isinstance(self.model, DistributedDataParallel) and not last else None
        with apart or contextlib.nullcontext():
            with torch.autocast(self._device, dtype=self._amp, enabled=self._amp is not None):
                parts: dict[str, Tensor] = self.model(pixels, step)
            loss = torch.stack([part.float() for part in parts.values()]).sum() * share
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return parts

    def step(self, rate: float) -> None:
        """Let the optimiser go one step along the gradients, and forget them."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self._clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trained, self._clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def rehearsal(self, pixels: Tensor, step: Step) -> Callable[[], None]:
        """Does forward and backward of one batch in a copy, each time that it is called."""
        distiller = copy.deepcopy(self.distiller)
        distiller.train()

        def rehearse() -> None:
            with torch.autocast(self._device, dtype=self._amp, enabled=self._amp is not None):
                parts = distiller(pixels, step)
            torch.stack([part.float() for part in parts.values()]).sum().backward()  # type: ignore[no-untyped-call]
            distiller.zero_grad(set_to_none=True)

        return rehearse


def make_optimizer(options: argparse.Namespace, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, Adam or AdamW; weight decay acts on every parameter, as in FKD."""
    decay = {"lr": options.lr, "weight_decay": options.weight_decay}
    if options.optimizer == "adam":
        return torch.optim.Adam(parameters, **decay)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **decay)
    return torch.optim.SGD(parameters, momentum=0.9, nesterov=options.optimizer == "nesterov", **decay)


def learning_rate(options: argparse.Namespace, epochs: int) -> LearningRate:
    """The options' learning rate for a phase of so many epochs."""
    return LearningRate(
        peak=options.lr,
        epochs=epochs,
        warmup_epochs=options.warmup_epochs,
        schedule=options.lr_schedule,
        steps=tuple(options.lr_steps),
        factor=options.lr_factor,
        floor=options.lr_floor,
    )
