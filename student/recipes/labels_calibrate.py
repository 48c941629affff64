"""``teacherfarm labels calibrate``: recorded labels as FerKD prepares them (arXiv 2312.17473)."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from teacherfarm.crops.crop_plan import BOX
from teacherfarm.crops.sample_index import SampleIndex
from teacherfarm.label_store.manifest import Manifest, TeacherIdentity
from teacherfarm.label_store.recorded_card import read_card, write_card
from teacherfarm.label_store.recorded_labels import LabelRecorder, RecordedLabels
from teacherfarm.protos.soft_label import LABELS
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.losses import NO_TARGET
from teacherfarm.student.methods.confidence import Reading, confidence
from teacherfarm.student.recipes.class_names import ClassMatch, match_classes

_LABELS_AT_ONCE = 65536


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """FerKD's rule for one image's crops; see :mod:`labels_calibrate_command`."""

    confidence: Reading
    thresholds: Literal["quantile", "absolute"]
    low: float
    middle: float
    high: float
    epsilon: float
    at_least: int

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.middle <= self.high <= 1:
            raise ValueError(
                f"0 <= low <= middle <= high <= 1, got low={self.low:g}, middle={self.middle:g}, high={self.high:g}"
            )
        if not 0 <= self.epsilon < 1:
            raise ValueError(f"--epsilon lies from 0 up to 1, got {self.epsilon:g}")
        if self.at_least < 1:
            raise ValueError(f"--at-least counts crops, got {self.at_least}")

    def regions(self, sure: NDArray[np.float32], *, known: bool) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Which of an image's crops [M] stay, in order, and which of those get the data's own label.

        ``known``: whether the image's class is one of the teacher's.
        """
        if self.confidence == "target" and not known:
            return np.arange(len(sure)), np.zeros(len(sure), np.bool_)
        position = ranks(sure) if self.thresholds == "quantile" else sure
        stays = (position >= self.low) & (position <= self.high)
        if missing := max(min(self.at_least, len(sure)) - int(stays.sum()), 0):
            gone = np.flatnonzero(~stays)
            stays[gone[np.argsort(-sure[gone], kind="stable")[:missing]]] = True
        places = np.flatnonzero(stays)
        return places, (position[places] < self.middle) & known


