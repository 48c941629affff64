"""What the figures of `teacherfarm check` mean, in sentences. Decides only; asks and prints nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.recipes.class_names import ClassMatch

GOOD_TOP1 = 0.5
POOR_TOP1 = 0.3
TIMES_CHANCE = 5.0
LARGE_DROP = 0.35
ONE_ANSWER = 0.9
CONSISTENT = 0.6
ENOUGH_PER_CLASS = 5
MOST_PAIRS = 20


@dataclass(kw_only=True)
class Counts:
    """The teacher on one set of crops. ``crops``, ``top1``, ``top5``: of those with an answer and a known
    target.

    ``said``: how often each folder's crops [F] got each of the teacher's classes [C]; ``confidence``: summed.
    """

    name: str
    said: NDArray[np.int64]
    crops: int = 0
    unreadable: int = 0
    top1: int = 0
    top5: int = 0
    confidence: float = 0.0

    @property
    def answered(self) -> int:
        return int(self.said.sum())

    @property
    def top1_share(self) -> float:
        return self.top1 / self.crops if self.crops else float("nan")

    @property
    def top5_share(self) -> float:
        return self.top5 / self.crops if self.crops else float("nan")

    @property
    def mean_confidence(self) -> float:
        return self.confidence / self.answered if self.answered else float("nan")

    @property
    def commonest_share(self) -> float:
        """Of the answered crops, those that got the teacher's most frequent answer."""
        return float(self.said.sum(axis=0).max()) / self.answered if self.answered else 0.0

    @property
    def consistent_share(self) -> float:
        """Of the answered crops, those that got their folder's most frequent answer; 0 where too few can
        tell.

        High where the teacher tells the classes apart but calls them something else.
        """
        folders = int((self.said.sum(axis=1) > 0).sum())
        distinct = len(set(self.said.argmax(axis=1)[self.said.sum(axis=1) > 0].tolist()))
        if self.answered < ENOUGH_PER_CLASS * folders or distinct < max(2, 0.7 * folders):
            return 0.0
        return float(self.said.max(axis=1).sum()) / self.answered


def class_name(card: TeacherCard, number: int) -> str:
    """The teacher's name of a class, or its number where the card names none."""
    return card.classes[number] if card.classes else f"class {number}"


def is_poor(val: Counts, card: TeacherCard) -> bool:
    """Whether this is no better than a bad guess, so that it pays to look for the reason."""
    return val.crops > 0 and val.top1_share < min(POOR_TOP1, TIMES_CHANCE / card.num_classes)


def verdict(
    val: Counts, train: Counts | None, swapped: Counts | None, match: ClassMatch, card: TeacherCard
) -> tuple[bool, list[str]]:
    """Whether the teacher fits, and what to say: the verdict first, then what to do.

    ``swapped``: the validation crops once more with red and blue exchanged, where the first figures were
    poor.
    """
    remarks = _remarks(val, train, match)
    renamed = _renamed(val, match, card) if not val.crops or is_poor(val, card) else []
    if not val.crops:
        told = f"CANNOT TELL: no class of the folder was matched to the teacher's {card.num_classes} classes."
        todo = "Give --class-map FILE with lines FOLDER = CLASS. Without hard labels a student can be trained as it is."
        return False, [told, *renamed, todo, *remarks]
    if is_poor(val, card):
        told = f"DOES NOT FIT: top-1 {val.top1_share:.1%} on the validation images is hardly better than guessing."
        return False, [told, *(_swapped(val, swapped, card) or renamed or [_guesses(match, card)]), *remarks]
    if val.top1_share < POOR_TOP1:
        told = f"FITS POORLY: top-1 {val.top1_share:.1%} on the validation images."
        todo = (
            "A student learns the teacher's mistakes, too: fine-tune the teacher on these classes, or choose another."
        )
        return False, [told, todo, *remarks]
    if train is not None and train.crops and train.top1_share < (1 - LARGE_DROP) * val.top1_share:
        remarks.append(
            f"On training crops its top-1 is {train.top1_share:.1%}: many of them show too little of their "
            "object. A higher --crop-scale gives better labels (the teacher's own begins at "
            f"{card.crop_scale[0]:g})."
        )
    word = "FITS" if val.top1_share >= GOOD_TOP1 else "FITS, BARELY"
    return True, [
        f"{word}: top-1 {val.top1_share:.1%} and top-5 {val.top5_share:.1%} on the validation images.",
        *remarks,
    ]


def _remarks(val: Counts, train: Counts | None, match: ClassMatch) -> list[str]:
    remarks = []
    if unreadable := val.unreadable + (train.unreadable if train else 0):
        remarks.append(f"{unreadable} crops are of images that could not be read; the warnings above name them.")
    if val.commonest_share > ONE_ANSWER and len(match.names) > 1:
        remarks.append(
            f"It gives one and the same answer to {val.commonest_share:.0%} of the images: it was not "
            "trained for such pictures, or it was exported with wrong statistics."
        )
    if match.unmatched and val.crops:
        listed = ", ".join(match.unmatched[:5]) + (", ..." if len(match.unmatched) > 5 else "")
        remarks.append(
            f"{len(match.unmatched)} of the folder's classes are unknown to the teacher and were not "
            f"counted ({listed}): its labels for them spread over its own classes. --class-map FILE can "
            "match them by hand."
        )
    return remarks


def _swapped(val: Counts, swapped: Counts | None, card: TeacherCard) -> list[str]:
    if swapped is None or swapped.top1_share < max(2 * val.top1_share, POOR_TOP1):
        return []
    told = f"The reason is the channel order: with red and blue swapped its top-1 is {swapped.top1_share:.1%}."
    todo = f"The card says {card.channel_order}: export the teacher again with the order that it was trained with."
    return [told, todo]


def _renamed(val: Counts, match: ClassMatch, card: TeacherCard) -> list[str]:
    if val.consistent_share < CONSISTENT:
        return []
    answers = val.said.argmax(axis=1)
    pairs = [f"{name} = {class_name(card, int(answer))}" for name, answer in zip(match.names, answers, strict=True)]
    told = (
        f"The reason is the class order: the teacher gives {val.consistent_share:.0%} of the images their "
        f"folder's usual answer, but under another name (classes were matched {match.how})."
    )
    todo = "If these pairs look right, write them to a file for --class-map, one a line:"
    return [told, todo, *pairs[:MOST_PAIRS], *(["..."] if len(pairs) > MOST_PAIRS else [])]


def _guesses(match: ClassMatch, card: TeacherCard) -> str:
    return (
        "Likely reasons: this teacher was trained for something else than these images; its export differs "
        f"from what it was trained with (statistics, size); classes were matched wrongly ({match.how}). Its "
        f"channel order ({card.channel_order}) is not it: swapping red and blue does not help."
    )
