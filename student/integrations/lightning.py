"""Distillation from a farm as a LightningModule, and its loaders as a LightningDataModule.

    with connect("zmq://farm:7001", student=student, method="dkd") as distillation:
        module = DistillationModule(distillation, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        Trainer(max_epochs=30).fit(module, DistillationData(distillation, train, val, batch_size=64))

Checkpoints hold how far the loader is; labels asked ahead do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from teacherfarm.protos.soft_label import SoftLabels
from teacherfarm.student.integrations.distillation import Distillation, check_processes
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.losses import NO_TARGET, hard_cross_entropy
from teacherfarm.student.shard_sampler import ShardSampler

MakeOptimizer = Callable[[Iterator[nn.Parameter]], Any]


class DistillationModule(LightningModule):
    """``make_optimizer(parameters)`` gives what configure_optimizers may return. Logs ``loss``, its parts, ``val_loss``
    and ``val_top1``; subclass it for more.
    """

    def __init__(self, distillation: Distillation, make_optimizer: MakeOptimizer) -> None:
        super().__init__()
        self.distiller = distillation.distiller
        self._distillation = distillation
        self._make_optimizer = make_optimizer

    def forward(self, pixels: Tensor) -> Tensor:
        return self.distiller.predict(pixels)

    def training_step(self, item: tuple[dict[str, Any], SoftLabels], index: int) -> Tensor:
        batch, labels = item
        # Fractions of an epoch: settings that change in the course of it go by them.
        epoch = self.current_epoch + index / max(int(self.trainer.num_training_batches), 1)
        step = self._distillation.step(batch, labels, epoch=epoch, device=self.device)
        parts = self.distiller(self._distillation.pixels(batch, self.device), step)
        loss = torch.stack(list(parts.values())).sum()
        self.log_dict({f"loss/{name}": part for name, part in parts.items()}, batch_size=len(labels))
        self.log("loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        if not self.distiller.method.gives_classes:
            return  # vectors of the teacher's space: subclass it, and compare them as you need
        targets = self._distillation.targets(batch).to(self.device)
        logits = self(self._distillation.pixels(batch, self.device))
        known = targets != NO_TARGET
        figures = {
            "val_loss": hard_cross_entropy(logits, targets),
            "val_top1": (logits.argmax(dim=1) == targets)[known].float().mean().nan_to_num(),
        }
        self.log_dict(figures, prog_bar=True, sync_dist=True, batch_size=max(int(known.sum()), 1))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Left where it is: the teacher's crops are never needed there, and bytes are cheaper to move than floats."""
        return batch

    def on_train_epoch_start(self) -> None:
        # Lightning tells samplers which epoch comes, and no data set.
        loader = self.trainer.train_dataloader
        if isinstance(loader, LabelledLoader):
            loader.set_epoch(self.current_epoch)

    def configure_optimizers(self) -> Any:
        return self._make_optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)


class DistillationData(LightningDataModule):
    """``train``: a CropDataset; ``val``: a CenterCropDataset. ``batch_size``: images of one process. Every process has
    its own images. ``loader``: further arguments of the DataLoader (num_workers, pin_memory ...).
    """

    def __init__(
        self,
        distillation: Distillation,
        train: Dataset[Any],
        val: Dataset[Any] | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        **loader: Any,
    ) -> None:
        super().__init__()
        self._distillation, self._train, self._val = distillation, train, val
        self._batch_size, self._seed, self._options = batch_size, seed, loader

    def train_dataloader(self) -> LabelledLoader[dict[str, Any]]:
        # Lightning shards real DataLoaders only, and this one is wrapped: it is sharded here.
        trainer = self.trainer
        num_ranks, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
        check_processes(num_ranks)
        sampler = ShardSampler(self._train, rank=rank, num_ranks=num_ranks, seed=self._seed)
        collate = self._distillation.collate(seed=self._seed)
        loader = DataLoader(
            self._train,
            batch_size=self._batch_size,
            sampler=sampler,
            collate_fn=collate,
            drop_last=len(sampler) >= self._batch_size,
            **self._options,
        )
        return self._distillation.labelled(loader, kind=_LightningsLoader)

    def val_dataloader(self) -> Any:
        return DataLoader(self._val, batch_size=self._batch_size, **self._options) if self._val is not None else []


class _LightningsLoader(LabelledLoader[dict[str, Any]]):
    """Of a pass that was saved at its end nothing is left; Lightning begins the next one without saying so first."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["batches"] and state["batches"] == state["num_batches"]:
            self.set_epoch(int(state["epoch"]) + 1)
        else:
            super().load_state_dict(state)
