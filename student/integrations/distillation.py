"""What every training loop needs alike: the module to train, the client that asks what its method asks, and how batches
of crops become its steps. Knows no framework.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.crops.view_schedule import ViewSchedule
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.soft_label import LABELS, SoftLabels
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.blocking import TeacherClient
from teacherfarm.student.center_crops import CenterCropDataset
from teacherfarm.student.crop_dataset import CropDataset
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.losses import NO_TARGET
from teacherfarm.student.methods.distiller import Distiller
from teacherfarm.student.methods.method import Asks, MethodMismatch, Setup, Step, TeacherHead
from teacherfarm.student.methods.registry import find_method
from teacherfarm.student.methods.student_taps import TappedStudent
from teacherfarm.student.mixed_crops import MixedCrops
from teacherfarm.student.pixels import to_student
from teacherfarm.student.recipes.class_names import match_classes
from teacherfarm.student.recipes.finished import StudentCard, save_student
from teacherfarm.student.recipes.method_options import make_settings
from teacherfarm.student.recipes.trainee import num_outputs

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, eq=False)
class Distillation:
    """A student that learns from a farm by one method; :func:`connect` makes it. Close it, or use it in ``with``.

    ``distiller``: what an optimiser and a framework are given. ``student_rendering``: how the student's crops are cut.
    ``mean``, ``std``: of its pixels in 0..1.
    ``class_numbers``: the teacher's number of each of the data's classes; empty where they are the same.
    """

    distiller: Distiller
    teacher: TeacherClient
    asks: Asks
    student_rendering: Rendering
    crops_per_image: int = 1
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    class_numbers: Sequence[int] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.teacher.close()

    @property
    def card(self) -> TeacherCard:
        return self.teacher.card

    def crops(self, images: Any, *, seed: int = 0, **options: Any) -> CropDataset:
        """Random crops to train on, each in both renderings, in the sizes that the teacher was trained with.

        ``images``, ``options``: CropDataset's; ``plan=CropPlan(...)`` chooses other sizes.
        """
        given: dict[str, Any] = {
            "plan": CropPlan(seed=seed, scale=self.card.crop_scale, ratio=self.card.crop_ratio),
            "schedule": ViewSchedule(per_visit=self.crops_per_image),
            **options,
        }
        return CropDataset(
            images, teacher_rendering=self.card.rendering, student_rendering=self.student_rendering, **given
        )

    def center_crops(self, images: Any) -> CenterCropDataset:
        """Each image once, to evaluate on."""
        return CenterCropDataset(
            images,
            teacher_rendering=self.card.rendering,
            student_rendering=self.student_rendering,
            fraction=self.card.center_crop_fraction,
        )

    def collate(self, *, seed: int = 0) -> MixedCrops:
        """The ``collate_fn`` for a DataLoader of a CropDataset: mixes crops as the method wants it."""
        return MixedCrops(self.asks.mixing, self.asks.draw, seed, teacher_rendering=self.card.rendering)

    def labelled(
        self, loader: Iterable[dict[str, Any]], *, kind: type[LabelledLoader[Any]] = LabelledLoader, **options: Any
    ) -> LabelledLoader[dict[str, Any]]:
        """With soft labels: wrap what the framework's own ``prepare`` gave. ``options``: LabelledLoader's."""
        has_labels = self.asks.spec is not None and LABELS in self.teacher.spec.outputs
        # Crops that were mixed before the teacher saw them have no class of their own to compare it with.
        watched = has_labels and self.card.activation == "softmax" and self.asks.mixing != "crops"
        views: dict[str, Any] = {
            "keys": lambda batch: batch["keys"],
            "weight_view": lambda batch: batch["weight"],
            "target_view": self.targets if watched else None,
        }
        return kind(loader, self.teacher, lambda batch: batch["crops"], **{**views, **options})

    def pixels(self, batch: Mapping[str, Any], device: torch.device | str = "cpu") -> Tensor:
        """The student's input: uint8 crops normalised on the device; what a student_transform made, as it is."""
        images: Tensor = batch["images"]
        if images.dtype == torch.uint8:
            return to_student(images, self.mean, self.std, device)
        return images.to(device, non_blocking=True)

    def targets(self, batch: Mapping[str, Any]) -> Tensor:
        """The teacher's class numbers int64 [N]; NO_TARGET for unknown classes and unreadable images."""
        targets: Tensor = batch["targets"]
        known = targets >= 0
        if self.class_numbers:
            targets = torch.tensor(self.class_numbers)[targets.clamp(min=0)]
            known &= targets >= 0
        return torch.where(known & (batch["weight"] > 0), targets, NO_TARGET)

    def step(
        self, batch: Mapping[str, Any], labels: SoftLabels | None, *, epoch: float = 0.0, device: Any = "cpu"
    ) -> Step:
        """What :attr:`distiller` takes beside the pixels. ``epoch``: epochs done, with fractions."""
        return Step(
            labels=labels,
            targets=self.targets(batch).to(device, non_blocking=True),
            samples=batch["samples"].to(device, non_blocking=True),
            epoch=epoch,
            mix=batch.get("mix"),
        )

    def save(self, folder: Path, source: str, *, distiller: Distiller | None = None) -> None:
        """Write the finished student, student.pt and student.json, for ``load_student(folder)``.

        ``source``: what make_student built it of. ``distiller``: another one than what was trained, an average, say.
        """
        distiller, card = self.distiller if distiller is None else distiller, self.card
        about = StudentCard(
            source=source,
            num_outputs=distiller.method.setup.student.num_classes,
            method=distiller.method.name,
            rendering=self.student_rendering,
            mean=tuple(self.mean),
            std=tuple(self.std),
            center_crop_fraction=card.center_crop_fraction,
            classes=card.classes,
            teacher=card.name,
            teacher_digest=card.teacher_digest,
            plan=distiller.method.inference_plan(),
        )
        save_student(folder, distiller.inference(), about)


