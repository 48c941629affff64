"""Knowledge distillation on logits (Hinton, Vinyals and Dean, arXiv 1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.losses import hard_cross_entropy, kd_divergence
from teacherfarm.student.methods.method import Asks, Method, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.needs import need_classes


@dataclass(frozen=True, kw_only=True)
class KDSettings:
    """Defaults: the SimKD toolbox (arXiv 2203.14001), CIFAR-100."""

    temperature: float = setting(4.0, "of teacher and student")
    hard_weight: float = setting(1.0, "factor of the cross-entropy with the data's own labels")
    soft_weight: float = setting(1.0, "factor of T^2 KL(teacher || student); 0: the student alone, no teacher is asked")


class KD(Method):
    """Cross-entropy with the data's labels plus T^2 KL(teacher || student) at temperature T."""

    name = "kd"
    about = "soft labels at a temperature beside the data's own"
    paper = "Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, arXiv 1503.02531"
    Settings = KDSettings
    settings: KDSettings

    @classmethod
    def asks(cls, settings: KDSettings, setup: Setup) -> Asks:
        need_classes(cls.name, setup, temperature=settings.temperature)
        if settings.soft_weight == 0 and settings.hard_weight == 0:
            raise ValueError("kd learns nothing with a soft and a hard weight of 0")
        return Asks(spec=LabelSpec() if settings.soft_weight else None, targets=settings.hard_weight > 0)

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        return logit_terms(self.settings, outputs, step)


def logit_terms(settings: KDSettings, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
    """The parts "kd" and "ce", each where it counts."""
    parts = {}
    if settings.soft_weight:
        assert step.labels is not None
        soft = kd_divergence(outputs.logits, step.labels, settings.temperature, t_squared=True)
        parts["kd"] = settings.soft_weight * soft
    if settings.hard_weight:
        parts["ce"] = settings.hard_weight * hard_cross_entropy(outputs.logits, step.targets)
    return parts
