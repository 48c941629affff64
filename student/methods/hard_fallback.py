"""The data's own labels for crops that the teacher left without an answer, whatever the method."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from teacherfarm.student.losses import NO_TARGET, hard_cross_entropy
from teacherfarm.student.methods.method import Step
from teacherfarm.student.methods.teacher_values import crop_weights


def with_hard_fallback(parts: Mapping[str, Tensor], logits: Tensor, step: Step) -> dict[str, Tensor]:
    """The loss as a mean over answered and unanswered crops of all ranks: the latter by cross-entropy with their class.

    ``logits``: those of the finished model. Crops without a class count nothing, as before.
    """
    weight = crop_weights(step, logits)
    missing = (weight == 0) & (step.targets != NO_TARGET)
    counts = torch.stack([weight.sum(), missing.to(weight.dtype).sum()])
    if torch.distributed.is_available() and torch.distributed.is_initialized() and logits.requires_grad:
        torch.distributed.all_reduce(counts)
    share = counts[1] / counts.sum().clamp(min=torch.finfo(counts.dtype).tiny)
    hard = hard_cross_entropy(logits, torch.where(missing, step.targets, NO_TARGET))
    return {name: (1 - share) * part for name, part in parts.items()} | {"hard fallback": share * hard}
