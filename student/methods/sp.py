"""Similarity-preserving distillation: which crops of a batch are alike (arXiv 1907.09682)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from teacherfarm.student.methods.across_ranks import gather_rows
from teacherfarm.student.methods.beside_logits import asks_beside_logits
from teacherfarm.student.methods.kd import KDSettings, logit_terms
from teacherfarm.student.methods.method import Asks, Method, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.teacher_maps import teacher_stages, whole_map
from teacherfarm.student.methods.teacher_values import crop_weights, weighted_mean, wide


@dataclass(frozen=True, kw_only=True)
class SPSettings(KDSettings):
    """Defaults: the SimKD toolbox (arXiv 2203.14001), CIFAR-100."""

    similarity_weight: float = setting(3000.0, "factor of the difference of the two Gram matrices")


class SP(Method):
    """Squared difference of the row-normalised Gram matrices of the last stage, over the crops of all ranks.

    The teacher's Gram matrix is made here, of its maps: its own batches are not the student's. Rows and columns of
    crops without a label are left out.
    """

    name = "sp"
    about = "crops are as alike as the teacher finds them, by the Gram matrix of the last stage"
    paper = "Tung and Mori, Similarity-Preserving Knowledge Distillation, arXiv 1907.09682"
    Settings = SPSettings
    settings: SPSettings

    def __init__(self, settings: SPSettings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.tap = list(setup.student_maps())[-1]
        self.teacher = whole_map(setup, teacher_stages(setup)[-1])

    @classmethod
    def asks(cls, settings: SPSettings, setup: Setup) -> Asks:
        setup.student_maps()
        return asks_beside_logits(cls.name, settings, setup, [whole_map(setup, teacher_stages(setup)[-1]).output])

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        maps = outputs.features[self.tap]
        with torch.autocast(maps.device.type, enabled=False):
            rows = wide(maps).flatten(1)
            weight = crop_weights(step, rows)
            difference = _similarity(rows, weight) - _similarity(self.teacher.take(step, rows).flatten(1), weight)
            everybody = gather_rows(weight)
            per_crop = (difference.square() * everybody).sum(dim=1) / everybody.sum().clamp(min=1e-12)
            similarity = weighted_mean(per_crop, step, rows)
        return {
            "similarity": self.settings.similarity_weight * similarity,
            **logit_terms(self.settings, outputs, step),
        }


def _similarity(rows: Tensor, weight: Tensor) -> Tensor:
    """This rank's rows of the Gram matrix over all ranks' crops, each of length 1."""
    rows = rows * (weight > 0).to(rows).unsqueeze(1)
    return functional.normalize(rows @ gather_rows(rows).T, dim=1)
