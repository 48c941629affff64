"""CIFAR-10 and CIFAR-100 as their authors publish them for Python: pickled batches, read without running what a pickle
may name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.sample_names import name_array, text, without_ending
from teacherfarm.crops.sample_readers import file_stamp
from teacherfarm.protos.faults import BadDataSet, BadLabelFile

CIFAR_FOLDERS = ("cifar-10-batches-py", "cifar-100-python")
"""What the published archives unpack to."""

SIDE = 32
_HEADER = b"P6 %d %d 255\n" % (SIDE, SIDE)
_MOST_INSTRUCTIONS = 1_000_000

_SPLITS: Mapping[str, tuple[str, str]] = {
    # by the file that names the classes: training files, test file
    "batches.meta": ("data_batch_{1..5}", "test_batch"),
    "meta": ("train", "test"),
}
_TEST_NAMES = ("test", "val", "validation")


def cifar_location(folder: str | Path, split: str) -> str | None:
    """Where a split is in a folder of CIFAR-10 or -100, or in the unpacked archive below it; None in any other one.

    ``split``: ``train``; the test images are called ``test``, ``val`` or ``validation``.
    """
    for place in (os.fspath(folder), *(os.path.join(folder, name) for name in CIFAR_FOLDERS)):
        for meta, (train, test) in _SPLITS.items():
            if split in ("train", *_TEST_NAMES) and os.path.isfile(os.path.join(place, meta)):
                return os.path.join(place, test if split in _TEST_NAMES else train)
    return None


class CifarSamples:
    """Images of some batch files, in their order; the pixels stay in memory. Classes of CIFAR-100: the hundred.

    Names are CLASS/FILE of the batch's own file names. An image is handed out as a PPM file: its pixels and a header.
    """

    container = "cifar"

    def __init__(self, files: Sequence[str], *, where: str) -> None:
        self.where = where
        self.files = tuple(files)
        self.classes = _class_names(self.files[0])
        batches = [_Batch(file, len(self.classes)) for file in self.files]
        self.targets: NDArray[np.int64] = np.concatenate([batch.targets for batch in batches])
        folders = [self.classes[target] for target in self.targets]
        own = [name for batch in batches for name in batch.names]
        if "" in own or len({*zip(folders, own, strict=True)}) != len(own):
            own = [f"{os.path.basename(batch.file)}-{row}" for batch in batches for row in range(len(batch.names))]
        self.names = name_array([f"{folder}/{name}" for folder, name in zip(folders, own, strict=True)])
        self._firsts = np.cumsum([0, *(len(batch.names) for batch in batches)])
        self._pixels: list[NDArray[np.uint8]] = [batch.pixels for batch in batches]

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<CifarSamples {len(self)} images of {len(self.classes)} classes, {self.where}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_pixels": []}  # read again in the other process, not sent there

    def name(self, index: int) -> str:
        return text(self.names[index])

    def target(self, index: int) -> int:
        return int(self.targets[index])

    def read(self, index: int) -> bytes:
        if not self._pixels:
            self._pixels = [_Batch(file, len(self.classes)).pixels for file in self.files]
        number, row = self._place(index)
        planes = self._pixels[number][row].reshape(3, SIDE, SIDE)
        return b"".join((_HEADER, planes.transpose(1, 2, 0).tobytes()))

    def stamp(self, index: int) -> int:
        number, row = self._place(index)
        return file_stamp(self.files[number], row)

    def _place(self, index: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return number, index - int(self._firsts[number])


class _Batch:
    """One batch file, checked: ``pixels`` uint8 [N, 3072] (red, green, blue planes), ``targets``, ``names``."""

    def __init__(self, file: str, num_classes: int) -> None:
        content = _read(file)
        data = getattr(_field(content, "data"), "array", None)
        labels = _field(content, "fine_labels") or _field(content, "labels")
        if data is None or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * SIDE * SIDE:
            raise _not_cifar(file, f"its data is not uint8 [N, {3 * SIDE * SIDE}]")
        if not isinstance(labels, list) or len(labels) != len(data) or not all(type(n) is int for n in labels):
            raise _not_cifar(file, f"it has not one class number for each of its {len(data)} images")
        # In Python's numbers, which hold any that a file may have.
        if not labels or min(labels) < 0 or max(labels) >= num_classes:
            raise _not_cifar(file, f"it has no images, or class numbers beyond the {num_classes} names beside it")
        self.file = file
        self.pixels: NDArray[np.uint8] = data
        self.targets = np.array(labels, np.int64)
        filenames = _field(content, "filenames")
        named = isinstance(filenames, list) and len(filenames) == len(data)
        self.names = [without_ending(_text(name)) for name in filenames] if named else [""] * len(data)


def _class_names(file: str) -> tuple[str, ...]:
    folder = os.path.dirname(file)
    for meta in _SPLITS:
        path = os.path.join(folder, meta)
        if os.path.isfile(path):
            content = _read(path)
            names = _field(content, "fine_label_names") or _field(content, "label_names")
            if not isinstance(names, list) or not names:
                raise _not_cifar(path, "it names no classes")
            return tuple(map(_text, names))
    raise _not_cifar(file, f"there is no {' or '.join(_SPLITS)} beside it, which names the classes")


def _read(file: str) -> dict[Any, Any]:
    # Only here: other data sets need nothing of it.
    from teacherfarm.label_store.restricted_pickle import read_pickle

    try:
        content, _ = read_pickle(Path(file).read_bytes(), 0, file, most=_MOST_INSTRUCTIONS)
    except (OSError, BadLabelFile) as error:
        raise BadDataSet(f"{file} cannot be read as a file of CIFAR: {error}") from error
    if not isinstance(content, dict):
        raise _not_cifar(file, f"it holds a {type(content).__name__}, not a dict")
    return content


def _field(content: Mapping[Any, Any], name: str) -> Any:
    """A field by name; Python 2 wrote names as bytes."""
    return content.get(name.encode(), content.get(name))


def _text(name: object) -> str:
    return name.decode(errors="surrogateescape") if isinstance(name, bytes) else str(name)


def _not_cifar(file: str, why: str) -> BadDataSet:
    return BadDataSet(f"{file} is no file of CIFAR-10's or CIFAR-100's Python archive: {why}")