def connect(
    address: str,
    teacher: str = "",
    *,
    student: nn.Module | Callable[[int], nn.Module],
    method: str = "kd",
    settings: Mapping[str, Any] | None = None,
    student_size: int | None = None,
    student_taps: Sequence[str] = (),
    teacher_taps: Sequence[str] = (),
    num_samples: int = 0,
    batch_size: int = 0,
    crops_per_image: int = 1,
    epochs: int = 1,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    classes: Sequence[str] = (),
    hard_fallback: bool = False,
    **client: Any,
) -> Distillation:
    """Ask the farm what the teacher is, and the method what it needs of it; ``client``: TeacherClient's options.

    ``student``: a network with the teacher's classes, or a function that makes one of their number (of the embedding's
    length, where the teacher has no classes). ``settings``: the method's, by name (``teacherfarm methods NAME`` lists
    them). ``student_size``: height and width of the student's crops (default: the teacher's). ``num_samples``: images
    of the data set; ``batch_size``: crops of one step, summed over all processes: what some methods' memories and terms
    are sized by. ``classes``: the data's, in order, matched to the teacher's by name; without them the data's numbers
    are the teacher's. Call it in every process with the same student.

    Raises MethodMismatch where teacher, student and method do not go together.
    """
    kind = find_method(method)
    chosen = make_settings(kind, settings or {})
    with TeacherClient(address, teacher, **client) as look:
        card = look.card
    network = student if isinstance(student, nn.Module) else student(num_outputs(card))
    size = Rendering(height=student_size, width=student_size) if student_size else card.rendering
    setup = Setup(
        card=card,
        # Measured on a copy: what the method does not look at must not be kept in every step.
        student=TappedStudent(copy.deepcopy(network), student_taps).measure(size.height, size.width),
        teacher_taps=tuple(teacher_taps),
        student_taps=tuple(student_taps),
        num_samples=num_samples,
        batch_size=batch_size,
        crops_per_image=crops_per_image,
        epochs=epochs,
    )
    phases = kind.phases(chosen, setup)
    asks = phases[0].asks
    if len(phases) > 1 or asks.spec is None:
        raise MethodMismatch(
            f"method {method} trains in {len(phases)} phases, each with an optimiser of its own: teacherfarm distill "
            f"--method {method} does that"
        )
    match = match_classes(classes, card) if classes and card.activation != "none" else None
    if match is not None and match.unmatched and (asks.targets or hard_fallback):
        raise MethodMismatch(f"method {method} learns from the data's own classes, too: {match}")
    source = TeacherClient(address, card.name, **{**client, "digest": card.teacher_digest, "spec": asks.spec})
    try:
        if asks.head:
            head = source.head()
            given = TeacherHead(weight=torch.from_numpy(head.weight.copy()), bias=torch.from_numpy(head.bias.copy()))
            setup = dataclasses.replace(setup, head=given)
        distiller = Distiller(TappedStudent(network, student_taps), kind(chosen, setup), hard_fallback=hard_fallback)
    except BaseException:
        source.close()
        raise
    return Distillation(
        distiller=distiller,
        teacher=source,
        asks=asks,
        student_rendering=size,
        crops_per_image=crops_per_image,
        mean=mean,
        std=std,
        class_numbers=match.numbers if match is not None else (),
    )


def check_processes(num_processes: int) -> None:
    """Raise ValueError where a framework knows of fewer processes than were started: each would train alone, on all."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != num_processes:
        raise ValueError(
            f"{started} processes were started and the trainer knows of {num_processes}: each would train alone on all "
            "of the data. accelerate and transformers join processes without GPUs where ACCELERATE_USE_CPU=true is set "
            "(accelerate launch --cpu does); Lightning takes Trainer(devices=..., num_nodes=..., strategy='ddp')"
        )
