"""DIST: relations between classes and between crops instead of exact probabilities (Huang et al., arXiv 2205.10536)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.losses import hard_cross_entropy
from teacherfarm.student.methods.across_ranks import gather_rows
from teacherfarm.student.methods.method import Asks, Method, MethodMismatch, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.needs import need_classes
from teacherfarm.student.methods.teacher_values import crop_weights, log_probabilities, weighted_mean, wide

EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class DISTSettings:
    """Defaults: the paper's code, CIFAR-100; ImageNet has temperature 1."""

    temperature: float = setting(4.0, "of teacher and student")
    inter_weight: float = setting(2.0, "factor of the term over the classes of each crop")
    intra_weight: float = setting(2.0, "factor of the term over the crops of each class")
    hard_weight: float = setting(1.0, "factor of the cross-entropy with the data's own labels")


class DIST(Method):
    """One minus Pearson's correlation of student and teacher: over classes for each crop, over crops for each class.

    The second one is over the crops of all ranks, so that a run does not depend on how many there are; the paper's code
    takes each rank's own.
    """

    name = "dist"
    about = "correlations over classes and over the batch, instead of exact probabilities"
    paper = "Huang et al., Knowledge Distillation from A Stronger Teacher, arXiv 2205.10536"
    Settings = DISTSettings
    settings: DISTSettings

    @classmethod
    def asks(cls, settings: DISTSettings, setup: Setup) -> Asks:
        need_classes(cls.name, setup, temperature=settings.temperature)
        if setup.batch_size == 1:
            raise MethodMismatch("dist correlates the crops of a batch, and batches have one crop: use larger batches")
        return Asks(spec=LabelSpec(), targets=settings.hard_weight > 0)

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        settings, logits = self.settings, outputs.logits
        with torch.autocast(logits.device.type, enabled=False):
            student = functional.softmax(wide(logits) / settings.temperature, dim=1)
            teacher = functional.softmax(log_probabilities(step, logits) / settings.temperature, dim=1)
            inter = weighted_mean(1 - correlations(student, teacher), step, logits)
            intra = _intra(student, teacher, crop_weights(step, logits))
            squared = settings.temperature**2
            parts = {"inter": settings.inter_weight * squared * inter, "intra": settings.intra_weight * squared * intra}
        if settings.hard_weight:
            parts["ce"] = settings.hard_weight * hard_cross_entropy(logits, step.targets)
        return parts


def correlations(one: Tensor, other: Tensor, weight: Tensor | None = None) -> Tensor:
    """Pearson's correlation of each row [N, D] with the same row of the other [N]; ``weight``: of each column [D]."""
    weight = torch.ones_like(one[0]) if weight is None else weight
    share = weight / weight.sum().clamp(min=EPSILON)
    # The root of the weight in both factors: a norm has a gradient at 0, a root of a variance has none.
    one, other = ((rows - (rows * share).sum(dim=1, keepdim=True)) * weight.sqrt() for rows in (one, other))
    norms: Tensor = torch.linalg.vector_norm(one, dim=1) * torch.linalg.vector_norm(other, dim=1)
    return (one * other).sum(dim=1) / (norms + EPSILON)


def _intra(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """The same on every rank, which is what DDP's average of gradients wants of it; 0 where no crop counts."""
    student, teacher, weight = gather_rows(student), gather_rows(teacher), gather_rows(weight)
    return (1 - correlations(student.T, teacher.T, weight)).mean() * (weight.sum() > 0)
