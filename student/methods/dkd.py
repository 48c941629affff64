"""Decoupled knowledge distillation (Zhao et al., arXiv 2203.08679)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.losses import NO_TARGET, hard_cross_entropy, mean_over_crops
from teacherfarm.student.methods.method import Asks, Method, MethodMismatch, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.needs import need_classes
from teacherfarm.student.methods.teacher_values import crop_weights, log_probabilities, wide


@dataclass(frozen=True, kw_only=True)
class DKDSettings:
    """Defaults: the paper's code, CIFAR-100. Its ``beta`` differs from pair to pair: 2, 6 or 8."""

    temperature: float = setting(4.0, "of teacher and student")
    alpha: float = setting(1.0, "factor of the target class's term")
    beta: float = setting(8.0, "factor of the other classes' term")
    hard_weight: float = setting(1.0, "factor of the cross-entropy with the data's own labels")
    warm_up_epochs: float = setting(20.0, "epochs over which both terms grow from nothing, evenly")


class DKD(Method):
    """KL of "the target class or another" and KL among the other classes, each with a factor of its own."""

    name = "dkd"
    about = "the target class and the others apart, each with its own factor"
    paper = "Zhao et al., Decoupled Knowledge Distillation, arXiv 2203.08679"
    Settings = DKDSettings
    settings: DKDSettings

    @classmethod
    def asks(cls, settings: DKDSettings, setup: Setup) -> Asks:
        need_classes(cls.name, setup, temperature=settings.temperature)
        if setup.card.num_classes < 2:
            raise MethodMismatch(f"dkd parts the target class from others, teacher {setup.card.name!r} has one class")
        return Asks(spec=LabelSpec(), targets=True)

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        settings, logits = self.settings, outputs.logits
        warm = min(step.epoch / settings.warm_up_epochs, 1.0) if settings.warm_up_epochs else 1.0
        with torch.autocast(logits.device.type, enabled=False):
            teacher = log_probabilities(step, logits)
            target, others = decoupled_divergences(wide(logits), teacher, step.targets, settings.temperature)
            weight = crop_weights(step, logits) * (step.targets != NO_TARGET)
            parts = {
                "tckd": warm * settings.alpha * mean_over_crops(target, weight, logits),
                "nckd": warm * settings.beta * mean_over_crops(others, weight, logits),
            }
        if settings.hard_weight:
            parts["ce"] = settings.hard_weight * hard_cross_entropy(logits, step.targets)
        return parts


def decoupled_divergences(
    student: Tensor, teacher: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """T^2 KL(teacher || student) of (target, not target) and among the classes that are not the target, each [N].

    ``student``, ``teacher``: logits [N, C]; ``targets``: class numbers [N], where unknown the first class stands in.
    """
    known = torch.where(targets == NO_TARGET, 0, targets)
    is_target = functional.one_hot(known, student.shape[1]).bool()
    (target_s, rest_s, others_s), (target_t, rest_t, others_t) = (
        _decoupled(functional.log_softmax(logits / temperature, dim=1), is_target) for logits in (student, teacher)
    )
    binary = target_t.exp() * (target_t - target_s) + rest_t.exp() * (rest_t - rest_s)
    among = (others_t.exp() * (others_t - others_s)).sum(dim=1)
    return temperature**2 * binary, temperature**2 * among


def _decoupled(log_p: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithms of p(target) [N], p(not target) [N], and p(class | not target) [N, C], where the target's is 0."""
    rest = log_p.masked_fill(is_target, -torch.inf).logsumexp(dim=1)
    return log_p[is_target], rest, (log_p - rest.unsqueeze(1)).masked_fill(is_target, 0)
