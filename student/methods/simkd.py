"""SimKD: the student's last map is projected onto the teacher's, and classified by the teacher's own last layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.methods.frozen import eval_where_still, train_only
from teacherfarm.student.methods.heads import need_head, take_head
from teacherfarm.student.methods.method import Asks, Method, MethodMismatch, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.needs import need_several_values
from teacherfarm.student.methods.reused_head import Projection, ReusedHead
from teacherfarm.student.methods.teacher_maps import TeacherMap, pooled_map, teacher_stages
from teacherfarm.student.methods.teacher_values import weighted_mean, wide


@dataclass(frozen=True, kw_only=True)
class SimKDSettings:
    """Defaults: the paper's toolbox, without terms on logits."""

    factor: int = setting(2, "the projector's middle has the teacher's channels divided by this; the paper: 2, 4, 8")
    map_weight: float = setting(1.0, "factor of the squared error between the projected map and the teacher's")


class SimKD(Method):
    """Mean squared error of a projector's output to the teacher's last map, both averaged to the smaller size.

    The student's own classifier is not trained. Its logits, in training and afterwards: backbone, projector, global
    average, the teacher's classifier; so the teacher's classifier must take its last map's global average.
    """

    name = "simkd"
    about = "the last map is projected onto the teacher's and classified by the teacher's own last layer"
    paper = "Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022, arXiv 2203.14001"
    Settings = SimKDSettings
    settings: SimKDSettings

    def __init__(self, settings: SimKDSettings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.tap, shape, self.teacher = _last(setup)
        channels, height, width = self.teacher.shape
        self.projection = Projection(
            taken=shape[0],
            given=channels,
            factor=settings.factor,
            size=(height, width),
            classifier=take_head(self.name, setup, channels).layer(),
        )

    @classmethod
    def asks(cls, settings: SimKDSettings, setup: Setup) -> Asks:
        _, _, teacher = _last(setup)
        if not 1 <= settings.factor <= teacher.shape[0]:
            raise ValueError(f"simkd: factor={settings.factor} of {teacher.shape[0]} channels: 2, 4 or 8 are usual")
        need_several_values(cls.name, setup, places=teacher.shape[1] * teacher.shape[2])
        need_head(cls.name, setup, teacher.shape[0])
        if setup.card.feature(teacher.output).averages_to_embedding is False:
            raise MethodMismatch(
                f"simkd: the classifier of {setup.card.name!r} takes something else than the average of "
                f"{teacher.output!r}: export its map behind the last layer before pooling (--tap) and name that as the "
                "last of --teacher-taps"
            )
        return Asks(spec=LabelSpec(outputs=(teacher.output,)), head=True)

    def enter(self, phase: int, student: nn.Module) -> None:
        """What lies behind the last map gets no gradient, and DDP waits for none."""
        if behind := self.setup.student.parameters.get(self.tap):
            train_only(student, behind)

    def keep_frozen(self, student: nn.Module) -> None:
        eval_where_still(student)

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        maps = outputs.features[self.tap]
        with torch.autocast(maps.device.type, enabled=False):
            projected = self.projection.maps(wide(maps))
            error = (projected - self.teacher.take(step, projected)).square().flatten(1).mean(dim=1)
            return {"map": self.settings.map_weight * weighted_mean(error, step, projected)}

    def predict(self, outputs: StudentOutputs) -> Tensor:
        maps = outputs.features[self.tap]
        with torch.autocast(maps.device.type, enabled=False):
            logits: Tensor = self.projection(wide(maps))
        return logits

    def inference(self, student: nn.Module) -> nn.Module:
        return ReusedHead(student, self.tap, copy.deepcopy(self.projection))

    def inference_plan(self) -> dict[str, Any]:
        return {"tap": self.tap, "projection": self.projection.plan()}

    @classmethod
    def rebuild(cls, student: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
        return ReusedHead(student, plan["tap"], Projection.of(plan["projection"]))


def _last(setup: Setup) -> tuple[str, tuple[int, ...], TeacherMap]:
    """The student's last tap, its shape, and the teacher's last map at the smaller of both sizes."""
    tap, shape = list(setup.student_maps().items())[-1]
    return tap, shape, pooled_map(setup, teacher_stages(setup)[-1], shape[1], shape[2])
