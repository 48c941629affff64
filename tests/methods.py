"""What methods are tested with: cards, setups, steps and student outputs with plausible contents, a student and a
teacher with taps that take no time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from teacherfarm.protos.crop import CropFormat, Rendering
from teacherfarm.protos.soft_label import LabelSpec, SoftLabels, log_softmax
from teacherfarm.protos.teacher_card import OutputCard, TeacherCard
from teacherfarm.student.methods.method import Setup, Step, StudentOutputs, StudentShape, TeacherHead

TEACHER_FEATURES: Mapping[str, tuple[int, ...]] = {
    "embedding": (24,),
    "layer1": (8, 8, 8),
    "layer2": (16, 4, 4),
    "layer3": (24, 2, 2),
}
STUDENT_FEATURES: Mapping[str, tuple[int, ...]] = {"stage1": (6, 8, 8), "stage2": (10, 4, 4), "stage3": (12, 2, 2)}
TAPS = ("act", "block")
"""The stages of tests.tiny_teacher's net: 8 x 16 x 16 and 16 x 8 x 8."""
REDUCTIONS = ("act@attention", "block@4x4", "block@attention4x4")
"""What its graph reduces besides, to the sizes of TinyStudent, where it is exported with taps."""


def make_card(
    num_classes: int = 10,
    activation: str = "softmax",
    features: Mapping[str, Sequence[int]] | Sequence[OutputCard] = TEACHER_FEATURES,
    **fields: object,
) -> TeacherCard:
    """A teacher's card. ``features``: shapes by name (3 axes: a map, 2: tokens, 1: a vector), or output cards."""
    if isinstance(features, Mapping):
        features = [make_output_card(name, shape) for name, shape in features.items()]
    values: dict[str, object] = {
        "name": "teacher",
        "teacher_digest": "digest",
        "artifact_digest": "artifact",
        "model_file": "1/model.onnx",
        "crop_format": CropFormat(height=32, width=32),
        "rendering": Rendering(height=32, width=32),
        "num_classes": num_classes if activation != "none" else 0,
        "activation": activation,
        "features": tuple(features),
        "has_head": activation != "none" and "embedding" in [output.name for output in features],
    }
    return TeacherCard(**{**values, **fields})  # type: ignore[arg-type]


def make_output_card(name: str, shape: Sequence[int], **fields: object) -> OutputCard:
    """A map, tokens or a vector by its number of axes; a name "tap@4x4" or "tap@attention" is a reduction."""
    tap, at, how = name.partition("@")
    if at:
        fields = {"of": tap, "reduction": "attention" if how.startswith("attention") else "pool", **fields}
    fields = {"layout": {1: "vector", 2: "tokens", 3: "map"}[len(shape)], **fields}
    return OutputCard(name=name, shape=tuple(shape), **fields)  # type: ignore[arg-type]


def make_head(card: TeacherCard, seed: int = 7) -> TeacherHead:
    """A classifier on the card's embedding."""
    random = torch.Generator().manual_seed(seed)
    size = card.feature("embedding").shape[0]
    return TeacherHead(
        weight=torch.randn(card.num_classes, size, generator=random),
        bias=torch.randn(card.num_classes, generator=random),
    )


def make_setup(
    card: TeacherCard | None = None,
    student: StudentShape | None = None,
    *,
    batch_size: int = 8,
    num_samples: int = 40,
    **fields: object,
) -> Setup:
    """A teacher of three stages and a student with as many stages, classes and a head."""
    card = make_card() if card is None else card
    if student is None:
        embedding = 12
        student = StudentShape(num_classes=card.num_classes or 10, embedding=embedding, features=STUDENT_FEATURES)
    if card.has_head:
        fields.setdefault("head", make_head(card))
    return Setup(card=card, student=student, batch_size=batch_size, num_samples=num_samples, **fields)  # type: ignore[arg-type]


def make_answers(num_crops: int, card: TeacherCard, seed: int) -> dict[str, np.ndarray]:
    """What the teacher's graph could have returned: confident classes, sparse maps that are not negative."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(num_crops, card.num_classes)).astype(np.float32) * 3
    answers = {"logits": logits}
    if card.activation == "softmax":
        answers["log_probabilities"] = log_softmax(logits).astype(np.float16)
    for output in card.features:
        values = random.normal(size=(num_crops, *output.shape)).astype(np.float32)
        if output.layout == "map" or "@" in output.name or output.name == "embedding":
            values = np.maximum(values, 0)
        if "@attention" in output.name:
            values /= np.maximum(np.linalg.norm(values.reshape(num_crops, -1), axis=1)[:, None], 1e-12)
        answers[output.name] = values
    return answers


def make_step(
    num_crops: int,
    card: TeacherCard,
    spec: LabelSpec | None,
    seed: int = 0,
    weight: Sequence[float] | np.ndarray | None = None,
    **fields: object,
) -> Step:
    """Labels of a seed; crops of weight 0 hold zeros, as they arrive. ``spec`` None: a phase without a teacher."""
    random = np.random.default_rng(seed + 1)
    labels = None
    if spec is not None:
        resolved = spec.resolve(card)
        records = resolved.pack(make_answers(num_crops, card, seed), card)
        weights = np.ones(num_crops, np.float32) if weight is None else np.asarray(weight, np.float32)
        records[weights == 0] = np.zeros((), records.dtype)
        labels = SoftLabels.from_records(records, resolved, card, weights)
    values: dict[str, object] = {
        "labels": labels,
        "targets": torch.from_numpy(random.integers(card.num_classes or 10, size=num_crops)),
        "samples": torch.from_numpy(random.permutation(max(num_crops, 40))[:num_crops]),
    }
    return Step(**{**values, **fields})  # type: ignore[arg-type]


def make_outputs(
    setup: Setup,
    num_crops: int,
    requires_grad: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 3,
) -> StudentOutputs:
    """A student's outputs of the setup's shapes, leaves of the graph."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(num_crops, *shape, generator=random, dtype=torch.float64).to(dtype)

    def leaf(values: Tensor) -> Tensor:
        return values.requires_grad_(requires_grad)

    student = setup.student
    return StudentOutputs(
        logits=leaf(draw(student.num_classes)),
        embedding=leaf(draw(student.embedding).relu()) if student.embedding else None,
        features={
            name: leaf(draw(*shape).relu() if len(shape) == 3 else draw(*shape))
            for name, shape in student.features.items()
        },
    )


class TinyStudent(nn.Module):
    """Two stages without batch normalisation, so that two processes can equal one: 6 x 16 x 16 and 12 x 4 x 4."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(6, 12, 3, stride=4, padding=1), nn.ReLU())
        self.head = nn.Linear(12, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.stage2(self.stage1(pixels))
        logits: Tensor = self.head(maps.mean(dim=(2, 3)))
        return logits


STUDENT_TAPS = ("stage1", "stage2")


def tiny_student(seed: int = 1, classes: int = 10) -> TinyStudent:
    """The student with weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyStudent(classes)
