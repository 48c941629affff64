"""TinyViT's files of sparse labels (arXiv 2207.10666): for each epoch a folder, for each of its ranks a list of keys
and fixed-size records of an augmentation's seed, the best classes and their probabilities.

A seed means something to TinyViT's own augmentation alone: no box can be told from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.faults import BadLabelFile

_FOLDER = re.compile(r"logits_top(\d+)_epoch(\d+)")
_KEYS, _VALUES = "-keys.txt", "-values.bin"


@dataclass(frozen=True, kw_only=True)
class TinyVitEpoch:
    """One epoch's folder: each sample once, ``top_k`` classes a label."""

    path: Path
    epoch: int
    top_k: int


@dataclass(frozen=True, kw_only=True, eq=False)
class TinyVitLabels:
    """Labels of some samples: ``keys`` [N], ``seeds`` [N], ``classes`` and ``probabilities`` [N, K], best first."""

    keys: list[str]
    seeds: NDArray[np.int32]
    classes: NDArray[np.uint16]
    probabilities: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.keys)


def record_dtype(top_k: int) -> np.dtype[np.void]:
    """One record, 4 + 4 K bytes. TinyViT counts classes as int16; those from 32768 on come out right as uint16."""
    return np.dtype([("seed", "<i4"), ("classes", "<u2", (top_k,)), ("probabilities", "<f2", (top_k,))])


def find_epochs(root: str | Path) -> list[TinyVitEpoch]:
    """The epochs below TinyViT's TEACHER_LOGITS_PATH, in order; ValueError where there are none, or of several K."""
    root = Path(root)
    found = [
        TinyVitEpoch(path=path, epoch=int(match[2]), top_k=int(match[1]))
        for path in ([root] if _FOLDER.fullmatch(root.name) else root.iterdir())
        if (match := _FOLDER.fullmatch(path.name)) and path.is_dir()
    ]
    if not found:
        raise ValueError(f"{root} holds no folder like logits_top10_epoch0, as TinyViT's save_logits.py writes them")
    if len(kinds := sorted({epoch.top_k for epoch in found})) > 1:
        raise ValueError(f"{root} holds labels of {' and '.join(map(str, kinds))} classes: move one kind elsewhere")
    return sorted(found, key=lambda epoch: epoch.epoch)


def read_epoch(epoch: TinyVitEpoch, *, num_classes: int, at_once: int = 65536) -> Iterator[TinyVitLabels]:
    """All labels of an epoch, rank by rank; a key that several ranks have comes several times.

    Raises BadLabelFile naming the file where keys and values do not fit together or values mean nothing.
    """
    ranks = sorted(epoch.path.glob(f"*{_KEYS}"))
    if not ranks:
        raise BadLabelFile(f"{epoch.path} holds no rank0{_KEYS}: the saving of this epoch did not end")
    dtype = record_dtype(epoch.top_k)
    for keys_path in ranks:
        values_path = keys_path.with_name(keys_path.name.removesuffix(_KEYS) + _VALUES)
        keys = keys_path.read_text(encoding="utf-8").splitlines()
        size = values_path.stat().st_size
        if size != len(keys) * dtype.itemsize:
            raise BadLabelFile(
                f"{values_path} has {size} bytes; {len(keys)} keys in {keys_path.name} with {dtype.itemsize} bytes "
                f"each (top {epoch.top_k}) make {len(keys) * dtype.itemsize}: copy both again"
            )
        if not keys:
            continue
        records: NDArray[Any] = np.memmap(values_path, dtype, "r")
        for start in range(0, len(keys), at_once):
            part = np.array(records[start : start + at_once])
            _check(part, num_classes, values_path, start)
            yield TinyVitLabels(
                keys=[key.strip() for key in keys[start : start + at_once]],
                seeds=part["seed"],
                classes=part["classes"],
                probabilities=part["probabilities"],
            )


def write_rank(root: str | Path, epoch: int, rank: int, labels: TinyVitLabels) -> Path:
    """Write one rank of one epoch, where TinyViT's reader looks for it; the epoch's folder."""
    top_k = labels.classes.shape[1]
    folder = Path(root) / f"logits_top{top_k}_epoch{epoch}"
    folder.mkdir(parents=True, exist_ok=True)
    if len(set(labels.keys)) != len(labels.keys) or any("\n" in key or key != key.strip() for key in labels.keys):
        raise ValueError("TinyViT's keys are unique, and one line each without spaces around")
    records = np.empty(len(labels), record_dtype(top_k))
    records["seed"] = labels.seeds
    records["classes"] = labels.classes
    records["probabilities"] = labels.probabilities
    (folder / f"rank{rank}{_VALUES}").write_bytes(records.tobytes())
    (folder / f"rank{rank}{_KEYS}").write_text("".join(f"{key}\n" for key in labels.keys), encoding="utf-8")
    return folder


class KeyPlaces:
    """Which sample a key means: its name, the last part of it (ImageNet-22k), or its number in the order of
    ImageFolder (ImageNet-1k).
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._num_samples = len(names)
        self._places = {name.rpartition("/")[2]: place for place, name in enumerate(names)}
        if len(self._places) != len(names):
            self._places.clear()
        self._places |= {name: place for place, name in enumerate(names)}

    def find(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The place of each key among the samples; -1 where there is none."""
        if all(key.isdecimal() for key in keys) and not any(key in self._places for key in keys):
            return np.array([int(key) if int(key) < self._num_samples else -1 for key in keys], np.int64)
        return np.array([self._places.get(key, -1) for key in keys], np.int64)


def _check(records: NDArray[Any], num_classes: int, path: Path, start: int) -> None:
    values = records["probabilities"]
    good = (records["classes"] < num_classes).all(axis=1)
    # float16 lifts sums a little above 1.
    with np.errstate(invalid="ignore"):
        good &= (values >= 0).all(axis=1) & (values.sum(axis=1, dtype=np.float64) < 1.02)
    if not good.all():
        row = start + int(np.flatnonzero(~good)[0])
        raise BadLabelFile(
            f"{path}, record {row}: classes lie in 0..{num_classes - 1} and probabilities in 0..1, together at most 1; "
            "these do not: the file is damaged, or of another number of classes"
        )
