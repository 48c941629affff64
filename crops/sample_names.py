"""What samples are called: a path below the data set's root without its image ending. Knows no file format."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.faults import BadDataSet

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

NO_TARGET = -1


def is_image(path: str) -> bool:
    """Whether a path ends like an image's."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def without_ending(path: str) -> str:
    """A path without its image ending; others stay as they are."""
    return path[: path.rindex(".")] if is_image(path) else path


def name_array(names: Sequence[str]) -> NDArray[np.bytes_]:
    """Names as one array: counting references to a million strings would copy their pages into every worker."""
    return np.array([name.encode(errors="surrogateescape") for name in names], np.bytes_)


def text(name: bytes | np.bytes_) -> str:
    """A name of :func:`name_array` as text."""
    return bytes(name).decode(errors="surrogateescape")


def class_numbers(names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The class folders that names begin with, sorted, and each name's place among them; none where one has none."""
    if not all("/" in name for name in names):
        return (), np.full(len(names), NO_TARGET)
    folders = [name[: name.index("/")] for name in names]
    classes = tuple(sorted(set(folders)))
    places = {folder: place for place, folder in enumerate(classes)}
    return classes, np.array([places[folder] for folder in folders], np.int64)


def check_unique(names: NDArray[np.bytes_], where: str) -> None:
    """Raise BadDataSet naming the first name that stands for two samples."""
    ordered = np.sort(names)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise BadDataSet(
            f"{where}: {len(twice)} name(s) stand for two samples, for example {text(twice[0])!r}: labels and crop "
            "plans go by names without image endings, so rename or remove one of each"
        )
