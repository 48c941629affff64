"""The student's vector for an image is the teacher's: for teachers without classes, of faces or self-supervised.

FKD's self-supervised students and SSKD's faces are trained like this; neither paper's adapter and distance are known
here, so both are settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.protos.teacher_card import EMBEDDING
from teacherfarm.student.losses import hard_cross_entropy
from teacherfarm.student.methods.alignment import (
    ADAPTER_HELP,
    ADAPTERS,
    DISTANCE_HELP,
    DISTANCES,
    HARD_HELP,
    check_adapter,
    distance,
    hard_weight,
    make_adapter,
)
from teacherfarm.student.methods.frozen import train_only
from teacherfarm.student.methods.method import Asks, Method, MethodMismatch, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.teacher_maps import has, outputs_by_name
from teacherfarm.student.methods.teacher_values import feature, weighted_mean, wide

VECTORS = ("auto", "embedding", "output")


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings:
    """Defaults of our own: no paper's are known."""

    distance: Literal["cosine", "mse"] = setting("cosine", DISTANCE_HELP, choices=DISTANCES)
    adapter: Literal["auto", "linear", "mlp", "none"] = setting("auto", ADAPTER_HELP, choices=ADAPTERS)
    vector: Literal["auto", "embedding", "output"] = setting(
        "auto",
        'the student\'s vector: what its linear classifier takes ("embedding"), or what it returns ("output", of a '
        'student without classes); "auto": the latter where it learns no classes, or ends in no linear layer',
        choices=VECTORS,
    )
    teacher_vector: str = setting(EMBEDDING, "the teacher's output to learn")
    embedding_weight: float = setting(1.0, "factor of the distance")
    hard_weight: float | None = setting(None, HARD_HELP)


class Embedding(Method):
    """Cosine or squared distance between the student's vector and the teacher's.

    A student without classes is finished with its adapter: its vectors then are of the teacher's space.
    """

    name = "embedding"
    about = "the student's vector is the teacher's: faces, self-supervised teachers"
    paper = "Shen and Xing, FKD's self-supervised use, arXiv 2112.01528; Gao et al., SSKD's faces, arXiv 1812.01819"
    Settings = EmbeddingSettings
    settings: EmbeddingSettings

    def __init__(self, settings: EmbeddingSettings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.of_output, self.taken, self.wanted = _sizes(settings, setup)
        self.hard_weight = 0.0 if self.of_output else hard_weight(settings.hard_weight, setup.card)
        self.adapter = make_adapter(settings.adapter, self.taken, self.wanted)

    @classmethod
    def asks(cls, settings: EmbeddingSettings, setup: Setup) -> Asks:
        of_output, taken, wanted = _sizes(settings, setup)
        check_adapter(cls.name, settings.adapter, taken, wanted)
        hard = not of_output and hard_weight(settings.hard_weight, setup.card) > 0
        return Asks(spec=LabelSpec(outputs=(settings.teacher_vector,)), targets=hard)

    def enter(self, phase: int, student: nn.Module) -> None:
        behind = self.setup.student.parameters
        if not self.of_output and not self.hard_weight and EMBEDDING in behind:
            # The classifier gets no gradient, which DistributedDataParallel would wait for.
            train_only(student, behind[EMBEDDING])

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        vectors = outputs.logits if self.of_output else outputs.embedding
        assert vectors is not None
        with torch.autocast(vectors.device.type, enabled=False):
            guess = self.adapter(wide(vectors))
            truth = feature(step, self.settings.teacher_vector, guess)
            away = weighted_mean(distance(self.settings.distance, guess, truth), step, guess)
        parts = {"embedding": self.settings.embedding_weight * away}
        if self.hard_weight:
            parts["ce"] = self.hard_weight * hard_cross_entropy(outputs.logits, step.targets)
        return parts

    @property
    def gives_classes(self) -> bool:
        return self.hard_weight > 0

    def predict(self, outputs: StudentOutputs) -> Tensor:
        """Logits, or of a student without classes its vectors [N, D] in the teacher's space."""
        if not self.of_output:
            return outputs.logits
        with torch.autocast(outputs.logits.device.type, enabled=False):
            vectors: Tensor = self.adapter(wide(outputs.logits))
        return vectors

    def inference(self, student: nn.Module) -> nn.Module:
        return nn.Sequential(student, self.adapter) if self.of_output else student

    def inference_plan(self) -> dict[str, Any]:
        if not self.of_output:
            return {}
        return {"adapter": self.settings.adapter, "taken": self.taken, "wanted": self.wanted}

    @classmethod
    def rebuild(cls, student: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
        if not plan:
            return student
        return nn.Sequential(student, make_adapter(plan["adapter"], plan["taken"], plan["wanted"]))


def _sizes(settings: EmbeddingSettings, setup: Setup) -> tuple[bool, int, int]:
    """Whether the student's vector is its output, its size, and the size of the teacher's."""
    card, student = setup.card, setup.student
    known = outputs_by_name(card).get(settings.teacher_vector)
    if known is None:
        raise MethodMismatch(
            f"embedding: teacher {card.name!r} gives no output {settings.teacher_vector!r}, it has {has(card)}. Name "
            "one of these by the setting teacher_vector, or export it again by a function that returns "
            "teacherfarm.export.Teacher(embedding=MODULE, ...)"
        )
    if len(known.shape) != 1:
        raise MethodMismatch(
            f"embedding needs one vector for each crop, {known.name!r} of teacher {card.name!r} is "
            f"{list(known.shape)}: use --method tokens"
        )
    wanted = known.shape[0]
    has_classes = student.embedding and hard_weight(settings.hard_weight, card)
    of_output = settings.vector == "output" or (settings.vector == "auto" and not has_classes)
    if not of_output and not student.embedding:
        raise MethodMismatch(
            "embedding: vector=embedding is what the student's classifier takes, and this one ends in no linear layer: "
            "set vector=output"
        )
    return of_output, student.num_classes if of_output else student.embedding, wanted
