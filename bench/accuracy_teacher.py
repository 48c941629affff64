"""The accuracy study's teacher: a network for small images, trained on hard labels, exported with all its stages."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from bench.report import say
from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.crops.sample_readers import open_samples
from teacherfarm.export import export_teacher
from teacherfarm.networks.cifar import MEAN, STD, make_cifar_network
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.teacher_card import CARD_FILE, TeacherCard
from teacherfarm.student.center_crops import CenterCropDataset
from teacherfarm.student.crop_dataset import CropDataset, collate_crops
from teacherfarm.student.evaluation import evaluate
from teacherfarm.student.image_sources import SampleImages
from teacherfarm.student.pixels import to_student

NAME = "teacher"
CROP_SCALE = (0.5, 1.0)
PEAK_RATE = 0.1
BATCH_CROPS = 128


def exported_teacher(network: str, data: Path, out: Path, *, size: int, epochs: int, threads: int) -> TeacherCard:
    """The card of ``out/models/teacher``; trained and exported where it is absent.

    ``data`` holds train and test; ``size``: of its crops in pixels. Weights and accuracy stay in ``out``.
    """
    card_file = out / "models" / NAME / CARD_FILE
    if not card_file.is_file():
        weights = out / "teacher.pt"
        if not weights.is_file():
            model, classes = train(network, data, size=size, epochs=epochs, threads=threads)
            part = weights.with_suffix(".part")
            torch.save(model.state_dict(), part)
            (out / "teacher.classes").write_text("\n".join(classes) + "\n")
            part.replace(weights)
        stages = make_cifar_network(network, 2).stages
        export_teacher(
            f"cifar:{network}",
            out / "models",
            name=NAME,
            weights=weights,
            size=(size, size),
            classes=(out / "teacher.classes").read_text().splitlines(),
            crop_scale=CROP_SCALE,
            taps=[*stages, *(f"{stage}@attention" for stage in stages)],
        )
    return TeacherCard.from_json(card_file.read_bytes())


def train(network: str, data: Path, *, size: int, epochs: int, threads: int) -> tuple[nn.Module, tuple[str, ...]]:
    """A network of seed 0 and its classes: SGD, one cosine of the rate, no other trick."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rendering = Rendering(height=size, width=size)
    source = SampleImages(open_samples(data / "train"))
    dataset = CropDataset(source, teacher_rendering=rendering, plan=CropPlan(scale=CROP_SCALE))
    num_crops = min(BATCH_CROPS, len(dataset))
    loader = DataLoader(dataset, num_crops, shuffle=True, drop_last=True, collate_fn=collate_crops)
    model = make_cifar_network(network, len(source.classes))
    optimizer = torch.optim.SGD(model.parameters(), PEAK_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * len(loader)
    cosine = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        model.train()
        losses = []
        for batch in loader:
            loss = functional.cross_entropy(model(to_student(batch["images"], MEAN, STD)), batch["targets"])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            cosine.step()
            losses.append(loss.item())
        say(f"teacher  epoch {epoch + 1}/{epochs}  loss {sum(losses) / len(losses):.3f}")
    say(f"teacher  {accuracy(model, data, size=size)}")
    return model.eval(), source.classes


def accuracy(model: nn.Module, data: Path, *, size: int) -> str:
    """Of a network on the test images, in words."""
    rendering = Rendering(height=size, width=size)
    test = CenterCropDataset(
        SampleImages(open_samples(data / "test")),
        teacher_rendering=rendering,
        student_rendering=rendering,
        fraction=1.0,
    )
    loader = DataLoader(test, batch_size=250)
    split = lambda batch: (to_student(batch["images"], MEAN, STD), batch["targets"])  # noqa: E731
    return str(evaluate(model, loader, torch.device("cpu"), split=split))
