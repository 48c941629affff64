"""FitNet's hints: one of the student's stages learns to regress one of the teacher's (arXiv 1412.6550)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from teacherfarm.student.methods.beside_logits import asks_beside_logits
from teacherfarm.student.methods.kd import KDSettings, logit_terms
from teacherfarm.student.methods.method import Asks, Method, MethodMismatch, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.needs import need_several_values
from teacherfarm.student.methods.teacher_maps import (
    TeacherMap,
    find_map,
    paired_stages,
    pooled_map,
    whole_map,
)
from teacherfarm.student.methods.teacher_values import weighted_mean, wide


@dataclass(frozen=True, kw_only=True)
class FitNetSettings(KDSettings):
    """Defaults: the SimKD toolbox (arXiv 2203.14001), CIFAR-100, which trains all terms together."""

    hint_weight: float = setting(100.0, "factor of the squared error at the hint")
    stage: int = setting(1, "which of the stages is the hint, counted from 1")


class FitNet(Method):
    """Mean squared error between a regressor on the student's stage and the teacher's map.

    The regressor's batch normalisation takes each rank's own statistics, as the student's own does.
    """

    name = "fitnet"
    about = "one stage regresses the teacher's map"
    paper = "Romero et al., FitNets: Hints for Thin Deep Nets, arXiv 1412.6550"
    Settings = FitNetSettings
    settings: FitNetSettings

    def __init__(self, settings: FitNetSettings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.tap, shape, self.teacher, pooled = _hint(settings, setup)
        self.regressor = nn.Sequential(
            _regress(shape, self.teacher, pooled), nn.BatchNorm2d(self.teacher.shape[0]), nn.ReLU()
        )

    @classmethod
    def asks(cls, settings: FitNetSettings, setup: Setup) -> Asks:
        teacher = _hint(settings, setup)[2]
        need_several_values(cls.name, setup, places=teacher.shape[1] * teacher.shape[2])
        return asks_beside_logits(cls.name, settings, setup, [teacher.output])

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        maps = outputs.features[self.tap]
        with torch.autocast(maps.device.type, enabled=False):
            guess = self.regressor(wide(maps))
            error = (guess - self.teacher.take(step, guess)).square().flatten(1).mean(dim=1)
            hint = weighted_mean(error, step, guess)
        return {"hint": self.settings.hint_weight * hint, **logit_terms(self.settings, outputs, step)}


def _hint(settings: FitNetSettings, setup: Setup) -> tuple[str, tuple[int, ...], TeacherMap, bool]:
    """The student's tap, its shape, the teacher's map, and whether that is pooled to the student's size: where the
    student's is smaller, but not by half.
    """
    pairs = paired_stages(setup)
    if not 1 <= settings.stage <= len(pairs):
        raise MethodMismatch(
            f"fitnet: stage={settings.stage} of {len(pairs)} that student and teacher have: name one from 1 on"
        )
    tap, shape, stage = pairs[settings.stage - 1]
    whole = find_map(setup, stage)
    if whole is None:
        return tap, shape, pooled_map(setup, stage, shape[1], shape[2]), True
    if whole.shape[1:] == (2 * shape[1], 2 * shape[2]):
        return tap, shape, whole_map(setup, stage), False
    if (shape[1] >= whole.shape[1]) != (shape[2] >= whole.shape[2]):
        raise MethodMismatch(
            f"fitnet cannot align {tap!r} {list(shape)} of the student with {stage!r} {list(whole.shape)} of the "
            "teacher, larger in one direction and smaller in the other: choose other stages"
        )
    return tap, shape, pooled_map(setup, stage, shape[1], shape[2]), shape[1] < whole.shape[1]


def _regress(student: tuple[int, ...], teacher: TeacherMap, pooled: bool) -> nn.Module:
    """The convolution that brings a map [C, H, W] of the student to the teacher's shape."""
    (channels, height, width), (wanted, high, broad) = student, teacher.shape
    if pooled:
        return nn.Conv2d(channels, wanted, kernel_size=3, padding=1)
    if (height, width) == (2 * high, 2 * broad):
        return nn.Conv2d(channels, wanted, kernel_size=3, stride=2, padding=1)
    if (2 * height, 2 * width) == (high, broad):
        return nn.ConvTranspose2d(channels, wanted, kernel_size=4, stride=2, padding=1)
    return nn.Conv2d(channels, wanted, kernel_size=(1 + height - high, 1 + width - broad))
