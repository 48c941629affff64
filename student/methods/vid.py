"""Variational information distillation: the teacher's maps are likely given the student's (arXiv 1904.05835)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from teacherfarm.student.methods.beside_logits import asks_beside_logits
from teacherfarm.student.methods.kd import KDSettings, logit_terms
from teacherfarm.student.methods.method import Asks, Method, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.teacher_maps import TeacherMap, paired_stages, pool, pooled_map
from teacherfarm.student.methods.teacher_values import weighted_mean, wide


@dataclass(frozen=True, kw_only=True)
class VIDSettings(KDSettings):
    """Defaults: the SimKD toolbox (arXiv 2203.14001), CIFAR-100."""

    information_weight: float = setting(1.0, "factor of the negative log-likelihood, summed over stages")
    first_variance: float = setting(5.0, "each channel's variance at the begin")
    least_variance: float = setting(1e-5, "added to each channel's variance")


class VID(Method):
    """A Gaussian per stage: its mean regressed from the student's map, its variance learned for each channel."""

    name = "vid"
    about = "every stage predicts the teacher's map, with a learned variance for each channel"
    paper = "Ahn et al., Variational Information Distillation for Knowledge Transfer, arXiv 1904.05835"
    Settings = VIDSettings
    settings: VIDSettings

    def __init__(self, settings: VIDSettings, setup: Setup) -> None:
        super().__init__(settings, setup)
        pairs = _pairs(setup)
        self.pairs = [(tap, teacher) for tap, _, teacher in pairs]
        self.means = nn.ModuleList(_regressor(channels, teacher.shape[0]) for _, channels, teacher in pairs)
        raw = math.log(math.expm1(settings.first_variance - settings.least_variance))
        self.variances = nn.ParameterList(torch.full((teacher.shape[0],), raw) for _, _, teacher in pairs)

    @classmethod
    def asks(cls, settings: VIDSettings, setup: Setup) -> Asks:
        if settings.first_variance <= settings.least_variance or settings.least_variance < 0:
            raise ValueError(
                f"vid: first_variance={settings.first_variance:g} must lie above "
                f"least_variance={settings.least_variance:g}, and that not below 0"
            )
        return asks_beside_logits(cls.name, settings, setup, [teacher.output for _, _, teacher in _pairs(setup)])

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        total = []
        for (tap, teacher), mean, raw in zip(self.pairs, self.means, self.variances, strict=True):
            maps = outputs.features[tap]
            with torch.autocast(maps.device.type, enabled=False):
                guess = mean(pool(wide(maps), teacher.shape[1], teacher.shape[2]))
                variance = (functional.softplus(raw) + self.settings.least_variance).view(1, -1, 1, 1)
                error = (guess - teacher.take(step, guess)).square() / variance + variance.log()
                total.append(weighted_mean(0.5 * error.flatten(1).mean(dim=1), step, guess))
        information = self.settings.information_weight * torch.stack(total).sum()
        return {"information": information, **logit_terms(self.settings, outputs, step)}


def _pairs(setup: Setup) -> list[tuple[str, int, TeacherMap]]:
    """The student's tap, its channels and the teacher's map of each stage; both averaged to the smaller size."""
    return [(tap, shape[0], pooled_map(setup, stage, shape[1], shape[2])) for tap, shape, stage in paired_stages(setup)]


def _regressor(channels: int, wanted: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, wanted, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(wanted, wanted, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(wanted, wanted, 1, bias=False),
    )
