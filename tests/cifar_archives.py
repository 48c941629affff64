"""Folders like CIFAR's unpacked Python archives, pickled as Python 2 did: strings are bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def python2_pickle(value: object) -> bytes:
    """Protocol 2 as Python 2's cPickle wrote it, memo entries and all."""
    return b"\x80\x02" + b"".join(_parts(value, memo=[0])) + b"."


def _parts(value: object, memo: list[int]) -> list[bytes]:
    if value is None:
        return [b"N"]
    if isinstance(value, bool):
        return [b"\x88" if value else b"\x89"]
    if isinstance(value, int):
        return [_number(value)]
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        head = b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))
        return [head, value, _put(memo)]
    if isinstance(value, (list, tuple)):
        items = [part for item in value for part in _parts(item, memo)]
        if isinstance(value, tuple):
            return [b"(", *items, b"t", _put(memo)]
        return [b"]", _put(memo), b"(", *items, b"e"]
    if isinstance(value, dict):
        items = [part for pair in value.items() for item in pair for part in _parts(item, memo)]
        return [b"}", _put(memo), b"(", *items, b"u"]
    assert isinstance(value, np.ndarray)
    code = value.dtype.str[1:]
    state = (1, value.shape, "the number type", False, value.tobytes())
    return [
        b"cnumpy.core.multiarray\n_reconstruct\n",
        b"(cnumpy\nndarray\n",
        *_parts((0,), memo),
        *_parts("b", memo),
        b"tR",
        b"(",
        *(part for field in state[:2] for part in _parts(field, memo)),
        b"cnumpy\ndtype\n",
        *_parts((code, 0, 1), memo),
        b"R",
        *_parts((3, value.dtype.str[0], None, None, None, -1, -1, 0), memo),
        b"b",
        *(part for field in state[3:] for part in _parts(field, memo)),
        b"tb",
    ]


def _number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if 0 <= value < 65536:
        return b"M" + struct.pack("<H", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def _put(memo: list[int]) -> bytes:
    memo[0] += 1
    return b"q" + bytes([memo[0]]) if memo[0] < 256 else b"r" + struct.pack("<I", memo[0])


CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_cifar10(root: Path, pixels: NDArray[np.uint8], labels: list[int], *, per_batch: int) -> Path:
    """``root/cifar-10-batches-py`` with images [N, 32, 32, 3]: batches of ``per_batch``, the last one to test with."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    firsts = range(0, len(pixels), per_batch)
    names = [f"data_batch_{number}" for number in range(1, len(firsts))] + ["test_batch"]
    for name, first in zip(names, firsts, strict=True):
        rows = slice(first, first + per_batch)
        content = {
            "batch_label": name,
            "labels": labels[rows],
            "data": planes[rows],
            "filenames": [f"{CIFAR10_CLASSES[n]}_s_{row:06}.png" for row, n in enumerate(labels[rows], first)],
        }
        (folder / name).write_bytes(python2_pickle(content))
    meta = {"num_cases_per_batch": per_batch, "label_names": CIFAR10_CLASSES, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta))
    return folder


def write_cifar100(root: Path, pixels: NDArray[np.uint8], labels: list[int], *, num_test: int) -> Path:
    """``root/cifar-100-python``, the last ``num_test`` images to test with; without file names."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    last = len(pixels) - num_test
    for name, rows in (("train", slice(0, last)), ("test", slice(last, None))):
        coarse = [label // 5 for label in labels[rows]]
        content = {"data": planes[rows], "batch_label": name, "fine_labels": labels[rows], "coarse_labels": coarse}
        (folder / name).write_bytes(python2_pickle(content))
    meta = {
        "fine_label_names": [f"kind {n}" for n in range(100)],
        "coarse_label_names": [f"group {n}" for n in range(20)],
    }
    (folder / "meta").write_bytes(python2_pickle(meta))
    return folder
