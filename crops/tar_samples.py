"""Samples in WebDataset tar files, at random: where each lies is found once, by reading the headers.

A sample is the files of one key, the path up to the first dot of its last part: KEY.jpg, with its class in KEY.cls or
in KEY.json. A packed ImageFolder is one, too: then the folders are the classes.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.sample_names import NO_TARGET, class_numbers, is_image, name_array, text
from teacherfarm.crops.sample_readers import file_stamp
from teacherfarm.crops.tar_headers import tar_members
from teacherfarm.protos.faults import BadDataSet, UnreadableImage

CLASS_FIELDS = ("label", "cls", "class", "target", "class_id")
_MOST_TARGET_BYTES = 1 << 20


class TarSamples:
    """Uncompressed tar files as one data set, in their order. A file is opened for each read, none stays open."""

    container = "tar"

    def __init__(self, files: Sequence[str], *, where: str) -> None:
        self.where = where
        self.files = tuple(files)
        found: dict[str, _Member] = {}
        for number, file in enumerate(self.files):
            _scan(file, number, found)
        samples = {key: member for key, member in found.items() if member.image is not None}
        if not samples:
            raise BadDataSet(f"no images in {where}: a sample is a file KEY.jpg (.png, .webp ...), its class KEY.cls")
        keys = _below_common_folders(list(samples))
        members = list(samples.values())
        self._places = np.array([member.image for member in members], np.int64)
        self.names = name_array(keys)
        given = np.array([member.target for member in members], np.int64)
        self.classes: tuple[str, ...] = ()
        self.targets: NDArray[np.int64] = given
        if (given == NO_TARGET).all():
            self.classes, self.targets = class_numbers(keys)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<TarSamples {len(self)} images in {len(self.files)} tar file(s), {self.where}>"

    def name(self, index: int) -> str:
        return text(self.names[index])

    def target(self, index: int) -> int:
        return int(self.targets[index])

    def read(self, index: int) -> bytes:
        number, offset, size = self._places[index].tolist()
        name, file = self.name(index), self.files[number]
        try:
            handle = os.open(file, os.O_RDONLY)
            try:
                data = os.pread(handle, size, offset)
            finally:
                os.close(handle)
        except OSError as error:
            raise UnreadableImage(f"cannot read {name}: {error.strerror or error} ({file})") from error
        if len(data) != size:
            raise UnreadableImage(
                f"cannot read {name}: {file} ends in the middle of it, it changed since it was opened"
            )
        return data

    def stamp(self, index: int) -> int:
        number, offset, _ = self._places[index].tolist()
        return file_stamp(self.files[number], offset)


class _Member:
    """One key: where its image lies (file, offset, size), and its class."""

    __slots__ = ("ending", "image", "target")

    def __init__(self) -> None:
        self.image: tuple[int, int, int] | None = None
        self.ending = ""
        self.target = NO_TARGET


def _scan(file: str, number: int, found: dict[str, _Member]) -> None:
    """Add what a tar file holds. A name of its key may end in several parts (x.seg.png), a plain ending comes first."""
    here: set[str] = set()
    try:
        members = tar_members(file)
        with open(file, "rb") as opened:
            for name, offset, size in members:
                folder, _, last = name.removeprefix("./").rpartition("/")
                stem, _, ending = last.partition(".")
                if not stem:
                    continue
                key = f"{folder}/{stem}" if folder else stem
                if key in found and key not in here:
                    raise BadDataSet(
                        f"{file}: key {key!r} is in an earlier tar file, too: a name stands for one sample"
                    )
                here.add(key)
                member = found.setdefault(key, _Member())
                ending = ending.lower()
                if is_image(f".{ending}"):
                    _add_image(member, key, ending, (number, offset, size), file)
                elif ending in ("cls", "cls.txt", "json") and size <= _MOST_TARGET_BYTES:
                    _add_target(member, key, ending, os.pread(opened.fileno(), size, offset), file)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BadDataSet(f"{file} cannot be read as an uncompressed tar file ({error})") from error


def _add_image(member: _Member, key: str, ending: str, place: tuple[int, int, int], file: str) -> None:
    if member.image is None or ("." in member.ending and "." not in ending):
        member.image, member.ending = place, ending
    elif "." not in ending or "." in member.ending:
        raise BadDataSet(
            f"{file}: sample {key!r} has two images, .{member.ending} and .{ending}: name the one "
            "that students see KEY.jpg"
        )


def _add_target(member: _Member, key: str, ending: str, content: bytes, file: str) -> None:
    if ending == "json":
        if member.target == NO_TARGET:
            try:
                fields = json.loads(content)
            except ValueError as error:
                raise BadDataSet(f"{file}: {key}.json is no JSON ({error})") from error
            for field in CLASS_FIELDS:
                value = fields.get(field) if isinstance(fields, dict) else None
                if isinstance(value, int) and not isinstance(value, bool):
                    member.target = value
                    return
        return
    try:
        member.target = int(content)
    except ValueError as error:
        raise BadDataSet(f"{file}: {key}.{ending} holds a class number, got {content[:40]!r}") from error


def _below_common_folders(keys: list[str]) -> list[str]:
    """Keys without the folders that all of them share, as long as each keeps a folder, that of its class."""
    parts = [key.split("/") for key in (min(keys), max(keys))]
    most = min(key.count("/") for key in keys) - 1
    common = 0
    while common < most and parts[0][common] == parts[1][common]:
        common += 1
    return [key.split("/", common)[-1] for key in keys] if common else keys
