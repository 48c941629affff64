"""Encoded images by number, whatever holds them: a folder of class folders, WebDataset tar files, Parquet or Arrow
files, CIFAR's Python archives.

The same images have the same names in each of them. Decodes nothing.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.faults import BadDataSet

Location = str | Path | Sequence[str | Path]

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_FILES = 1_000_000


@runtime_checkable
class SampleReader(Protocol):
    """Samples by number, 0 to ``len - 1``. Safe to share between threads, to pickle, and to use after a fork."""

    where: str
    """The data set in words, for messages."""
    container: str
    """``folder``, ``tar``, ``parquet``, ``arrow`` or ``cifar``."""
    names: NDArray[np.bytes_]
    targets: NDArray[np.int64]
    """Class numbers; -1 where none is known."""
    classes: tuple[str, ...]
    """What the class numbers stand for; empty where that is not known."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Stable, and the same in every container: the path below the root without its image ending."""
        ...

    def target(self, index: int) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded image. Raises UnreadableImage where there is none any more."""
        ...

    def stamp(self, index: int) -> int:
        """64 bits that change when the sample's file does, found without reading it; 0 where there is none."""
        ...


def open_samples(path: Location) -> SampleReader:
    """The samples of a data set; a large tar file is read through once to find what lies where.

    ``path``: a folder with one folder per class; ``*.tar`` files; ``*.parquet`` files or a folder of them; a folder
    that Hugging Face's ``save_to_disk`` wrote; a folder of CIFAR-10 or -100 (its training images) or some of its batch
    files. Files may be given as a list, by wildcards (``train-*.tar``) or by braces (``train-{000..146}.tar``).
    Raises BadDataSet.
    """
    from teacherfarm.crops.cifar_samples import CIFAR_FOLDERS, CifarSamples, cifar_location
    from teacherfarm.crops.folder_samples import FolderSamples

    if isinstance(path, (str, Path)) and os.path.isdir(path):
        files = _files_in(os.fspath(path))
        if not files:
            cifar = cifar_location(path, "train")
            if cifar is None:
                return FolderSamples(path)
            files = expand(cifar)
    else:
        files = expand(path)
    for file in files:
        if not os.path.isfile(file):
            raise BadDataSet(
                f"no data set at {file!r}: expected a folder with one folder per class, WebDataset .tar files, "
                f"Parquet or Arrow files (or a folder of them), or {' or '.join(CIFAR_FOLDERS)}"
            )
    endings = {_ending(file) for file in files}
    where = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    if endings == {".tar"}:
        from teacherfarm.crops.tar_samples import TarSamples

        return TarSamples(files, where=where)
    if endings == {".parquet"}:
        from teacherfarm.crops.parquet_samples import ParquetSamples

        return ParquetSamples(files, where=where)
    if endings == {".arrow"}:
        from teacherfarm.crops.arrow_samples import ArrowSamples

        return ArrowSamples(files, where=where)
    if endings == {""}:
        return CifarSamples(files, where=where)
    if any(ending in (".tgz", ".gz", ".zst", ".bz2", ".xz") for ending in endings):
        raise BadDataSet(f"{where} is compressed, so no sample in it can be reached by itself: unpack it to a .tar")
    raise BadDataSet(
        f"{where}: files of a data set end in .tar, .parquet or .arrow, all alike; got {', '.join(sorted(endings))}"
    )


def expand(path: Location) -> list[str]:
    """The files that a path with wildcards and braces, or a list of such, stands for, in order. Raises BadDataSet."""
    if not isinstance(path, (str, Path)):
        return [file for one in path for file in expand(one)]
    found: list[str] = []
    for pattern in _alternatives(os.fspath(path)):
        if os.path.exists(pattern) or not glob.has_magic(pattern):
            found.append(pattern)
        else:
            matches = sorted(glob.glob(pattern))
            if not matches:
                raise BadDataSet(f"no file matches {pattern!r}")
            found += matches
    return found


def _alternatives(pattern: str) -> list[str]:
    braces = _BRACES.search(pattern)
    if braces is None or os.path.exists(pattern):
        return [pattern]
    if span := _RANGE.fullmatch(braces[1]):
        first, last = int(span[1]), int(span[2])
        if last - first >= _MOST_FILES:
            raise BadDataSet(f"{braces[0]} stands for {last - first + 1} files; at most {_MOST_FILES} are allowed")
        choices = [f"{number:0{len(span[1])}}" for number in range(first, last + 1)]
    else:
        choices = braces[1].split(",")
    return [
        whole
        for choice in choices
        for whole in _alternatives(pattern[: braces.start()] + choice + pattern[braces.end() :])
    ]


def _files_in(folder: str) -> list[str]:
    """The files of a folder that holds tar, Parquet or Arrow files; also in its ``data``, as the hub has them."""
    for ending in (".parquet", ".tar", ".arrow"):
        for place in (folder, os.path.join(folder, "data")):
            files = sorted(glob.glob(os.path.join(glob.escape(place), f"*{ending}")))
            files = [file for file in files if not os.path.basename(file).startswith("cache-")]  # of computed columns
            if files:
                return files
    return []


def file_stamp(path: str | Path, place: int = 0) -> int:
    """The stamp of what lies at ``place`` in a file: by its size and time of change."""
    import xxhash

    try:
        found = os.stat(path)
    except OSError:
        return 0
    return xxhash.xxh3_64_intdigest(f"{found.st_size}:{found.st_mtime_ns}:{place}".encode())


def _ending(file: str) -> str:
    return os.path.splitext(file)[1].lower()
