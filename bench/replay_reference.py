"""How others read recorded labels: FKD's files as its data set reads them, and TinyViT's as its data set reads them.

Both from the formats' descriptions, both at their best here: files in the page cache, opened once where their own code
opens them once, one process, no image touched. Neither has checksums.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray

Labels = tuple[NDArray[np.integer], NDArray[np.floating]]
"""Classes and probabilities (or their logarithms), [N, k] each."""

TINYVIT_SEED_BYTES = 4


class FkdFiles:
    """One file for each image, written by torch.save: [coordinates [M, 4], flips [M], labels [M, 2, k]], all float32.

    Read by torch.load, a random permutation of the M crops and the first m of it: m labels of each image of a batch.
    """

    def __init__(self, folder: Path, num_images: int, m: int) -> None:
        self._paths = [str(folder / f"{number:07}.tar") for number in range(num_images)]
        self._m = m

    @staticmethod
    def write(folder: Path, classes: NDArray[np.uint16], probabilities: NDArray[np.float32]) -> None:
        """Labels [images, M, k]."""
        rng = np.random.default_rng(0)
        num_crops = classes.shape[1]
        for number, (image_classes, image_probabilities) in enumerate(zip(classes, probabilities, strict=True)):
            coordinates = rng.random((num_crops, 4), np.float32)
            flips = rng.random(num_crops) < 0.5
            labels = np.stack([image_classes.astype(np.float32), image_probabilities], axis=1)
            torch.save([coordinates, flips, labels], folder / f"{number:07}.tar")

    def read(self, images: Sequence[int], *, permutation: NDArray[np.int64] | None = None) -> Labels:
        """The labels of m crops of each image, crop by crop; ``permutation``: which, instead of random ones."""
        found = []
        for image in images:
            # What these files are is a pickle; only what this benchmark wrote is read.
            _, _, labels = torch.load(self._paths[image], weights_only=False)
            order = torch.randperm(len(labels)).numpy() if permutation is None else permutation
            found.append(labels[order[: self._m]])
        batch = np.stack(found, axis=1).reshape(-1, *found[0].shape[1:])
        return batch[:, 0].astype(np.int64), batch[:, 1]


class TinyVitFiles:
    """One file of values for each epoch (here: view): 4 bytes of seed, then k classes and k probabilities of 2 bytes
    each, and a file of keys in the same order.

    Read as a data set reads its items: the key's row, a seek, a read, and the item's bytes taken apart; then stacked.
    """

    def __init__(self, folder: Path, num_views: int, k: int, *, buffered: bool) -> None:
        self._files: list[IO[bytes]] = [
            open(folder / f"values-{view}.bin", "rb", buffering=-1 if buffered else 0)  # noqa: SIM115 - see close
            for view in range(num_views)
        ]
        names = (folder / "keys.txt").read_text().split("\n")
        self._rows = dict(zip(names, itertools.count()))
        self._k = k
        self._item_bytes = TINYVIT_SEED_BYTES + 4 * k

    @staticmethod
    def write(
        folder: Path, names: Sequence[str], classes: NDArray[np.uint16], probabilities: NDArray[np.float16]
    ) -> None:
        """Labels [images, views, k]."""
        k = classes.shape[2]
        (folder / "keys.txt").write_text("\n".join(names))
        items = np.zeros(len(classes), [("seed", "<i4"), ("classes", "<i2", (k,)), ("probabilities", "<f2", (k,))])
        for view in range(classes.shape[1]):
            items["classes"], items["probabilities"] = classes[:, view], probabilities[:, view]
            (folder / f"values-{view}.bin").write_bytes(items.tobytes())

    def read(self, names: Sequence[str], views: Sequence[int]) -> Labels:
        """The labels of some images' views."""
        k, size = self._k, self._item_bytes
        classes, probabilities = [], []
        for name, view in zip(names, views, strict=True):
            item = self._item(name, view, size)
            classes.append(np.frombuffer(item, "<i2", k, TINYVIT_SEED_BYTES))
            probabilities.append(np.frombuffer(item, "<f2", k, TINYVIT_SEED_BYTES + 2 * k))
        return np.stack(classes), np.stack(probabilities)

    def read_at_once(self, names: Sequence[str], views: Sequence[int]) -> Labels:
        """The same, the bytes of the whole batch taken apart together: less than its data set can do."""
        k, size = self._k, self._item_bytes
        joined = b"".join([self._item(name, view, size) for name, view in zip(names, views, strict=True)])
        numbers = np.frombuffer(joined, "<u2").reshape(len(names), size // 2)[:, 2:]
        return numbers[:, :k].view("<i2"), numbers[:, k:].view("<f2")

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _item(self, name: str, view: int, size: int) -> bytes:
        file = self._files[view]
        file.seek(size * self._rows[name])
        return file.read(size)
