"""Part 1: a net learns digits from many labels, a small one with few labels learns from it over both wires."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from teacherfarm.demo import digits
from teacherfarm.demo.farm import serving
from teacherfarm.demo.steps import say, step
from teacherfarm.student import TeacherClient
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.losses import hard_cross_entropy, soft_cross_entropy, with_hard_labels
from teacherfarm.student.pixels import to_student

TEMPERATURE = 2.0
HARD_WEIGHT = 0.1
BATCH_CROPS = 60
NUM_DOUBTS = 3

Progress = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much the demo trains. ``per_class``: hard labels of each class that a student sees."""

    seeds: int = 3
    teacher_passes: int = 12
    student_passes: int = 20
    per_class: int = 2


@dataclass(frozen=True, kw_only=True)
class Runs:
    """One row of the table: test accuracies [seed][pass], and the last seed's net."""

    curves: tuple[tuple[float, ...], ...]
    net: nn.Module
    labels: int = 0

    @property
    def last(self) -> NDArray[np.float64]:
        return np.array([curve[-1] for curve in self.curves])


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """A test digit that the teacher is not sure of: its crop, its class, and the soft label at TEMPERATURE."""

    crop: NDArray[np.uint8]
    target: int
    probabilities: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What part 1 found."""

    teacher_accuracy: float
    teacher_parameters: int
    student_parameters: int
    num_training: int
    num_hard: int
    alone: Runs
    over: dict[str, Runs]
    """Distilled, by wire."""
    doubts: tuple[Doubt, ...]


def run(out: Path, scale: Scale) -> Outcome:
    """Train, export, serve, distil. Writes the teacher to ``out/models/digits`` and the server's log to ``out``."""
    split = digits.load()
    num_hard = scale.per_class * len(digits.CLASSES)
    say(f"Part 1, digits: a net taught by {len(split.images)} labels teaches a small one that sees {num_hard}.")
    with step(f"train the teacher, {scale.teacher_passes} passes") as running:
        net = train_teacher(split, scale.teacher_passes, running.progress)
        teacher_accuracy = digits.accuracy(net, split)
        running.outcome = f"{teacher_accuracy:.1%} of the test digits"
    with step("export it: teacherfarm.demo.digits:teacher --weights") as running:
        running.outcome = export(net, out)
    with serving(out / "models", out / "serve-digits.log", "serve it in a process of its own") as farm:
        with step(f"a student alone: {num_hard} labels, {scale.seeds} seeds") as running:
            alone = train_students(split, scale, None, running.progress)
            running.outcome = f"{alone.last.mean():.1%}"
        doubts = find_doubts(split, farm.addresses["zmq"])
        over = {}
        for wire, name in (("zmq", "ZeroMQ"), ("grpc", "gRPC")):
            with step(f"with the teacher's soft labels, over {name}") as running:
                over[name] = train_students(split, scale, farm.addresses[wire], running.progress)
                running.outcome = f"{over[name].last.mean():.1%}"
    return Outcome(
        teacher_accuracy=teacher_accuracy,
        teacher_parameters=digits.num_parameters(net),
        student_parameters=digits.num_parameters(alone.net),
        num_training=len(split.images),
        num_hard=num_hard,
        alone=alone,
        over=over,
        doubts=doubts,
    )


def train_teacher(split: digits.Split, passes: int, progress: Progress) -> nn.Module:
    """A net that saw the class of every training digit."""
    torch.manual_seed(0)
    net = digits.teacher_net()
    loader = crops_loader(split.images, split.classes, seed=0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, passes * len(loader))
    for epoch in range(passes):
        loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        for number, batch in enumerate(loader):
            logits = net(to_student(batch["crops"], digits.MEAN, digits.STD))
            loss = functional.cross_entropy(logits, batch["targets"])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            progress((epoch + number / len(loader)) / passes)
    return net


def export(net: nn.Module, out: Path) -> str:
    """The trained teacher as an entry of ``out/models``, by the code of ``teacherfarm export``; its check in words."""
    from safetensors.torch import save_file

    from teacherfarm.export import export_teacher

    weights = out / "digits-teacher.safetensors"
    save_file(net.state_dict(), weights)
    card = export_teacher("teacherfarm.demo.digits:teacher", out / "models", weights=weights, force=True)
    return f"checked against PyTorch, {card.teacher_digest[:8]}"


