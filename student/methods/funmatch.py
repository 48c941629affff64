"""FunMatch: a patient and consistent teacher (Beyer et al., arXiv 2106.05237)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.losses import kd_divergence
from teacherfarm.student.methods.method import Asks, Method, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.needs import need_classes


@dataclass(frozen=True, kw_only=True)
class FunMatchSettings:
    """Defaults: the paper's code, ImageNet."""

    temperature: float = setting(1.0, "of teacher and student; the paper tries 1, 2, 5 and 10 on small data sets")
    mixup: bool = setting(True, "blend each crop with its neighbour before teacher and student see it")


class FunMatch(Method):
    """T^2 KL(teacher || student) on the very pixels that both see: fresh crops in every epoch, always mixed up.

    Several teachers are one ensemble: the paper sums their divergences, whose gradient is that of their mean.
    """

    name = "funmatch"
    about = "consistent teaching: both see the same fresh, mixed crops, for very long"
    paper = "Beyer et al., Knowledge distillation: A good teacher is patient and consistent, arXiv 2106.05237"
    Settings = FunMatchSettings
    settings: FunMatchSettings

    @classmethod
    def asks(cls, settings: FunMatchSettings, setup: Setup) -> Asks:
        need_classes(cls.name, setup, temperature=settings.temperature)
        if not settings.mixup:
            return Asks(spec=LabelSpec(), fresh=True)
        return Asks(spec=LabelSpec(), fresh=True, mixing="crops", draw="funmatch")

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        assert step.labels is not None
        return {"kd": kd_divergence(outputs.logits, step.labels, self.settings.temperature, t_squared=True)}
