"""Knowledge distillation from teachers of independent classes, of which a crop may show several (multi-label)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.losses import sigmoid_cross_entropy
from teacherfarm.student.methods.method import Asks, Method, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.needs import need_classes


@dataclass(frozen=True, kw_only=True)
class SigmoidKDSettings:
    """No paper fixes these."""

    temperature: float = setting(1.0, "of teacher and student")
    t_squared: bool = setting(True, "multiply by T^2, so that gradients keep their size over temperatures")


class SigmoidKD(Method):
    """Cross-entropy of sigmoid(z / T) for each class, averaged over classes; no labels of the data's own."""

    name = "sigmoid-kd"
    about = "each class by itself, for teachers of several classes at once (multi-label)"
    paper = "Hinton, Vinyals and Dean, arXiv 1503.02531, for each class as a choice between two"
    Settings = SigmoidKDSettings
    settings: SigmoidKDSettings

    @classmethod
    def asks(cls, settings: SigmoidKDSettings, setup: Setup) -> Asks:
        need_classes(cls.name, setup, "sigmoid", temperature=settings.temperature)
        return Asks(spec=LabelSpec())

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        assert step.labels is not None
        factor = self.settings.temperature**2 if self.settings.t_squared else 1.0
        return {"kd": factor * sigmoid_cross_entropy(outputs.logits, step.labels, self.settings.temperature)}
