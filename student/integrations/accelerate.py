"""Distillation from a farm with Hugging Face accelerate: its ``prepare``, and labels after it.

with connect("zmq://farm:7001", student=student, method="dkd") as distillation:
    model, optimizer, loader = prepare(accelerator, distillation, optimizer, loader)
    for epoch in range(30):
        loader.set_epoch(epoch)
        for step, (batch, labels) in enumerate(loader):
            with accelerator.accumulate(model):
                loss = step_loss(accelerator, distillation, model, batch, labels, epoch + step / len(loader))
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from teacherfarm.protos.soft_label import SoftLabels
from teacherfarm.student.integrations.distillation import Distillation, check_processes
from teacherfarm.student.labelled_loader import LabelledLoader


def prepare(
    accelerator: Accelerator,
    distillation: Distillation,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[Any],
) -> tuple[nn.Module, torch.optim.Optimizer, LabelledLoader[dict[str, Any]]]:
    """The distiller, its optimiser and the loader, prepared; the loader then yields ``(batch, labels)``.

    Batches stay on the CPU: the teacher's crops are never needed elsewhere. Raises ValueError for gradient accumulation
    that ends with the loader: labels are asked ahead, and accelerate would take every batch for the last one.
    """
    check_processes(accelerator.num_processes)
    state = accelerator.gradient_state
    if state.num_steps > 1 and state.sync_with_dataloader:
        raise ValueError(
            "accumulating gradients over batches that are read ahead: make the Accelerator with "
            f"gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps={state.num_steps}, "
            "sync_with_dataloader=False)"
        )
    model, prepared = accelerator.prepare(distillation.distiller, optimizer)
    sharded = accelerator.prepare_data_loader(loader, device_placement=False)
    return model, prepared, distillation.labelled(sharded)


def step_loss(
    accelerator: Accelerator,
    distillation: Distillation,
    model: nn.Module,
    batch: Mapping[str, Any],
    labels: SoftLabels,
    epoch: float = 0.0,
) -> Tensor:
    """The loss of one batch, to be given to ``accelerator.backward``. ``epoch``: epochs done, with fractions."""
    step = distillation.step(batch, labels, epoch=epoch, device=accelerator.device)
    with accelerator.autocast():
        parts: dict[str, Tensor] = model(distillation.pixels(batch, accelerator.device), step)
    return torch.stack(list(parts.values())).sum()
