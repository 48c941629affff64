"""Distillation from a farm as one of timm's training tasks, where timm's own tasks run the teacher themselves.

with connect("zmq://farm:7001", student=timm.create_model("resnet18"), method="dkd") as distillation:
    task = FarmTask(distillation, device=device)
    for batch, labels in distillation.labelled(loader):
        result = task(distillation.pixels(batch, device), distillation.step(batch, labels, device=device))
        result["loss"].backward()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.task.task import TrainingTask
from timm.utils.model import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from teacherfarm.student.integrations.distillation import Distillation
from teacherfarm.student.methods.distiller import Distiller
from teacherfarm.student.methods.method import Step


class FarmTask(TrainingTask):  # type: ignore[misc]
    """``task(pixels, step)`` -> ``loss`` and its parts. timm's EMA, gradient clipping, no_sync and checkpoints work:
    ``state_dict`` is the student's own, ``task_state`` what the method adds.
    """

    def __init__(self, distillation: Distillation, *, device: torch.device | None = None, verbose: bool = True) -> None:
        super().__init__(device=device, verbose=verbose)
        self.trainable_module: nn.Module = distillation.distiller.to(self.device)

    def prepare_distributed(self, device_ids: list[int] | None = None, **ddp: Any) -> FarmTask:
        """Wrap student and method in DistributedDataParallel."""
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp)
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **options: Any) -> None:
        """Compile the student. Before :meth:`prepare_distributed`."""
        self._distiller().student.compile(backend=backend, mode=mode, **options)

    def forward(self, input: Tensor, target: Step) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = self.trainable_module(input, target)
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """Pixels in, logits out; None where there is no average yet. Shares the weights of what is trained."""
        if module is None and ema and not self.has_ema():
            return None
        return _Predictor(self._distiller(module, ema))

    def get_clip_parameters(self, exclude_head: bool = False) -> Any:
        """The trainable ones; with ``exclude_head`` all but those of the student's last layer."""
        if not exclude_head:
            return (parameter for parameter in self.trainable_module.parameters() if parameter.requires_grad)
        distiller = self._distiller()
        last = {id(parameter) for parameter in list(distiller.student.model.parameters())[-2:]}
        return (each for each in distiller.parameters() if each.requires_grad and id(each) not in last)

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        return dict(self._distiller(module, ema).method.state_dict())

    def load_task_state(
        self,
        state: Mapping[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        if state:
            self._distiller(module, ema).method.load_state_dict(dict(state), strict=strict)

    def get_checkpoint_state(self, ema: bool = False, unwrap_fn: Any = None) -> dict[str, Any]:
        if ema and not self.has_ema():
            return {}
        suffix = "_ema" if ema else ""
        state: dict[str, Any] = {f"state_dict{suffix}": self._distiller(None, ema).student.model.state_dict()}
        if task_state := self.get_task_state(ema=ema):
            state[f"task_state{suffix}"] = task_state
        return state

    def load_checkpoint_state(
        self,
        state_dict: Mapping[str, Any],
        task_state: Mapping[str, Any] | None = None,
        ema: bool = False,
        strict: bool = True,
    ) -> None:
        if ema and not self.has_ema():
            raise RuntimeError("load the averaged weights after setup_ema()")
        self._distiller(None, ema).student.model.load_state_dict(dict(state_dict), strict=strict)
        self.load_task_state(task_state, strict=strict, ema=ema)

    def _distiller(self, module: nn.Module | None = None, ema: bool = False) -> Distiller:
        inside = unwrap_model(self.get_trainable_module(ema=ema) if module is None else module)
        assert isinstance(inside, Distiller)
        return inside


class _Predictor(nn.Module):
    """The distiller's answers under the name that evaluation calls."""

    def __init__(self, distiller: Distiller) -> None:
        super().__init__()
        self.distiller = distiller

    def forward(self, pixels: Tensor) -> Tensor:
        return self.distiller.predict(pixels)
