"""Which of the teacher's classes a folder's class is: by name, by WordNet id, by number. Says what it could
not match.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.losses import NO_TARGET
from teacherfarm.student.recipes.imagenet_synsets import WORDNET_IDS

_WORDNET = re.compile(r"n\d{8}")


@dataclass(frozen=True, kw_only=True)
class ClassMatch:
    """``numbers``: the teacher's class of each folder's class, NO_TARGET where none was found; ``how``: in
    words; ``whose`` classes these are, where they are not the teacher's.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    how: str
    whose: str = "the teacher's"

    @property
    def unmatched(self) -> tuple[str, ...]:
        return tuple(name for name, number in zip(self.names, self.numbers, strict=True) if number == NO_TARGET)

    def __str__(self) -> str:
        matched = len(self.names) - len(self.unmatched)
        words = f"{matched} of {len(self.names)} classes of the folder matched to {self.whose} {self.how}"
        if self.unmatched:
            listed = ", ".join(self.unmatched[:8]) + (", ..." if len(self.unmatched) > 8 else "")
            words += f"; not matched: {listed}"
        return words


def match_classes(names: Sequence[str], card: TeacherCard, class_map: Path | None = None) -> ClassMatch:
    """Match a folder's class names to the card's; ``class_map`` (lines "FOLDER = CLASS", name or number)
    decides first.
    """
    names = tuple(names)
    if class_map is not None:
        return _by_map(names, card, class_map)
    known = _spellings(card.classes)
    by_name = tuple(known.get(_plain(name), NO_TARGET) for name in names)
    ways = [(by_name, "by name")]
    if all(_WORDNET.fullmatch(name) for name in names):
        if card.num_classes == len(WORDNET_IDS):
            order = {wordnet_id: number for number, wordnet_id in enumerate(WORDNET_IDS)}
            ways.append(
                (tuple(order.get(name, NO_TARGET) for name in names), "by WordNet id, in ImageNet's class order")
            )
        elif len(names) == card.num_classes:
            ways.append((tuple(range(len(names))), "by the order of their WordNet ids (assumed, not known)"))
    elif all(name.isdecimal() for name in names):
        numbers = [int(name) for name in names]
        ways.append((tuple(n if n < card.num_classes else NO_TARGET for n in numbers), "by number"))
    elif not card.classes and len(names) == card.num_classes:
        ways.append((tuple(range(len(names))), "by their order (assumed: the card names no classes)"))
    numbers_found, how = max(ways, key=lambda way: sum(number != NO_TARGET for number in way[0]))
    return ClassMatch(names=names, numbers=numbers_found, how=how)


def match_own(names: Sequence[str], own: Sequence[str]) -> ClassMatch:
    """Match a folder's class names to those of the images to train on, for a teacher without classes."""
    numbers = {name: number for number, name in enumerate(own)}
    return ClassMatch(
        names=tuple(names),
        numbers=tuple(numbers.get(name, NO_TARGET) for name in names),
        how="by name, as the teacher has none",
        whose="the training images'",
    )


def _by_map(names: tuple[str, ...], card: TeacherCard, class_map: Path) -> ClassMatch:
    known = _spellings(card.classes)
    told: dict[str, int] = {}
    for line_number, line in enumerate(class_map.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        folder, found, wanted = (part.strip() for part in line.partition("="))
        number = int(wanted) if wanted.isdecimal() else known.get(_plain(wanted), NO_TARGET)
        if not found or not 0 <= number < card.num_classes:
            raise ValueError(
                f"{class_map}, line {line_number}: expected FOLDER = CLASS, with a class name of teacher "
                f"{card.name!r} or a number from 0 to {card.num_classes - 1}, got {line!r}"
            )
        told[folder] = number
    return ClassMatch(
        names=names, numbers=tuple(told.get(name, NO_TARGET) for name in names), how=f"by {class_map.name}"
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-']+", " ", name).strip().lower()


def _spellings(classes: Sequence[str]) -> dict[str, int]:
    """Every way to write a class ("tench, Tinca tinca" also as "tench"); what would mean two classes means
    none.
    """
    found: dict[str, int] = {}
    ambiguous: set[str] = set()
    for number, written in enumerate(classes):
        for spelling in {_plain(written), *(_plain(part) for part in written.split(","))}:
            if found.setdefault(spelling, number) != number:
                ambiguous.add(spelling)
    return {spelling: number for spelling, number in found.items() if spelling and spelling not in ambiguous}
