"""The data of a distillation run: which crops, in which order, and what the folder's classes are to the
teacher.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from teacherfarm.crops.view_schedule import ViewSchedule
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.soft_label import LABELS
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.by_reference import ByReference
from teacherfarm.student.center_crops import CenterCropDataset
from teacherfarm.student.crop_dataset import CropDataset
from teacherfarm.student.image_sources import SampleImages
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.losses import NO_TARGET
from teacherfarm.student.methods.method import Asks
from teacherfarm.student.mixed_crops import MixedCrops
from teacherfarm.student.own_pixels import OwnPixels
from teacherfarm.student.pixels import to_student
from teacherfarm.student.recipes.class_names import ClassMatch, match_classes, match_own
from teacherfarm.student.recipes.folders import find_samples
from teacherfarm.student.recipes.kept_labels import KeptLabels
from teacherfarm.student.recipes.no_teacher import NoTeacher
from teacherfarm.student.recipes.passes import crops_of_batch
from teacherfarm.student.recipes.ranks import Ranks
from teacherfarm.student.recording_teacher import Teacher
from teacherfarm.student.shard_sampler import ShardSampler


@dataclass(frozen=True, kw_only=True)
class Images:
    """One data set of images, and its classes in the teacher's numbers, or in its own where the teacher has none."""

    source: SampleImages
    match: ClassMatch

    def __len__(self) -> int:
        return len(self.source)

    def targets(self, batch: dict[str, Any]) -> Tensor:
        """The teacher's class numbers of a batch [N]; NO_TARGET for unmatched classes and unreadable images."""
        own = self.own_targets(batch)
        if not self.match.numbers:
            return torch.full_like(own, NO_TARGET)
        numbers = torch.tensor(self.match.numbers)
        return torch.where(own != NO_TARGET, numbers[own.clamp(min=0)], NO_TARGET)

    def own_targets(self, batch: dict[str, Any]) -> Tensor:
        """The folder's own class numbers of a batch [N]; NO_TARGET for unreadable images."""
        known = (batch["targets"] >= 0) & (batch["weight"] > 0)
        return torch.where(known, batch["targets"], NO_TARGET)


def num_workers(options: argparse.Namespace) -> int:
    """``--workers``, or one for each core that this process may use, at most 8."""
    return min(len(os.sched_getaffinity(0)), 8) if options.workers is None else int(options.workers)


