"""Part 2 of the demo: EfficientNet-Lite0, whose weights ship in a package, labels photographs that ship in others."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.cutting import decode, resize_and_center_crop
from teacherfarm.demo.farm import serving
from teacherfarm.demo.steps import say, step
from teacherfarm.protos.teacher_card import CARD_FILE
from teacherfarm.student import LabelSpec, TeacherClient

TEACHER = "efficientnet-lite0"
TOP_K = 5
PHOTOGRAPHS = {
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "astronaut": ("skimage", "data/astronaut.png"),
    "camera": ("skimage", "data/camera.png"),
}


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A photograph as the teacher got it, uint8 [H, W, 3], and its likeliest classes, best first."""

    name: str
    crop: NDArray[np.uint8]
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What part 2 found."""

    photographs: tuple[Labelled, ...]
    num_classes: int
    label_s: float


def run(out: Path) -> Outcome:
    """Export, serve, label. An entry of an earlier run is served again."""
    say("Part 2, photographs: a teacher of 1,000 ImageNet classes.")
    models = out / "models"
    with step(f"teacherfarm export {TEACHER}") as running:
        if (models / TEACHER / CARD_FILE).is_file():
            running.outcome = "there from an earlier run"
        else:
            from teacherfarm.export import export_teacher

            card = export_teacher(TEACHER, models)
            running.outcome = f"checked against PyTorch, {card.teacher_digest[:8]}"
    with serving(models, out / "serve-photographs.log", "serve everything exported so far") as farm:
        with step("label photographs over ZeroMQ") as running:
            outcome = label(farm.addresses["zmq"])
            running.outcome = f"{len(outcome.photographs)} in {outcome.label_s * 1000:.0f} ms"
    return outcome


def label(address: str) -> Outcome:
    """Ask a farm for the top-5 of every photograph, in one crop batch."""
    files = {name: file_of(*place) for name, place in PHOTOGRAPHS.items()}
    with TeacherClient(address, teacher=TEACHER, spec=LabelSpec(top_k=TOP_K)) as teacher:
        card = teacher.card
        crops = np.stack(
            [
                resize_and_center_crop(decode(file.read_bytes(), str(file)), card.rendering, card.center_crop_fraction)
                for file in files.values()
            ]
        )
        started_s = time.monotonic()
        labels = teacher.label(crops)
        label_s = time.monotonic() - started_s
    probabilities = np.exp(labels.log_probabilities.astype(np.float32))
    return Outcome(
        photographs=tuple(
            Labelled(
                name=name,
                crop=crops[row],
                classes=tuple(card.classes[number] for number in labels.classes[row]),
                probabilities=tuple(float(p) for p in probabilities[row]),
            )
            for row, name in enumerate(files)
        ),
        num_classes=card.num_classes,
        label_s=label_s,
    )


def file_of(package: str, path: str) -> Path:
    """A file inside an installed package, which is not imported for it."""
    import importlib.util

    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return Path(spec.origin).parent / path