def find_doubts(split: digits.Split, address: str) -> tuple[Doubt, ...]:
    """The test digits whose soft labels say most beside the likeliest class, each of another class."""
    crops = np.stack([digits.cut(image) for image in split.test_images])
    with TeacherClient(address, teacher="digits") as teacher:
        probabilities = teacher.label(crops).probabilities(temperature=TEMPERATURE)
    best, second = np.sort(probabilities, axis=1)[:, :-3:-1].T
    found: dict[int, Doubt] = {}
    for row in np.argsort(best - second):
        target = int(split.test_classes[row])
        # Where the teacher errs it teaches nothing that a picture should show.
        if probabilities[row].argmax() == target and target not in found and len(found) < NUM_DOUBTS:
            found[target] = Doubt(crop=crops[row], target=target, probabilities=probabilities[row])
    return tuple(found.values())


def train_students(split: digits.Split, scale: Scale, address: str | None, progress: Progress) -> Runs:
    """One student for each seed: from few hard labels alone, or with the soft labels of the farm at ``address``."""
    curves, labels = [], 0
    net: nn.Module = nn.Identity()
    for seed in range(scale.seeds):

        def part(done: float, seed: int = seed) -> None:
            progress((seed + done) / scale.seeds)

        if address is None:
            net, curve = train_alone(split, scale, seed, part)
        else:
            with TeacherClient(address, teacher="digits") as teacher:
                net, curve = distil(split, scale, seed, teacher, part)
                labels += teacher.stats.crops_answered
        curves.append(tuple(curve))
    return Runs(curves=tuple(curves), net=net, labels=labels)


def train_alone(split: digits.Split, scale: Scale, seed: int, progress: Progress) -> tuple[nn.Module, list[float]]:
    """As many steps as a distilled student takes, over the few labelled digits."""
    targets = split.few_labels(scale.per_class, seed)
    few = np.flatnonzero(targets >= 0)
    rows = np.tile(few, len(split.images) // len(few))
    loader = crops_loader(split.images[rows], targets[rows], seed)
    net, optimizer, schedule, curve = start(seed, scale.student_passes * len(loader))
    for epoch in range(scale.student_passes):
        loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            loss = hard_cross_entropy(net(to_student(batch["crops"], digits.MEAN, digits.STD)), batch["targets"])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        curve.append(digits.accuracy(net, split))
        progress((epoch + 1) / scale.student_passes)
    return net, curve


def distil(
    split: digits.Split, scale: Scale, seed: int, teacher: TeacherClient, progress: Progress
) -> tuple[nn.Module, list[float]]:
    """Every training digit with a soft label of the crop at hand, the few known classes beside it."""
    loader = crops_loader(split.images, split.few_labels(scale.per_class, seed), seed)
    labelled = LabelledLoader(loader, teacher, teacher_view=lambda batch: batch["crops"])
    net, optimizer, schedule, curve = start(seed, scale.student_passes * len(loader))
    for epoch in range(scale.student_passes):
        labelled.set_epoch(epoch)
        for batch, labels in labelled:
            logits = net(to_student(batch["crops"], digits.MEAN, digits.STD))
            soft = soft_cross_entropy(logits, labels, temperature=TEMPERATURE)
            loss = with_hard_labels(soft, logits, batch["targets"], hard_weight=HARD_WEIGHT)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        curve.append(digits.accuracy(net, split))
        progress((epoch + 1) / scale.student_passes)
    return net, curve


def start(
    seed: int, num_steps: int
) -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, list[float]]:
    """A student with the weights of a seed, and what trains it."""
    torch.manual_seed(seed)
    net = digits.student_net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=1e-2)
    return net, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps), []


def crops_loader(
    images: NDArray[np.uint8],
    targets: NDArray[np.int64],
    seed: int,
) -> DataLoader[dict[str, object]]:
    """An ordinary DataLoader; its order is the seed's."""
    return DataLoader(
        digits.Crops(images, targets, seed),
        batch_size=BATCH_CROPS,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(seed),
    )


def table(outcome: Outcome) -> str:
    """Teacher, student alone and distilled students, as people read them."""
    rows = [
        ("", "parameters", "hard labels", "soft labels", "test accuracy"),
        (
            "teacher",
            f"{outcome.teacher_parameters:,}",
            f"{outcome.num_training:,}",
            "",
            f"{outcome.teacher_accuracy:.1%}      ",
        ),
    ]
    for name, runs in (
        ("student alone", outcome.alone),
        *((f"distilled over {wire}", runs) for wire, runs in outcome.over.items()),
    ):
        rows.append(
            (
                name,
                f"{outcome.student_parameters:,}",
                f"{outcome.num_hard:,}",
                f"{runs.labels // len(runs.curves):,}" if runs.labels else "",
                f"{runs.last.mean():.1%} ± {runs.last.std():.1%}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "    "
        + row[0].ljust(widths[0])
        + "".join(f"   {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def wires_agree(outcome: Outcome) -> bool:
    """Whether the students of both wires are equal, bit by bit."""
    first, second = (runs.net.state_dict() for runs in outcome.over.values())
    return all(torch.equal(first[name], second[name]) for name in first)
