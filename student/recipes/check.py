"""Does a teacher fit a data set? teacherfarm check DATA --teacher-address ... : accuracy, class names, a
verdict.

Trains nothing and writes nothing but the picture that it is asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.protos.soft_label import SoftLabels
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.blocking import TeacherClient
from teacherfarm.student.center_crops import CenterCropDataset
from teacherfarm.student.crop_collate import collate_crops
from teacherfarm.student.crop_dataset import CropDataset
from teacherfarm.student.image_sources import SampleImages
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.losses import NO_TARGET
from teacherfarm.student.recipes.check_command import add_arguments
from teacherfarm.student.recipes.check_verdict import Counts, class_name, is_poor, verdict
from teacherfarm.student.recipes.class_names import match_classes
from teacherfarm.student.recipes.contact_sheet import Disagreement, draw_contact_sheet
from teacherfarm.student.recipes.distill_data import Images, num_workers
from teacherfarm.student.recipes.folders import find_samples, samples_location
from teacherfarm.student.settings import Timeouts

MOST_PICTURES = 24


def main(options: argparse.Namespace) -> int:
    """Run the command: 0 when the teacher fits, 1 when it does not. Mistakes and faults are raised."""
    with TeacherClient(
        options.teacher_address,
        options.teacher,
        api_key=options.api_key,
        digest=options.digest,
        timeouts=Timeouts(answer_s=options.answer_timeout),
        on_starved="raise",
    ) as teacher:
        return check(options, teacher)


def check(options: argparse.Namespace, teacher: TeacherClient) -> int:
    """Print the table and the verdict; draw the picture."""
    card = teacher.card
    if card.activation != "softmax":
        raise ValueError(f"teacher {card.name!r} names no most probable class ({card.activation}): nothing to compare")
    val = _images(options, options.val_folder, "--val-folder", card)
    size = f"{card.rendering.height}x{card.rendering.width} {card.rendering.interpolation}"
    print(f"teacher  {card.name}: {card.num_classes or 'no'} classes, {size}, digest {card.teacher_digest[:12]}")
    print(f"classes  {val.match}")

    # As it would be evaluated: one centre crop of each image.
    centre = CenterCropDataset(val.source, teacher_rendering=card.rendering, fraction=card.center_crop_fraction)
    worst: list[Disagreement] = []
    name = f"{val.source.where}, centre crops"
    of_val = _ask(options, teacher, val, centre, None, name, worst)
    rows = [of_val]
    swapped = None
    if is_poor(of_val, card):
        swapped = _ask(options, teacher, val, centre, None, f"{name}, red and blue swapped", [], swap_channels=True)
        rows.append(swapped)

    # As a student would train: random crops.
    of_train = None
    if samples_location(options.data, options.train_folder) is not None:
        train = _images(options, options.train_folder, "--train-folder", card)
        scale = tuple(options.crop_scale) if options.crop_scale else card.crop_scale
        crops = CropDataset(
            train.source,
            teacher_rendering=card.rendering,
            plan=CropPlan(seed=options.seed, scale=scale, ratio=card.crop_ratio),
            on_unreadable="skip",
        )
        name = f"{train.source.where}, crops of {scale[0]:g} to {scale[1]:g} of the area"
        of_train = _ask(options, teacher, train, crops, collate_crops, name, [])
        rows.append(of_train)

    print()
    for line in _table(rows):
        print(line)
    fits, sentences = verdict(of_val, of_train, swapped, val.match, card)
    print()
    for sentence in sentences:
        print(sentence)
    if options.picture is not None and worst:
        worst.sort(key=lambda disagreement: disagreement.log_probability)
        draw_contact_sheet(worst[:MOST_PICTURES], options.picture)
        print(f"the worst disagreements: {options.picture}")
    return 0 if fits else 1


def _images(options: argparse.Namespace, name: str, option: str, card: TeacherCard) -> Images:
    data = options.data
    is_split = any(samples_location(data, folder) for folder in (options.val_folder, options.train_folder))
    if not is_split and (data.is_file() or (data.is_dir() and any(data.iterdir()))):
        source = SampleImages(data)  # itself a data set
    else:
        source = SampleImages(find_samples(data, name, option))
    return Images(source=source, match=match_classes(source.classes, card, options.class_map))


def _ask(
    options: argparse.Namespace,
    teacher: TeacherClient,
    images: Images,
    dataset: Any,
    collate: Callable[[Any], Any] | None,
    name: str,
    worst: list[Disagreement],
    *,
    swap_channels: bool = False,
) -> Counts:
    """The teacher's answers for at most ``--images`` of a data set, counted; ``worst`` collects
    disagreements.
    """
    chosen = np.random.default_rng(options.seed).permutation(len(dataset))[: options.images]
    loader: DataLoader[Any] = DataLoader(
        Subset(dataset, chosen.tolist()),
        batch_size=options.batch_size,
        num_workers=num_workers(options),
        collate_fn=collate,
    )
    labelled = LabelledLoader(
        loader,
        teacher,
        lambda batch: batch["crops"].flip(-1) if swap_channels else batch["crops"],
        weight_view=lambda batch: batch["weight"],
        on_mismatch="ignore",
    )
    counts = Counts(name=name, said=np.zeros((len(images.match.names), teacher.card.num_classes), np.int64))
    for batch, labels in tqdm(labelled, desc=name, unit=" batches", disable=None, leave=False):
        targets = images.targets(batch).numpy()
        log_p = labels.log_probabilities.astype(np.float32)
        _count(labels, log_p, targets, batch["targets"].numpy(), counts)
        right = np.take_along_axis(log_p, np.maximum(targets, 0)[:, None], axis=1)[:, 0]
        wrong = (targets >= 0) & (labels.weight > 0) & (labels.top1 != targets)
        worst += [
            Disagreement(
                pixels=batch["crops"][row].numpy().copy(),
                folder=_folder_name(images, teacher.card, int(batch["targets"][row])),
                teachers=class_name(teacher.card, int(labels.top1[row])),
                probability=float(np.exp(log_p[row].max())),
                log_probability=float(right[row]),
            )
            for row in np.flatnonzero(wrong)
        ]
        worst.sort(key=lambda disagreement: disagreement.log_probability)
        del worst[MOST_PICTURES:]
    return counts


def _count(
    labels: SoftLabels,
    log_p: NDArray[np.float32],
    targets: NDArray[np.int64],
    folders: NDArray[np.int64],
    counts: Counts,
) -> None:
    """Add one batch to the counts."""
    answered = labels.weight > 0
    counted = answered & (targets != NO_TARGET)
    best = np.argsort(-log_p[counted], axis=1)[:, :5]
    counts.crops += int(counted.sum())
    counts.unreadable += int((~answered).sum())
    counts.top1 += int((best[:, 0] == targets[counted]).sum())
    counts.top5 += int((best == targets[counted][:, None]).any(axis=1).sum())
    counts.confidence += float(np.exp(log_p[answered].max(axis=1)).sum())
    np.add.at(counts.said, (folders[answered], labels.top1[answered]), 1)


def _folder_name(images: Images, card: TeacherCard, target: int) -> str:
    """A folder's class by the teacher's name, which says more than a WordNet id."""
    return class_name(card, images.match.numbers[target]) if card.classes else images.match.names[target]


def _table(rows: list[Counts]) -> list[str]:
    width = max(len(row.name) for row in rows)
    lines = [f"{'':{width}}  {'crops':>7}  {'top-1':>7}  {'top-5':>7}  {'confidence':>10}"]
    lines += [
        f"{row.name:{width}}  {row.crops:>7}  {row.top1_share:>7.1%}  {row.top5_share:>7.1%}  "
        f"{row.mean_confidence:>10.1%}"
        for row in rows
    ]
    return lines


__all__ = ["add_arguments", "check", "main"]
