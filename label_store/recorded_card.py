"""The card of the teacher whose labels were recorded, beside them: a replay needs no teacher to know its classes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from teacherfarm.label_store.label_directory import write_whole
from teacherfarm.label_store.manifest import Manifest, TeacherIdentity
from teacherfarm.protos.crop import CropFormat
from teacherfarm.protos.faults import DamagedLabels
from teacherfarm.protos.soft_label import LABELS
from teacherfarm.protos.teacher_card import CARD_FILE, OutputCard, TeacherCard


def write_card(directory: str | Path, card: TeacherCard) -> None:
    """Put the card beside recorded labels, where there is none yet."""
    path = Path(directory) / CARD_FILE
    if not path.exists():
        write_whole(path, card.to_json().encode())


def read_card(location: str, manifest: Manifest) -> TeacherCard:
    """The card beside recorded labels, wherever fsspec reaches; what the manifest tells where there is none.

    Raises DamagedLabels where it is no card, or another teacher's than the labels.
    """
    place = os.path.join(location, CARD_FILE)
    content = _read(place)
    if content is None:
        return _card_of(manifest)
    try:
        card = TeacherCard.from_json(content)
    except ValueError as error:
        raise DamagedLabels(f"{place}: {error}; remove it, or copy the teacher's card there again") from error
    beside, told = TeacherIdentity.of(card), manifest.teacher
    if (beside.teacher_digest, beside.artifact_digest) != (told.teacher_digest, told.artifact_digest):
        raise DamagedLabels(
            f"{place} is the card of {card.name} ({card.teacher_digest[:12]}), the labels beside it are of {told.name} "
            f"({told.teacher_digest[:12]}): remove it, or copy that teacher's card there"
        )
    return card


def _read(place: str) -> bytes | None:
    try:
        if "://" not in place:
            return Path(place).read_bytes()
        import fsspec  # type: ignore[import-untyped]

        with fsspec.open(place, "rb") as file:
            content: bytes = file.read()
            return content
    except FileNotFoundError:
        return None


def _card_of(manifest: Manifest) -> TeacherCard:
    teacher, rendering = manifest.teacher, manifest.rendering
    return TeacherCard(
        name=teacher.name,
        teacher_digest=teacher.teacher_digest,
        artifact_digest=teacher.artifact_digest,
        model_file="",
        crop_format=CropFormat(height=rendering.height, width=rendering.width),
        rendering=rendering,
        num_classes=teacher.num_classes,
        activation=teacher.activation,
        features=tuple(_output_of(manifest, name) for name in manifest.spec.outputs if name != LABELS),
        classes_hash=teacher.classes_hash,
        precision=teacher.precision,
        fixed_temperature=teacher.fixed_temperature,
    )


def _output_of(manifest: Manifest, name: str) -> OutputCard:
    shape = manifest.record_dtype[name].shape
    layouts: dict[int, Literal["vector", "map", "tokens"]] = {1: "vector", 2: "tokens", 3: "map"}
    return OutputCard(name=name, shape=shape, layout=layouts.get(len(shape), "vector"))
