"""ReLabel's label maps (arXiv 2101.05022): for each image the best classes at every place of a grid, and their scores.

A crop's label is pooled from the map as ReLabel does: RoIAlign to one place, then softmax; restated here in numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.label_store.fkd_files import label_paths
from teacherfarm.label_store.torch_files import read_arrays
from teacherfarm.protos.faults import BadLabelFile
from teacherfarm.protos.soft_label import log_softmax


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelMap:
    """``scores`` float32 [K, H, W], before softmax, of ``classes`` int64 [K, H, W]; every other class scores 0."""

    scores: NDArray[np.float32]
    classes: NDArray[np.int64]

    def log_probabilities(
        self, fractions: NDArray[Any], num_classes: int, *, upright: bool = False
    ) -> NDArray[np.float32]:
        """Labels [M, C] of crops given as (top, left, height, width) in fractions of the image [M, 4].

        ReLabel's training hands (top, left) to RoIAlign as (x, y): the map's last axis runs down the image.
        ``upright``: the last axis runs across it instead, for maps that were made so.
        """
        _, height, width = self.scores.shape
        starts, sizes = fractions[:, :2].astype(np.float32), fractions[:, 2:].astype(np.float32)
        # Both axes are scaled by the map's last, as ReLabel does; its maps are square.
        low = starts * np.float32(width) - np.float32(0.5)
        high = (starts + sizes) * np.float32(width) - np.float32(0.5)
        across, down = (1, 0) if upright else (0, 1)
        columns = axis_weights(low[:, across], high[:, across], width)
        rows = axis_weights(low[:, down], high[:, down], height)
        weights = rows[:, None, :, None] * columns[:, None, None, :]
        classes = np.arange(len(rows))[:, None, None, None] * num_classes + self.classes
        pooled = np.bincount(classes.ravel(), (weights * self.scores).ravel(), len(rows) * num_classes)
        return log_softmax(pooled.reshape(len(rows), num_classes))


def read_label_map(path: str | Path, *, num_classes: int) -> LabelMap:
    """One image's label map. Raises BadLabelFile naming what is wrong, UnsafeLabelFile, or OSError."""
    arrays = read_arrays(path)
    if len(arrays) == 1 and arrays[0].ndim == 4 and len(arrays[0]) == 2:
        arrays = [*arrays[0]]
    if len(arrays) != 2 or arrays[0].ndim != 3 or arrays[0].shape != arrays[1].shape or not arrays[0].size:
        raise BadLabelFile(
            f"{path} holds arrays {[list(array.shape) for array in arrays]}; a label map is scores and class numbers, "
            "each [K, H, W], or both as one [2, K, H, W]"
        )
    scores, classes = arrays[0].astype(np.float32), arrays[1]
    if not np.isfinite(scores).all():
        raise BadLabelFile(f"{path}: scores that are no numbers")
    if not ((classes >= 0) & (classes < num_classes) & (classes == np.floor(classes))).all():
        raise BadLabelFile(f"{path}: class numbers are whole and lie in 0..{num_classes - 1}; these do not")
    return LabelMap(scores=scores, classes=classes.astype(np.int64))


def crop_fractions(boxes: NDArray[np.void], height: int, width: int) -> NDArray[np.float64]:
    """``BOX`` records of an image as (top, left, height, width) in fractions of it [M, 4]."""
    sides = (("top", height), ("left", width), ("height", height), ("width", width))
    return np.stack([boxes[name] / side for name, side in sides], axis=-1)


def label_map_paths(folder: str, names: Sequence[str]) -> list[str]:
    """Where ReLabel keeps each sample's map: FOLDER/CLASS/IMAGE.pt. Raises ValueError where two would share one."""
    return [f"{folder}/{path.removesuffix('.tar')}.pt" for path in label_paths(names)]


def axis_weights(low: NDArray[np.float32], high: NDArray[np.float32], size: int) -> NDArray[np.float64]:
    """How much each of ``size`` places along one axis counts [M, size] in RoIAlign's single output.

    RoIAlign (arXiv 1703.06870) averages bilinear samples of an even grid over the region, at least one place long, one
    sample per place begun; a sample more than one place outside counts 0. It does so on both axes independently, so a
    region's weights are the product of its axes'.
    """
    length = np.maximum(high - low, np.float32(1))
    weights = np.zeros((len(low), size))
    counts = np.ceil(length).astype(np.int64)
    for row, (start, extent, count) in enumerate(zip(low.tolist(), length.tolist(), counts.tolist(), strict=True)):
        places = start + (np.arange(count) + 0.5) * extent / count
        places = np.maximum(places[(places >= -1) & (places <= size)], 0)
        below = np.minimum(places.astype(np.int64), size - 1)
        share = np.where(below < size - 1, places - below, 0)
        np.add.at(weights[row], below, (1 - share) / count)
        np.add.at(weights[row], np.minimum(below + 1, size - 1), share / count)
    return weights
