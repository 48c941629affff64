"""Fast knowledge distillation: soft labels alone, in five forms, of several crops of each image (arXiv 2112.01528)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacherfarm.student.methods.label_forms import (
    FORMS,
    MIXES,
    LabelForm,
    asks_mixed,
    mean_under_mix,
)
from teacherfarm.student.methods.method import Asks, Method, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.needs import need_classes
from teacherfarm.student.methods.teacher_values import crop_weights, wide


@dataclass(frozen=True, kw_only=True)
class FKDSettings:
    """Defaults: the authors' recommended labels, the five best classes with marginal smoothing at temperature 1."""

    form: str = setting("marginal-smoothing", "what of each label is kept, and where the rest goes", choices=FORMS)
    top_k: int = setting(5, "classes that the marginal forms keep")
    temperature: float = setting(1.0, "of the teacher's labels")
    student_temperature: float = setting(1.0, "of the student; no T^2 factor")
    mix: str = setting("none", "how the student's crops and their labels are mixed", choices=MIXES)
    teacher_sees_mix: bool = setting(False, "ask the teacher for labels of the mixed crops instead of mixing labels")


class FKD(Method):
    """Cross-entropy of the student under the teacher's labels, and no other term."""

    name = "fkd"
    about = "soft labels alone, recorded or streamed, of several crops of each image"
    paper = "Shen and Xing, A Fast Knowledge Distillation Framework for Visual Recognition, arXiv 2112.01528"
    Settings = FKDSettings
    settings: FKDSettings

    def __init__(self, settings: FKDSettings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.form = _form(settings)

    @classmethod
    def asks(cls, settings: FKDSettings, setup: Setup) -> Asks:
        need_classes(cls.name, setup, temperature=settings.temperature)
        asks = Asks(spec=_form(settings).spec)
        return asks_mixed(settings.mix, setup, asks, teacher_sees_it=settings.teacher_sees_mix)

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        assert step.labels is not None
        form, settings = self.form, self.settings
        labels = form.cut(step.labels, self.setup.card)
        with torch.autocast(outputs.logits.device.type, enabled=False):
            logits = wide(outputs.logits)
            weight = crop_weights(step, logits)

            def under(rows: NDArray[np.int64] | slice) -> tuple[Tensor, Tensor]:
                return form.cross_entropy(logits, labels.take(rows), settings.student_temperature), weight[rows]

            return {"soft": mean_under_mix(under, outputs, None if settings.teacher_sees_mix else step.mix)}


def _form(settings: FKDSettings) -> LabelForm:
    if not settings.student_temperature > 0:
        raise ValueError(f"student_temperature must be positive, got {settings.student_temperature}")
    return LabelForm.of(settings.form, settings.top_k, settings.temperature)
