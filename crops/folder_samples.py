"""Samples in a folder with one folder per class, in the order of torchvision's ImageFolder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from teacherfarm.crops.sample_names import IMAGE_SUFFIXES, is_image, text, without_ending
from teacherfarm.crops.sample_readers import file_stamp
from teacherfarm.protos.faults import BadDataSet, UnreadableImage


class FolderSamples:
    """root/class/.../image: the same order, classes and targets as ImageFolder's. Knows the files of its start."""

    container = "folder"

    def __init__(self, root: str | Path) -> None:
        self.root = self.where = os.fspath(root)
        if not os.path.isdir(self.root):
            raise BadDataSet(f"{self.root!r} is not a folder; an image data set is a folder with one folder per class")
        self.classes = tuple(sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir()))
        files: list[bytes] = []
        targets: list[int] = []
        for number, class_name in enumerate(self.classes):
            found = _images_below(self.root, class_name)
            files += found
            targets += [number] * len(found)
        if not files:
            raise BadDataSet(
                f"no images in {self.root!r}: expected {os.path.join(self.root, 'CLASS', 'IMAGE.jpg')}, with one of "
                f"the endings {' '.join(IMAGE_SUFFIXES)}"
            )
        # Arrays, not lists: counting references to a million strings would copy their pages into every worker.
        self._files = np.array(files)
        self.names = np.array([file[: file.rindex(b".")] for file in files])
        self.targets = np.array(targets, np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<FolderSamples {len(self)} images of {len(self.classes)} classes in {self.root}>"

    def name(self, index: int) -> str:
        return text(self.names[index])

    def target(self, index: int) -> int:
        return int(self.targets[index])

    def file(self, index: int) -> str:
        """The image's path."""
        return os.path.join(self.root, os.fsdecode(bytes(self._files[index])))

    def read(self, index: int) -> bytes:
        return read_file(self.file(index), self.name(index))

    def stamp(self, index: int) -> int:
        return file_stamp(self.file(index))


def read_file(path: str | Path, name: str) -> bytes:
    """A whole file. Raises UnreadableImage, which names ``name`` and the reason."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UnreadableImage(f"cannot read {name}: {error.strerror or error} ({path})") from error


def folder_sample_name(path: str, root: str) -> str:
    """What :class:`FolderSamples` calls the image at ``path``."""
    return without_ending(os.path.relpath(path, root).replace(os.sep, "/"))


def _images_below(root: str, class_name: str) -> list[bytes]:
    found: list[bytes] = []
    for folder, _, files in sorted(os.walk(os.path.join(root, class_name), followlinks=True)):
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        found += [os.fsencode(f"{below}/{file}") for file in sorted(files) if is_image(file)]
    return found