def main(options: argparse.Namespace) -> int:
    """Calibrate what :mod:`labels_calibrate_command`'s arguments say. Raises ValueError for labels that cannot be."""
    recorded = RecordedLabels.open(options.labels)
    check(recorded)
    rule = Calibration(
        confidence=options.confidence,
        thresholds=options.thresholds,
        low=options.low,
        middle=options.middle,
        high=options.high,
        epsilon=options.epsilon,
        at_least=options.at_least,
    )
    index, card = recorded.index, read_card(options.labels, recorded.manifest)
    match = match_index(index, card, options.class_map)
    print(match)
    targets = np.where(index.targets >= 0, np.array(match.numbers)[np.maximum(index.targets, 0)], NO_TARGET)
    card = calibrated_card(card, rule)
    manifest = dataclasses.replace(
        recorded.manifest,
        teacher=TeacherIdentity.of(card),
        plan=None,
        has_boxes=True,
        views=options.views or recorded.manifest.views,
    )
    counts: Counter[str] = Counter()
    with LabelRecorder(str(options.out), manifest, index) as recorder:
        write_card(options.out, card)
        rows = np.arange(len(index))
        rows = rows[~recorder.present(rows, np.full(len(rows), manifest.views - 1))]
        at_once = max(1, _LABELS_AT_ONCE // recorded.manifest.views)
        there = len(index) - len(rows)
        with tqdm(total=len(index), initial=there, desc="calibrating", unit=" images", disable=None) as bar:
            for first in range(0, len(rows), at_once):
                some = rows[first : first + at_once]
                counts += calibrate(recorded, some, targets[some], rule, recorder)
                bar.update(len(some))
    say(counts, options, manifest, there)
    return 0


def check(recorded: RecordedLabels) -> None:
    """Raise ValueError for labels without probabilities of classes, or of crops whose boxes nobody knows."""
    manifest = recorded.manifest
    if LABELS not in manifest.spec.outputs or manifest.teacher.activation != "softmax":
        raise ValueError(
            f"{recorded.directory} holds {', '.join(manifest.spec.outputs)} of a teacher with activation "
            f"{manifest.teacher.activation!r}; calibration needs probabilities of softmax classes"
        )
    if manifest.teacher.num_classes < 2:
        raise ValueError(f"{recorded.directory} knows one class: there is nothing to soften a label over")
    if manifest.plan is None and not manifest.has_boxes:
        raise ValueError(f"{recorded.directory} knows no boxes ({manifest.mixing}): its crops cannot be chosen from")


def match_index(index: SampleIndex, card: TeacherCard, class_map: object) -> ClassMatch:
    """The teacher's class of each target of an index, by the folders in its samples' names."""
    names: dict[int, str] = {}
    for row in np.unique(index.targets, return_index=True)[1].tolist():
        folder = index.name(row).rpartition("/")[0].rpartition("/")[2]
        names[int(index.targets[row])] = folder or str(index.targets[row])
    last = max(names, default=-1)
    return match_classes([names.get(target, str(target)) for target in range(last + 1)], card, class_map)  # type: ignore[arg-type]


def calibrated_card(card: TeacherCard, rule: Calibration) -> TeacherCard:
    """A teacher of its own: nobody may ask the plain one for what is missing here."""
    told = f"{card.teacher_digest} {card.artifact_digest} {rule}"
    digest = hashlib.sha256(told.encode()).hexdigest()
    return dataclasses.replace(
        card,
        name=f"{card.name}, calibrated",
        teacher_digest=digest,
        artifact_digest=digest,
    )


def calibrate(
    recorded: RecordedLabels,
    rows: NDArray[np.int64],
    targets: NDArray[np.int64],
    rule: Calibration,
    recorder: LabelRecorder,
) -> Counter[str]:
    """Record the calibrated labels of some images, and count what became of their crops."""
    index, manifest = recorded.index, recorded.manifest
    every_row, every_view = np.repeat(rows, manifest.views), np.tile(np.arange(manifest.views), len(rows))
    labels = recorded.soft_labels(every_row, every_view)
    present = (labels.weight > 0) & (index.heights[every_row] > 0)
    boxes = np.zeros(len(every_row), BOX)
    if manifest.plan is None:
        kept = recorded.boxes(every_row, every_view)
        assert kept is not None
        boxes = kept
    else:
        numbers, heights, widths = (
            column[every_row[present]] for column in (index.numbers(), index.heights, index.widths)
        )
        boxes[present] = manifest.plan.boxes(numbers, every_view[present], heights, widths)
    own = torch.from_numpy(np.repeat(targets, manifest.views))
    sure = confidence(labels, own, rule.confidence, manifest.spec.temperature).numpy()

    counts: Counter[str] = Counter()
    views = recorder.manifest.views
    for number, (row, target) in enumerate(zip(rows.tolist(), targets.tolist(), strict=True)):
        here = number * manifest.views + np.flatnonzero(present[number * manifest.views :][: manifest.views])
        if not len(here):
            counts["images without labels"] += 1
            continue
        places, hard = rule.regions(sure[here], known=target != NO_TARGET)
        records = labels.records[here[places]]
        records[hard] = softened(target, records[hard], manifest, rule.epsilon)
        again = np.arange(views) % len(places)
        recorder.add(np.full(views, row), np.arange(views), records[again], boxes[here[places]][again])
        counts += Counter({"out": len(here) - len(places), "hard": int(hard.sum()), "soft": int((~hard).sum())})
    return counts


def ranks(sure: NDArray[np.float32]) -> NDArray[np.float64]:
    """The share of an image's crops that are less sure, from 0 to 1 [M]; equally sure ones count half."""
    ordered = np.sort(sure)
    return (np.searchsorted(ordered, sure, "left") + np.searchsorted(ordered, sure, "right")) / (2 * len(sure))


def softened(target: int, records: NDArray[np.void], manifest: Manifest, epsilon: float) -> NDArray[np.void]:
    """These records with 1 - epsilon for the target and epsilon spread evenly over the other classes."""
    changed, num_classes = records.copy(), manifest.teacher.num_classes
    with np.errstate(divide="ignore"):
        own, others = np.log(1 - epsilon), max(np.log(epsilon / (num_classes - 1)), np.finfo(np.float16).min)
    if manifest.spec.top_k:
        # The classes that are not named share what is left evenly, as smoothing completes them.
        first = np.setdiff1d(np.arange(manifest.spec.top_k + 1), [target])[: manifest.spec.top_k - 1]
        changed["classes"] = np.concatenate([[target], first])
        changed["log_probabilities"] = [own, *[others] * len(first)]
    else:
        changed[LABELS] = np.where(np.arange(num_classes) == target, own, others)
    return changed


def say(counts: Counter[str], options: argparse.Namespace, manifest: Manifest, there: int) -> None:
    """What became of the crops."""
    total = max(counts["out"] + counts["hard"] + counts["soft"], 1)
    shares = ", ".join(
        f"{counts[region] / total:.1%} {words}"
        for region, words in (
            ("soft", "keep the teacher's label"),
            ("hard", "get their own class"),
            ("out", "left out"),
        )
    )
    print(f"calibrated {options.out}: {manifest.views} views an image; of the crops recorded {shares}")
    if there:
        print(f"{there} images were there already")
    if counts["images without labels"]:
        print(f"{counts['images without labels']} images have no labels recorded")
