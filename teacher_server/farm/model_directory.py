"""Reads a directory of exported teachers and refuses what is missing, half written or altered."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from teacherfarm.protos.classifier_head import require_head
from teacherfarm.protos.faults import BadTeacher, DamagedArtifact, EmptyModelDirectory
from teacherfarm.protos.teacher_card import CARD_FILE, GOLDEN_FILE, HEAD_FILE, TeacherCard


@dataclass(frozen=True, kw_only=True)
class ExportedTeacher:
    """A teacher on disk; ``fault`` says why it cannot be served, if so."""

    name: str
    folder: Path
    card: TeacherCard | None = None
    fault: BadTeacher | None = None

    @property
    def model_file(self) -> Path:
        assert self.card is not None
        return self.folder / self.card.model_file

    @property
    def golden_file(self) -> Path:
        return self.folder / GOLDEN_FILE

    @property
    def head_file(self) -> Path:
        return self.folder / HEAD_FILE

    def read_head(self, first: int, most: int) -> tuple[memoryview, int]:
        """At most so many bytes of the classifier's file from ``first`` on, and the whole file's size.

        All who ask are given views of one copy, however many of them leave it unread. Raises NoHead, DamagedArtifact.
        """
        assert self.card is not None
        require_head(self.card)
        return memoryview(self._head)[first : first + most], len(self._head)

    @functools.cached_property
    def _head(self) -> bytes:
        try:
            return self.head_file.read_bytes()
        except OSError as error:
            raise DamagedArtifact(f"{self.head_file} cannot be read ({error}): export {self.name!r} again") from error


def read_model_directory(models: Path) -> list[ExportedTeacher]:
    """Every teacher in ``models`` (or ``models`` itself, where it is one), by name. Raises EmptyModelDirectory."""
    if not models.is_dir():
        raise EmptyModelDirectory(
            f"{models} is not a directory: export a teacher into it with teacherfarm export NAME --out {models}"
        )
    if (models / CARD_FILE).is_file():
        return [_read_teacher(models)]
    # Names that start with a dot are exports that have not finished.
    folders = sorted(path for path in models.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [_read_teacher(folder) for folder in folders if any(folder.iterdir())]
    if not found:
        raise EmptyModelDirectory(
            f"{models} holds no exported teacher (a folder with {CARD_FILE}): "
            f"teacherfarm export efficientnet-lite0 --out {models}"
        )
    by_name: dict[str, ExportedTeacher] = {}
    for teacher in found:
        other = by_name.setdefault(teacher.name, teacher)
        if other is not teacher:
            raise DamagedArtifact(
                f"{other.folder} and {teacher.folder} both hold a teacher named {teacher.name!r}: remove one of them, "
                "or export it under another --name"
            )
    return found


def _read_teacher(folder: Path) -> ExportedTeacher:
    name = folder.name
    again = f"export {name!r} again"
    try:
        card = TeacherCard.from_json((folder / CARD_FILE).read_bytes())
    except FileNotFoundError:
        return ExportedTeacher(name=name, folder=folder, fault=DamagedArtifact(f"{folder} has no {CARD_FILE}: {again}"))
    except (OSError, ValueError) as error:
        return ExportedTeacher(
            name=name,
            folder=folder,
            fault=DamagedArtifact(f"{folder / CARD_FILE} is damaged ({error}): {again}"),
        )
    fault: BadTeacher | None = None
    model_file = folder / card.model_file
    if "\0" in card.model_file or not model_file.resolve().is_relative_to(folder.resolve()):
        fault = DamagedArtifact(f"{folder / CARD_FILE} names a model outside its folder ({card.model_file!r}): {again}")
    elif not model_file.is_file():
        fault = DamagedArtifact(f"{folder} lacks {card.model_file}, which its card names: {again}")
    elif not (folder / GOLDEN_FILE).is_file():
        fault = DamagedArtifact(f"{folder} lacks {GOLDEN_FILE}, so its answers cannot be checked: {again}")
    elif (digest := file_digest(model_file)) != card.artifact_digest:
        fault = DamagedArtifact(
            f"{model_file} is not the file its card describes (SHA-256 {digest[:12]}..., expected "
            f"{card.artifact_digest[:12]}...): half written or altered; {again}"
        )
    elif card.head_digest and not _is_file_of((folder / HEAD_FILE), card.head_digest):
        fault = DamagedArtifact(f"{folder / HEAD_FILE} is not the classifier its card describes: {again}")
    return ExportedTeacher(name=card.name, folder=folder, card=card, fault=fault)


def _is_file_of(path: Path, digest: str) -> bool:
    return path.is_file() and file_digest(path) == digest


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def served_digest(card: TeacherCard, provider_class: str) -> str:
    """What is really run: file, precision and provider class in one digest, pinned at Hello beside the teacher's."""
    return hashlib.sha256(f"{card.artifact_digest}:{card.precision}:{provider_class}".encode()).hexdigest()