class DistillData:
    """Training and validation images, the crop plan and the view schedule, as options and kept labels say."""

    def __init__(self, kept: KeptLabels, card: TeacherCard, ranks: Ranks) -> None:
        self._kept, self._options, self._card, self._ranks = kept, kept.options, card, ranks
        options = self._options
        if options.data is None:
            raise ValueError("which images? Give DATA, or data: in --config FILE")
        train = SampleImages(find_samples(options.data, options.train_folder, "--train-folder"))
        val = SampleImages(find_samples(options.data, options.val_folder, "--val-folder"))

        def match(names: Sequence[str]) -> ClassMatch:
            if card.activation == "none":
                return match_own(names, train.classes)
            return match_classes(names, card, options.class_map)

        self.train, self.val = (Images(source=source, match=match(source.classes)) for source in (train, val))
        size, teacher = options.student_size, card.rendering
        self.student_rendering = Rendering(height=size, width=size) if size else teacher
        # Who sees no crop needs none to be cut.
        self.teacher_rendering = teacher if kept.asks else None
        self.plan = kept.plan(card, self.train.source)
        self.schedule = ViewSchedule(
            views=options.views,
            order=options.order,
            per_visit=options.crops_per_image,
            seed=options.seed if options.order == "permute" else 0,
        )
        if len(self.train) < ranks.num_ranks:
            raise ValueError(
                f"{len(self.train)} images to train on cannot be divided among {ranks.num_ranks} processes"
            )

    def train_loader(self, crops_per_image: int, teacher: Teacher | None, asks: Asks) -> LabelledLoader[dict[str, Any]]:
        """Batches of ``--batch-size`` crops with what the method asks; every rank has its own images and equally many
        batches. A phase that asks for no labels gets empty ones.
        """
        options, ranks = self._options, self._ranks
        shown = self._kept.asks and asks.spec is not None
        dataset = self._dataset(crops_per_image, shown=shown)
        source = NoTeacher() if asks.spec is None else self._kept.source(dataset, teacher, ranks)
        sampler = ShardSampler(dataset, rank=ranks.rank, num_ranks=ranks.num_ranks, seed=options.seed)
        num_images = crops_of_batch(options.batch_size, options.crops_per_image) // crops_per_image
        loader = DataLoader(
            dataset,
            batch_size=num_images,
            sampler=sampler,
            # A last batch of one crop would break batch normalisation.
            drop_last=len(sampler) >= num_images,
            num_workers=num_workers(options),
            collate_fn=self._collate(asks),
            pin_memory=ranks.device.type == "cuda",
            persistent_workers=num_workers(options) > 0,
            # Of its own: workers that persist take no seed from torch's in later passes, those of a resumed run would.
            generator=torch.Generator(),
        )
        has_classes = asks.spec is not None and (not asks.spec.outputs or LABELS in asks.spec.outputs)
        watched = has_classes and self._card.activation != "none" and asks.mixing != "crops"
        return LabelledLoader(
            loader,
            source,
            (lambda batch: batch["crops"]) if shown else None,
            keys=lambda batch: batch["keys"],
            samples=lambda batch: batch["samples"],
            views=lambda batch: batch["views"],
            prefetch_batches=options.prefetch_batches,
            weight_view=lambda batch: batch["weight"],
            target_view=self.train.targets if watched else None,
        )

    def some_batch(self, asks: Asks) -> dict[str, Any]:
        """A batch as training has them, of the first images that this rank could see."""
        options = self._options
        dataset = self._dataset(options.crops_per_image, shown=True)
        num_images = crops_of_batch(options.batch_size, options.crops_per_image) // options.crops_per_image
        places = [(self._ranks.rank + number) % len(dataset) for number in range(num_images)]
        return dict(self._collate(asks)(dataset.__getitems__(places)))

    def _dataset(self, crops_per_image: int, *, shown: bool) -> CropDataset:
        return CropDataset(
            self.train.source,
            teacher_rendering=self.teacher_rendering if shown else None,
            student_rendering=self.student_rendering,
            plan=self.plan,
            schedule=self.schedule if crops_per_image > 1 else self.schedule.single(),
            on_unreadable="skip",
            by_reference=self._options.by_reference if shown else "",
        )

    def _collate(self, asks: Asks) -> MixedCrops:
        return MixedCrops(asks.mixing, asks.draw, self._options.seed, teacher_rendering=self.teacher_rendering)

    def references(self) -> ByReference:
        """With ``--by-reference``: what the training crops' references mean."""
        own = OwnPixels(self.train.source, self._card.rendering, self.plan)
        return ByReference(
            dataset=self._options.by_reference,
            rendering=self._card.rendering,
            plan=self.plan,
            on_refused=self._options.on_refused,
            own_pixels=own,
            sample_name=own.name,
        )

    def val_loader(self) -> DataLoader[dict[str, Any]]:
        """Centre crops of this rank's share of the validation images, in both renderings where a teacher is asked."""
        dataset = CenterCropDataset(
            self.val.source,
            teacher_rendering=self.teacher_rendering or self.student_rendering,
            student_rendering=self.student_rendering,
            fraction=self._card.center_crop_fraction,
        )
        share = Subset(dataset, self._ranks.share(len(dataset)))
        return DataLoader(share, batch_size=self._options.batch_size, num_workers=num_workers(self._options))

    def student_input(self, batch: dict[str, Any]) -> Tensor:
        """Normalised pixels [N, 3, H, W] on this rank's device."""
        return to_student(batch["images"], self._options.mean, self._options.std, self._ranks.device)

    def settings(self) -> dict[str, Any]:
        """What must not change when a run is resumed."""
        options = self._options
        return {
            "crop plan": self.plan.to_dict(),
            "view schedule": self.schedule.to_dict(),
            "student": options.student,
            "student size": self.student_rendering.height,
            "epochs": options.epochs,
            "batch size": options.batch_size,
            "batches of a step": options.accumulate,
            "optimizer": options.optimizer,
            "learning rate": options.lr,
            "schedule": [options.lr_schedule, list(options.lr_steps), options.lr_factor, options.lr_floor],
        }
