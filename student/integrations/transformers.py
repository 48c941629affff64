"""Distillation from a farm as a subclass of Hugging Face's Trainer.

    arguments = TrainingArguments("out", per_device_train_batch_size=64, remove_unused_columns=False)
    with connect("zmq://farm:7001", student=student, method="dkd") as distillation:
        DistillationTrainer(distillation, arguments, train_dataset=train, eval_dataset=val).train()

The Trainer shards, skips and saves as it always does; labels are asked for what comes out of its own loader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments

from teacherfarm.protos.soft_label import SoftLabels
from teacherfarm.student.integrations.distillation import Distillation, check_processes
from teacherfarm.student.losses import NO_TARGET, hard_cross_entropy


class DistillationTrainer(Trainer):
    """``train_dataset``: a CropDataset; ``eval_dataset``: a CenterCropDataset. A batch counts images, each of as many
    crops as the data set's schedule says. Saves the distiller: ``distillation.distiller.inference()`` is the finished
    student. ``options``: Trainer's own; ``compute_metrics`` is top-1 unless it is given.
    """

    def __init__(
        self,
        distillation: Distillation,
        args: TrainingArguments,
        *,
        train_dataset: Dataset[Any] | None = None,
        eval_dataset: Dataset[Any] | None = None,
        **options: Any,
    ) -> None:
        if args.remove_unused_columns:
            raise ValueError(
                "crops are no columns that a forward() names: TrainingArguments(..., remove_unused_columns=False)"
            )
        check_processes(args.world_size)
        self.distillation = distillation
        self._source: Iterator[dict[str, Any]] | None = None
        self._labelled: Iterator[dict[str, _Labelled]] = iter(())
        self._parts: dict[str, Tensor] = {}
        self._num_parts = 0
        given: dict[str, Any] = {
            "data_collator": _Collate(distillation, seed=args.seed),
            "compute_metrics": top1,
            **options,
        }
        super().__init__(distillation.distiller, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **given)
        self.can_return_loss = True

    def get_train_dataloader(self) -> Any:
        """The Trainer's own loader, its batches left on the CPU: the teacher's crops are never needed elsewhere."""
        loader = super().get_train_dataloader()
        loader.device = None
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Batches with their labels, asked ahead for the rest of the epoch."""
        if epoch_iterator is not self._source:
            # accelerate tells samplers which epoch comes and leaves out the data set where there is such a sampler.
            tell = getattr(self.train_dataset, "set_epoch", None)
            if callable(tell):
                tell(int(self.state.epoch or 0))
            self._source = epoch_iterator
            loader = self.distillation.labelled(epoch_iterator)
            self._labelled = ({"labelled": _Labelled(batch=batch, labels=labels)} for batch, labels in loader)
        return super().get_batch_samples(self._labelled, num_batches, device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum of the method's terms; their means are logged under their names."""
        one: _Labelled = inputs["labelled"]
        distillation, device = self.distillation, self.args.device
        step = distillation.step(one.batch, one.labels, epoch=self.state.epoch or 0.0, device=device)
        parts: dict[str, Tensor] = model(distillation.pixels(one.batch, device), step)
        for name, part in parts.items():
            self._parts[name] = self._parts.get(name, torch.zeros_like(part)) + part.detach()
        self._num_parts += 1
        loss = torch.stack(list(parts.values())).sum()
        return (loss, parts) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The finished student's logits against the data's own classes; no teacher is asked. Nothing where it has
        none.
        """
        device = self.args.device
        if not self.distillation.distiller.method.gives_classes:
            return None, None, None
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = self.distillation.distiller.predict(self.distillation.pixels(inputs, device))
            targets = self.distillation.targets(inputs).to(device)
            loss = hard_cross_entropy(logits, targets)
        return (loss, None, None) if prediction_loss_only else (loss, logits.float(), targets)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._num_parts and "loss" in logs:
            logs |= {f"loss_{name}": (total / self._num_parts).item() for name, total in self._parts.items()}
            self._parts, self._num_parts = {}, 0
        super().log(logs, start_time)


def top1(predictions: EvalPrediction) -> dict[str, float]:
    """Share of the crops with a class whose most probable class it is."""
    logits, targets = np.asarray(predictions.predictions), np.asarray(predictions.label_ids)
    known = targets != NO_TARGET
    return {"top1": float((logits.argmax(axis=1) == targets)[known].mean()) if known.any() else 0.0}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Labelled:
    """A batch on its way through the Trainer, which moves every tensor that it finds in a dict."""

    batch: Mapping[str, Any]
    labels: SoftLabels


class _Collate:
    """CropDataset's batches as the method wants them mixed, others as usual."""

    def __init__(self, distillation: Distillation, *, seed: int) -> None:
        self._mixed = distillation.collate(seed=seed)

    def __call__(self, items: Any) -> Any:
        if "keys" in items[0]:
            return self._mixed(items)
        return torch.utils.data.default_collate(items)
