"""Every method of the registry in small: a student and a method for a card, batches as the data path makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from teacherfarm.protos.soft_label import SoftLabels
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student import TeacherClient
from teacherfarm.student.crop_collate import Crops
from teacherfarm.student.methods.distiller import Distiller
from teacherfarm.student.methods.method import Asks, Phase, Setup, Step, TeacherHead
from teacherfarm.student.methods.registry import METHODS, find_method
from teacherfarm.student.methods.student_taps import TappedStudent
from teacherfarm.student.mixed_crops import MixedCrops
from tests.methods import STUDENT_TAPS, tiny_student
from tests.tiny_tokens import tiny_tokens

IMAGES, CROPS_PER_IMAGE = 4, 2
BATCH = IMAGES * CROPS_PER_IMAGE
NUM_SAMPLES = 40
EPOCHS = 4
STEPS = 3
RATE = 0.01


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How a method is tried out: the teacher, the student and its taps, settings that are not the defaults."""

    teacher: str = "tiny"
    settings: Mapping[str, Any] = field(default_factory=dict)
    student: Callable[[], nn.Module] = tiny_student
    taps: Sequence[str] = STUDENT_TAPS


TRIALS: Mapping[str, Trial] = {
    **{method: Trial() for method in METHODS},
    "dkd": Trial(settings={"warm_up_epochs": 0}),
    "sigmoid-kd": Trial(teacher="several"),
    "tokens": Trial(teacher="tokens", student=lambda: tiny_tokens(2, 8, classes=10), taps=("norm",)),
    # The same in other ways: method, slash, which way.
    "kd/ensemble": Trial(teacher="pair", settings={"temperature": 1.0}),
    "meal-v2/ensemble": Trial(teacher="pair"),
    "meal-v2/top-5": Trial(settings={"top_k": 5, "cutmix": True}),
    "fkd/mixed": Trial(settings={"mix": "fkd"}),
    "fkd/all-classes": Trial(settings={"form": "full"}),
    "ferkd/selfmix": Trial(settings={"mix": "selfmix"}),
    "embedding/no-classes": Trial(teacher="tokens", student=lambda: tiny_student(classes=16)),
    "tokens/maps": Trial(taps=("stage2",)),
    "simkd/factor-4": Trial(settings={"factor": 4}),
}
"""Every method of the registry, and some in several ways."""


def build(name: str, card: TeacherCard, head: TeacherHead | None) -> tuple[Distiller, list[Phase]]:
    """Student and method of a trial with weights of a seed, and the run's phases."""
    trial, kind = TRIALS[name], find_method(name.partition("/")[0])
    torch.manual_seed(0)
    student = TappedStudent(trial.student(), trial.taps)
    setup = Setup(
        card=card,
        student=student.measure(32, 32),
        num_samples=NUM_SAMPLES,
        batch_size=BATCH,
        crops_per_image=CROPS_PER_IMAGE,
        epochs=EPOCHS,
        head=head,
    )
    chosen = kind.Settings(**trial.settings)
    phases = list(kind.phases(chosen, setup))
    return Distiller(student, kind(chosen, setup)), phases


def optimizer_of(distiller: nn.Module) -> torch.optim.Optimizer:
    """For what the phase trains."""
    return torch.optim.SGD([each for each in distiller.parameters() if each.requires_grad], lr=RATE)


def pixels_of(images: Tensor) -> Tensor:
    """What the student takes of crops uint8 [N, H, W, 3]."""
    return images.permute(0, 3, 1, 2).float() / 255 - 0.5


def train_from(address: str, name: str) -> list[dict[str, float]]:
    """The loss's parts in each step of a short run against a teacher, the same run for every address."""
    teacher = TRIALS[name].teacher
    with TeacherClient(address, teacher) as client:
        card = client.card
        head = None
        if card.has_head:
            given = client.head()
            head = TeacherHead(weight=torch.from_numpy(given.weight), bias=torch.from_numpy(given.bias))
    distiller, phases = build(name, card, head)
    losses = []
    for number, phase in enumerate(phases):
        distiller.enter(number)
        distiller.train()
        optimizer = optimizer_of(distiller)
        before = [each.detach().clone() for each in distiller.student.parameters()]
        with _labels(address, teacher, phase.asks) as label:
            for step in range(STEPS):
                batch = make_batch(phase.asks, seed=10 * number + step)
                parts = distiller(
                    pixels_of(batch["images"]),
                    Step(
                        labels=label(batch),
                        targets=batch["targets"],
                        samples=batch["samples"],
                        epoch=phase.begin + step / STEPS,
                        mix=batch.get("mix"),
                    ),
                )
                optimizer.zero_grad()
                torch.stack(list(parts.values())).sum().backward()
                optimizer.step()
                losses.append({name: part.item() for name, part in parts.items()})
        after = distiller.student.parameters()
        assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True)), phase.name
    return losses


@contextmanager
def _labels(address: str, teacher: str, asks: Asks) -> Iterator[Callable[[Mapping[str, Any]], SoftLabels | None]]:
    if asks.spec is None:
        yield lambda batch: None
        return
    with TeacherClient(address, teacher, spec=asks.spec) as client:
        yield lambda batch: client.label(batch["crops"])


def make_batch(asks: Asks, seed: int) -> Mapping[str, Any]:
    """A batch of crops of a seed, mixed as the method asks."""
    random = np.random.default_rng(seed)
    items = [_crops_of_image(random, int(sample)) for sample in random.choice(NUM_SAMPLES, IMAGES, replace=False)]
    return MixedCrops(asks.mixing, asks.draw, seed)(items)


def _crops_of_image(random: np.random.Generator, sample: int) -> Crops:
    crops = torch.from_numpy(random.integers(0, 256, (CROPS_PER_IMAGE, 32, 32, 3), np.uint8))
    return Crops(
        crops=crops,
        images=crops,
        targets=torch.full((CROPS_PER_IMAGE,), sample % 10),
        keys=random.bytes(16 * CROPS_PER_IMAGE),
        weight=torch.ones(CROPS_PER_IMAGE),
        samples=torch.full((CROPS_PER_IMAGE,), sample),
        views=torch.arange(CROPS_PER_IMAGE),
    )
