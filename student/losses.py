"""Distillation losses on soft labels: plain functions, computed in float32 (float64 stays) with autocast off.

Every loss is a weighted mean over crops: the sum of ``labels.weight * loss`` divided by the sum of the weights. Under
DistributedDataParallel the weights are summed over all ranks and the loss is multiplied by the number of ranks, so that
the gradient that DDP averages is the gradient of the global mean, however the unanswered crops are spread; one rank's
loss is then no mean of its own, but the mean over ranks is the global loss. This happens when a process group exists
and the logits need a gradient; every rank must then call the loss in every step. No weight at all gives a loss of 0
that still has a graph. Knows nothing of clients and loaders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from teacherfarm.protos.faults import TemperatureMismatch, UnknownOutput, WrongBatchSize

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray
    from torch.distributed import ProcessGroup

    from teacherfarm.protos.soft_label import Completion, SoftLabels

NO_TARGET = -100
"""A hard target that counts nothing (torch's own ``ignore_index``), for example of an image that could not be read."""


def soft_cross_entropy(
    logits: Tensor,
    labels: SoftLabels | Tensor,
    temperature: float = 1.0,
    *,
    completion: Completion = "smoothing",
    hard_fallback: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Cross-entropy of the student's softmax(logits / T) under the teacher's distribution at T; no hidden T**2.

    FKD's loss (Shen and Xing, arXiv 2112.01528) at T = 1. ``labels`` may be a tensor [N, C] of target distributions
    (mixed labels, say), whose rows then count equally. Top-k labels are completed by ``completion`` (FKD's marginal
    smoothing, or "renorm") without building [N, C] targets, and take the temperature they were cut at only.
    ``hard_fallback``: class numbers [N], used with weight 1 for the crops that have weight 0 (NO_TARGET: still none).
    """
    with torch.autocast(logits.device.type, enabled=False):
        per_crop = soft_cross_entropy_of_each(logits, labels, temperature, completion=completion)
        per_crop, weight = _fall_back(per_crop, _weight(labels, per_crop), logits, hard_fallback)
        return mean_over_crops(per_crop, weight, logits, group)


def soft_cross_entropy_of_each(
    logits: Tensor, labels: SoftLabels | Tensor, temperature: float = 1.0, *, completion: Completion = "smoothing"
) -> Tensor:
    """What :func:`soft_cross_entropy` averages: the loss of each crop [N], whatever its weight."""
    with torch.autocast(logits.device.type, enabled=False):
        log_q = _student(logits, temperature)
        return -_target(labels, log_q, temperature, completion).expected(log_q)


def kd_divergence(
    logits: Tensor,
    labels: SoftLabels | Tensor,
    temperature: float,
    *,
    t_squared: bool,
    completion: Completion = "smoothing",
    hard_fallback: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """KL(teacher at T || student at T), times T**2 where ``t_squared`` (Hinton, Vinyals and Dean, arXiv 1503.02531).

    T**2 keeps the gradient's size comparable over temperatures when a hard-label term stands beside it; which papers
    use it differs, so the caller says. The other arguments are :func:`soft_cross_entropy`'s.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_q = _student(logits, temperature)
        target = _target(labels, log_q, temperature, completion)
        divergence = (target.negative_entropy() - target.expected(log_q)) * (temperature**2 if t_squared else 1.0)
        per_crop, weight = _fall_back(divergence, _weight(labels, log_q), logits, hard_fallback)
        return mean_over_crops(per_crop, weight, logits, group)


def sigmoid_cross_entropy(
    logits: Tensor,
    labels: SoftLabels | Tensor,
    temperature: float = 1.0,
    *,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Binary cross-entropy of each class, averaged over classes, for teachers of independent (multi-label) classes.

    Each class is a two-way distribution distilled as in arXiv 1503.02531: sigmoid(z / T) on both sides, no hidden T**2.
    A tensor of ``labels`` holds the teacher's probabilities [N, C].
    """
    with torch.autocast(logits.device.type, enabled=False):
        scaled = _wide(logits) / temperature
        if isinstance(labels, Tensor):
            target = labels.to(scaled)
        else:
            _check(labels, logits)
            if labels.activation != "sigmoid":
                raise UnknownOutput("this teacher's classes exclude each other (softmax): use soft_cross_entropy")
            target = torch.sigmoid(_tensor(labels.logits, logits.device).to(scaled.dtype) / temperature)
        per_crop = functional.binary_cross_entropy_with_logits(scaled, target, reduction="none").mean(dim=1)
        return mean_over_crops(per_crop, _weight(labels, per_crop), logits, group)


def hard_cross_entropy(logits: Tensor, targets: Tensor, *, group: ProcessGroup | None = None) -> Tensor:
    """Plain cross-entropy with class numbers [N]; NO_TARGET counts nothing. Averaged over ranks like the others."""
    with torch.autocast(logits.device.type, enabled=False):
        return mean_over_crops(*_hard(logits, targets), logits, group)


def with_hard_labels(
    soft_loss: Tensor,
    logits: Tensor,
    targets: Tensor,
    *,
    hard_weight: float,
    group: ProcessGroup | None = None,
) -> Tensor:
    """(1 - hard_weight) * soft_loss + hard_weight * cross-entropy with ``targets``: both terms of arXiv 1503.02531."""
    if not 0 <= hard_weight <= 1:
        raise ValueError(f"hard_weight is a share from 0 to 1, got {hard_weight}")
    if hard_weight == 0:
        return soft_loss
    return (1 - hard_weight) * soft_loss + hard_weight * hard_cross_entropy(logits, targets, group=group)


def mean_over_crops(per_crop: Tensor, weight: Tensor, like: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """The weighted mean of ``per_crop`` [N] over the crops of all ranks, as this module says; for losses of one's own.

    ``like``: what needs the gradient, the student's logits or features. Does not wait for the device.
    """
    num_ranks, total = 1, weight.sum()
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and like.requires_grad:
        num_ranks = torch.distributed.get_world_size(group)
        torch.distributed.all_reduce(total, group=group)
    share = torch.where(total > 0, num_ranks / total, torch.zeros_like(total))
    return (per_crop * weight).sum() * share


@dataclass(frozen=True, kw_only=True)
class _Target:
    """Target distributions [N, C], or of k classes [N, k] and of each of the ``num_others`` remaining ones [N]."""

    log_p: Tensor
    classes: Tensor | None = None
    log_rest: Tensor | None = None
    num_others: int = 0

    def expected(self, log_q: Tensor) -> Tensor:
        """Sum over classes of p * log q, for each crop [N]."""
        if self.classes is None:
            return (self.log_p.exp() * log_q).sum(dim=1)
        kept = log_q.gather(1, self.classes)
        total = (self.log_p.exp() * kept).sum(dim=1)
        if self.log_rest is None:
            return total
        return total + self.log_rest.exp() * (log_q.sum(dim=1) - kept.sum(dim=1))

    def negative_entropy(self) -> Tensor:
        """Sum over classes of p * log p, for each crop [N]; a class without mass adds nothing."""
        total = _p_log_p(self.log_p).sum(dim=1)
        return total if self.log_rest is None else total + self.num_others * _p_log_p(self.log_rest)


def _target(labels: SoftLabels | Tensor, log_q: Tensor, temperature: float, completion: Completion) -> _Target:
    if isinstance(labels, Tensor):
        if labels.shape != log_q.shape:
            raise WrongBatchSize(f"targets are {list(labels.shape)}, the student's logits {list(log_q.shape)}")
        return _Target(log_p=labels.to(log_q).log())
    _check(labels, log_q)
    if labels.activation == "sigmoid":
        raise UnknownOutput("this teacher's classes are independent (sigmoid): use sigmoid_cross_entropy")
    if not labels.is_top_k:
        log_p = _tensor(labels.log_probabilities, log_q.device).to(log_q.dtype)
        return _Target(log_p=functional.log_softmax(log_p / labels.divisor(temperature), dim=1))
    if temperature != labels.spec.temperature:
        raise TemperatureMismatch(
            f"these top-{labels.spec.top_k} labels were cut at temperature {labels.spec.temperature:g}, the "
            f"loss is asked at {temperature:g}: pass temperature={labels.spec.temperature:g}, ask the "
            f"teacher for LabelSpec(top_k={labels.spec.top_k}, temperature={temperature:g}), or for dense "
            "labels"
        )
    classes = _tensor(labels.classes.astype(np.int64), log_q.device)
    log_p = _tensor(labels.log_probabilities, log_q.device).to(log_q.dtype)
    num_others = labels.num_classes - labels.spec.top_k
    mass = log_p.exp().sum(dim=1)
    if completion == "renorm" or num_others == 0:
        return _Target(log_p=log_p - mass.log().unsqueeze(1), classes=classes)
    if completion != "smoothing":
        raise ValueError(f"completion is 'smoothing' or 'renorm', got {completion!r}")
    rest = (1 - mass).clamp(min=0) / num_others
    return _Target(log_p=log_p, classes=classes, log_rest=rest.log(), num_others=num_others)


def _p_log_p(log_p: Tensor) -> Tensor:
    p = log_p.exp()
    return torch.where(p > 0, p * log_p, torch.zeros_like(p))


def _student(logits: Tensor, temperature: float) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return functional.log_softmax(_wide(logits) / temperature, dim=1)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _check(labels: SoftLabels, logits: Tensor) -> None:
    if logits.ndim != 2 or len(labels) != len(logits):
        raise WrongBatchSize(f"{len(labels)} soft labels for logits {list(logits.shape)}: each crop needs its own row")
    if logits.shape[1] != labels.num_classes:
        raise ValueError(
            f"the student has {logits.shape[1]} classes and the teacher {labels.num_classes}: "
            f"give the student num_classes={labels.num_classes}, in the teacher's class order"
        )


def _tensor(values: NDArray[Any], device: torch.device) -> Tensor:
    """An array from a label record on the device; torch refuses to view what is read-only or unaligned."""
    fit = values.flags.writeable and values.flags.c_contiguous and values.flags.aligned
    return torch.from_numpy(values if fit else np.array(values)).to(device, non_blocking=True)


def _weight(labels: SoftLabels | Tensor, like: Tensor) -> Tensor:
    if isinstance(labels, Tensor):
        return torch.ones(len(like), device=like.device, dtype=like.dtype)
    return _tensor(labels.weight, like.device).to(like.dtype)


def _hard(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy with class numbers and its weight, for each crop."""
    per_crop = functional.cross_entropy(_wide(logits), targets, ignore_index=NO_TARGET, reduction="none")
    return per_crop, (targets != NO_TARGET).to(per_crop.dtype)


def _fall_back(per_crop: Tensor, weight: Tensor, logits: Tensor, hard_fallback: Tensor | None) -> tuple[Tensor, Tensor]:
    if hard_fallback is None:
        return per_crop, weight
    hard, hard_counts = _hard(logits, hard_fallback)
    return torch.where(weight == 0, hard, per_crop), torch.where(weight == 0, hard_counts, weight)
