"""MEAL V2: an ensemble's soft labels and a discriminator (Shen and Savvides, arXiv 2009.08453)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from teacherfarm.protos.soft_label import LABELS, LabelSpec
from teacherfarm.protos.teacher_card import MEAN_LOGITS, TeacherCard
from teacherfarm.student.losses import soft_cross_entropy
from teacherfarm.student.methods.method import Asks, Method, MethodMismatch, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.needs import need_classes
from teacherfarm.student.methods.teacher_values import feature, weighted_mean, wide

DISCRIMINATORS = ("auto", "logits", "probabilities", "none")


@dataclass(frozen=True, kw_only=True)
class MEALV2Settings:
    """Defaults: the paper's code. It trains from a student that was trained before, without weight decay."""

    discriminator: str = setting(
        "auto",
        "what it tells apart: logits (needs an ensemble's mean_logits), probabilities, none; auto: logits where the "
        "teacher gives them",
        choices=DISCRIMINATORS,
    )
    discriminator_weight: float = setting(1.0, "factor of the discriminator's loss")
    adversarial: bool = setting(
        False, "the student works against the discriminator; the paper's code has both minimise the same loss"
    )
    top_k: int = setting(0, "ask for the k most probable classes only, as with FKD's labels (5); 0: all")
    cutmix: bool = setting(False, "mix crops by CutMix before teachers and student see them")


class MEALV2(Method):
    """Cross-entropy with the mean of the members' probabilities, and a discriminator of student and teachers."""

    name = "meal-v2"
    about = "an ensemble's averaged labels, and a discriminator on the last outputs"
    paper = "Shen and Savvides, MEAL V2, arXiv 2009.08453"
    Settings = MEALV2Settings
    settings: MEALV2Settings

    def __init__(self, settings: MEALV2Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.tells_apart = _tells_apart(settings, setup.card)
        classes = setup.student.num_classes
        self.discriminator = None if self.tells_apart == "none" else Discriminator(classes)

    @classmethod
    def asks(cls, settings: MEALV2Settings, setup: Setup) -> Asks:
        need_classes(cls.name, setup, temperature=1.0)
        mean_logits = (MEAN_LOGITS,) if _tells_apart(settings, setup.card) == "logits" else ()
        spec = LabelSpec(outputs=(LABELS, *mean_logits), top_k=settings.top_k)
        if settings.cutmix:
            return Asks(spec=spec, mixing="crops", draw="cutmix")
        return Asks(spec=spec)

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        assert step.labels is not None
        logits = outputs.logits
        parts = {"similarity": soft_cross_entropy(logits, step.labels)}
        if self.discriminator is None:
            return parts
        with torch.autocast(logits.device.type, enabled=False):
            student = wide(logits)
            if self.tells_apart == "logits":
                teacher = feature(step, MEAN_LOGITS, student)
            else:
                student = functional.softmax(student, dim=1)
                teacher = torch.from_numpy(step.labels.probabilities()).to(student)
            if self.settings.adversarial:
                student = _reversed(student)
            parts["discriminator"] = self.settings.discriminator_weight * weighted_mean(
                self.discriminator.losses(student, teacher), step, logits
            )
        return parts


class Discriminator(nn.Module):
    """Outputs [N, C] -> two numbers [N, 2], not negative: "of the student" and "of the teachers"."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        middle, small = max(classes // 8, 1), max(classes // 64, 1)
        # The last ReLU is the paper's code, too.
        self.layers = nn.Sequential(
            nn.Linear(classes, middle),
            nn.ReLU(),
            nn.Linear(middle, small),
            nn.ReLU(),
            nn.Linear(small, 2),
            nn.ReLU(),
        )

    def forward(self, values: Tensor) -> Tensor:
        said: Tensor = self.layers(values)
        return said

    def losses(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Binary cross-entropy for each crop [N], averaged over both numbers and both sides."""
        per_side = [
            functional.binary_cross_entropy_with_logits(
                said := self(values), said.new_tensor(truth).expand_as(said), reduction="none"
            ).mean(dim=1)
            for values, truth in ((student, (1.0, 0.0)), (teacher, (0.0, 1.0)))
        ]
        return (per_side[0] + per_side[1]) / 2


def _tells_apart(settings: MEALV2Settings, card: TeacherCard) -> str:
    if settings.discriminator not in DISCRIMINATORS:
        raise ValueError(f"discriminator is one of {', '.join(DISCRIMINATORS)}, got {settings.discriminator!r}")
    has_mean_logits = MEAN_LOGITS in [output.name for output in card.features]
    if settings.discriminator == "auto":
        return "logits" if has_mean_logits and not settings.top_k else "probabilities"
    if settings.discriminator == "logits" and not has_mean_logits:
        raise MethodMismatch(
            f"a discriminator of logits needs an ensemble's output {MEAN_LOGITS!r}, teacher {card.name!r} has none: "
            "teacherfarm export SOURCE SOURCE --ensemble, or set the discriminator to probabilities"
        )
    return settings.discriminator


def _reversed(values: Tensor) -> Tensor:
    """The same values; their gradient changes its sign."""
    return 2 * values.detach() - values
