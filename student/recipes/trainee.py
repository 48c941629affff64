"""What a run trains: student, method and the teacher's card, put together as the options say. No loop, no optimiser."""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from teacherfarm.protos.classifier_head import ClassifierHead
from teacherfarm.protos.soft_label import LABELS
from teacherfarm.protos.teacher_card import EMBEDDING, TeacherCard
from teacherfarm.student.methods.distiller import Distiller
from teacherfarm.student.methods.method import Method, Phase, Setup, TeacherHead
from teacherfarm.student.methods.student_taps import TappedStudent
from teacherfarm.student.recipes.passes import crops_of_batch
from teacherfarm.student.recipes.students import default_taps, load_pretrained, make_student

NOT_OF_A_STAGE = frozenset({LABELS, EMBEDDING, "mean_logits"})
"""Outputs that a student has something to compare with, with no stage of its shown."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trainee:
    """``method``: its class; ``distiller.method`` is the one that is trained."""

    method: type[Method]
    settings: Any
    setup: Setup
    phases: tuple[Phase, ...]
    distiller: Distiller

    def settings_by_name(self) -> dict[str, Any]:
        """Plain values that a resumed run must have again."""
        of_method = {f"{self.method.name}'s {name}": value for name, value in vars(self.settings).items()}
        taps = {"teacher taps": list(self.setup.teacher_taps), "student taps": list(self.setup.student_taps)}
        return {"method": self.method.name, **of_method, **taps}

    @property
    def asks_targets(self) -> bool:
        """Whether any phase learns from the data's own labels."""
        return any(phase.asks.targets for phase in self.phases)


def make_trainee(
    options: argparse.Namespace,
    method: type[Method],
    settings: Any,
    card: TeacherCard,
    *,
    size: tuple[int, int],
    num_samples: int,
    num_classes: int,
    num_ranks: int,
    fetch_head: Callable[[], ClassifierHead],
) -> Trainee:
    """Seeded by ``--seed`` alone, so that every rank gets the same. ``size``: height and width of the student's crops;
    ``num_classes``: of the images to train on.

    Raises MethodMismatch where teacher, student and method do not go together, ValueError for other mistakes.
    """

    def build(num_outputs: int) -> tuple[nn.Module, tuple[str, ...], Setup, tuple[Phase, ...]]:
        torch.manual_seed(options.seed)
        student = make_student(options.student, num_outputs)
        if options.init:
            load_weights(student, options)
        taps = tuple(options.student_taps) or default_taps(options.student, student, height=size[0], width=size[1])
        setup = Setup(
            card=card,
            # Measured on a copy: what no method looks at must not be kept in every step.
            student=TappedStudent(copy.deepcopy(student), taps).measure(*size),
            teacher_taps=tuple(options.teacher_taps),
            student_taps=tuple(options.student_taps),
            num_samples=num_samples,
            batch_size=crops_of_batch(options.batch_size, options.crops_per_image) * num_ranks,
            crops_per_image=options.crops_per_image,
            epochs=options.epochs,
        )
        return student, taps, setup, method.phases(settings, setup)

    # Of a teacher without classes a student learns the images' own, or none at all: the method says which.
    without_classes = card.activation == "none"
    student, taps, setup, phases = build((without_classes and num_classes) or num_outputs(card))
    if without_classes and not any(phase.asks.targets for phase in phases):
        student, taps, setup, phases = build(num_outputs(card))
    if any(phase.asks.head for phase in phases):
        setup = dataclasses.replace(setup, head=as_tensors(fetch_head()))
    tapped = TappedStudent(student, taps if _compares_stages(phases) else ())
    distiller = Distiller(tapped, method(settings, setup), hard_fallback=options.hard_fallback)
    return Trainee(method=method, settings=settings, setup=setup, phases=phases, distiller=distiller)


def num_outputs(card: TeacherCard) -> int:
    """How many numbers a student ends with: the teacher's classes, or the length of its embedding."""
    if card.activation != "none":
        return card.num_classes
    embeddings = [output.shape[0] for output in card.features if output.name == EMBEDDING]
    return embeddings[0] if embeddings else card.features[0].num_channels


def as_tensors(head: ClassifierHead) -> TeacherHead:
    """The teacher's classifier for PyTorch."""
    return TeacherHead(weight=torch.from_numpy(head.weight.copy()), bias=torch.from_numpy(head.bias.copy()))


def load_weights(student: nn.Module, options: argparse.Namespace) -> None:
    """``--init``: the weights of an earlier run's student, or those that its package has for it."""
    if options.init == "pretrained":
        load_pretrained(student, options.student)
        return
    try:
        weights = torch.load(Path(options.init), map_location="cpu", weights_only=True)
        student.load_state_dict(weights)
    except Exception as error:
        words = str(error).splitlines()
        raise ValueError(
            f"--init {options.init}: no weights of {options.student} ({' '.join(words[:3])[:300]}); expected the "
            "student.pt of an earlier run of the same student, or 'pretrained'"
        ) from error


def _compares_stages(phases: Iterable[Phase]) -> bool:
    asked = {name for phase in phases if phase.asks.spec is not None for name in phase.asks.spec.outputs}
    return bool(asked - NOT_OF_A_STAGE)
