"""SemCKD: every stage of the student learns from all of the teacher's, weighted crop by crop by how alike their batches
look (Chen et al., AAAI 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from teacherfarm.student.methods.across_ranks import gather_rows
from teacherfarm.student.methods.beside_logits import asks_beside_logits
from teacherfarm.student.methods.kd import KDSettings, logit_terms
from teacherfarm.student.methods.method import Asks, Method, MethodMismatch, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.teacher_maps import TeacherMap, pool, teacher_stages, whole_map
from teacherfarm.student.methods.teacher_values import crop_weights, feature, weighted_mean, wide

NARROWING = 4
"""Queries and keys have a fourth of the batch's size, their hidden layer twice that."""


@dataclass(frozen=True, kw_only=True)
class SemCKDSettings(KDSettings):
    """Defaults: the SimKD toolbox (arXiv 2203.14001), CIFAR-100; for ImageNet it takes map_weight 50."""

    map_weight: float = setting(400.0, "factor of the squared errors between maps")
    attention_temperature: float = setting(1.0, "that the products of queries and keys are divided by")


class SemCKD(Method):
    """Attention between the stages of both: queries and keys come from the rows of each stage's Gram matrix over the
    batch of all ranks, values are squared errors of projected maps at the smaller size.

    The layers have the batch's size, so every batch must be whole. A crop without an answer is black to the others.
    """

    name = "semckd"
    about = "each stage learns from all of the teacher's, weighted by how alike their batches look"
    paper = "Chen et al., Cross-Layer Distillation with Semantic Calibration, AAAI 2021, arXiv 2012.03236"
    Settings = SemCKDSettings
    settings: SemCKDSettings

    def __init__(self, settings: SemCKDSettings, setup: Setup) -> None:
        super().__init__(settings, setup)
        student, self.teacher = setup.student_maps(), _teacher(setup)
        self.taps = tuple(student)
        self.queries = nn.ModuleList(_embedder(setup.batch_size) for _ in student)
        self.keys = nn.ModuleList(_embedder(setup.batch_size) for _ in self.teacher)
        self.projections = nn.ModuleList(
            nn.ModuleList(_projection(shape[0], stage.shape[0]) for stage in self.teacher) for shape in student.values()
        )

    @classmethod
    def asks(cls, settings: SemCKDSettings, setup: Setup) -> Asks:
        if setup.batch_size < NARROWING:
            raise MethodMismatch(
                f"semckd has layers of the batch's size and needs {NARROWING} crops at least, got a batch of "
                f"{setup.batch_size}: use --batch-size 64, say"
            )
        if 0 < setup.num_samples < setup.batch_size:
            raise MethodMismatch(
                f"semckd needs whole batches of {setup.batch_size} crops, and there are {setup.num_samples} images: "
                "use a smaller --batch-size"
            )
        if not settings.attention_temperature > 0:
            raise ValueError(f"semckd: attention_temperature is above 0, got {settings.attention_temperature}")
        setup.student_maps()
        return asks_beside_logits(cls.name, settings, setup, [stage.output for stage in _teacher(setup)])

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        like = outputs.features[self.taps[0]]
        with torch.autocast(like.device.type, enabled=False):
            answered = (crop_weights(step, like) > 0).to(wide(like).dtype)
            students = [wide(outputs.features[tap]) for tap in self.taps]
            # Un-pooled: keys are of whole maps.
            teachers = [feature(step, stage.output, like) for stage in self.teacher]
            attention = self._attention(students, teachers, answered)
            errors = torch.stack([self._errors(row, maps, teachers) for row, maps in enumerate(students)], dim=1)
            error = (attention * errors).sum(dim=2).mean(dim=1)
            calibrated = self.settings.map_weight * weighted_mean(error, step, error)
        return {"map": calibrated, **logit_terms(self.settings, outputs, step)}

    def _attention(self, students: list[Tensor], teachers: list[Tensor], answered: Tensor) -> Tensor:
        """How much each stage of the student learns from each of the teacher's, crop by crop [N, S, T]."""
        query = torch.stack([embed(self._gram(maps, answered)) for embed, maps in zip(self.queries, students)], dim=1)  # noqa: B905
        key = torch.stack([embed(self._gram(maps, answered)) for embed, maps in zip(self.keys, teachers)], dim=1)  # noqa: B905
        query, key = functional.normalize(query, dim=2), functional.normalize(key, dim=2)
        return (query @ key.transpose(1, 2) / self.settings.attention_temperature).softmax(dim=2)

    def _gram(self, maps: Tensor, answered: Tensor) -> Tensor:
        """Products of each crop's map with those of the whole batch [N, B]."""
        rows = maps.flatten(1) * answered[:, None]
        everybody = gather_rows(rows)
        if len(everybody) != self.setup.batch_size:
            raise MethodMismatch(
                f"semckd was built for batches of {self.setup.batch_size} crops, this one has {len(everybody)}: leave "
                "incomplete batches out (drop_last=True)"
            )
        return rows @ everybody.T

    def _errors(self, row: int, maps: Tensor, teachers: list[Tensor]) -> Tensor:
        """Mean squared errors of one stage's projections to each of the teacher's stages [N, T]."""
        errors = []
        for project, theirs in zip(self.projections[row].children(), teachers, strict=True):
            height, width = min(maps.shape[2], theirs.shape[2]), min(maps.shape[3], theirs.shape[3])
            difference = project(pool(maps, height, width)) - pool(theirs, height, width)
            errors.append(difference.square().flatten(1).mean(dim=1))
        return torch.stack(errors, dim=1)


def _teacher(setup: Setup) -> list[TeacherMap]:
    return [whole_map(setup, stage) for stage in teacher_stages(setup)]


def _embedder(batch_size: int) -> nn.Sequential:
    narrow = batch_size // NARROWING
    return nn.Sequential(nn.Linear(batch_size, 2 * narrow), nn.ReLU(), nn.Linear(2 * narrow, narrow))


def _projection(taken: int, given: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(taken, 2 * given, 1, bias=False),
        nn.BatchNorm2d(2 * given),
        nn.ReLU(),
        nn.Conv2d(2 * given, 2 * given, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * given),
        nn.ReLU(),
        nn.Conv2d(2 * given, given, 1, bias=False),
    )
