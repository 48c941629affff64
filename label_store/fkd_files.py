"""FKD's label files (arXiv 2112.01528): one file an image, torch.save's list of crop fractions, flips and labels.

Reads them without torch, by the restricted reader; what is written here is read by FKD's own loader. A box comes out
of its fractions as FKD's replay cuts it. Knows no data set and no recorded labels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.crop_plan import BOX
from teacherfarm.label_store.torch_files import dump_arrays, read_arrays
from teacherfarm.protos.faults import BadLabelFile

FkdForm = Literal["full", "hard", "smoothing", "marginal_smoothing_k5", "marginal_renorm_k5", "marginal_smoothing_k10"]
"""What FKD calls --label_type and --soft_label_type; "full" is its trainer's "ori". The two forms of five classes are
the same file: they differ in what the trainer makes of it.
"""

FKD_FORMS: tuple[FkdForm, ...] = get_args(FkdForm)
KEPT = {"full": 0, "hard": 1, "smoothing": 1, "marginal_smoothing_k5": 5, "marginal_renorm_k5": 5}
KEPT["marginal_smoothing_k10"] = 10

NumberType = Literal["float32", "float16"]

MOST_FLOAT16_CLASSES = 2048
"""Classes are kept as floating-point numbers, and float16 holds whole numbers up to here."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FkdLabels:
    """One image's labels: ``coords`` [M, 4] (top, left, height, width as fractions of the image), ``flips`` bool [M].

    ``labels``, of probabilities: full [M, C], hard class numbers [M], smoothing [M, 2] (class, probability) or marginal
    [M, 2, K] (classes, probabilities; best first). ``full`` tells the first from the third where there are two classes.
    ``name`` is used in faults.
    """

    coords: NDArray[Any]
    flips: NDArray[np.bool_]
    labels: NDArray[Any]
    full: bool
    name: str

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def num_kept(self) -> int:
        """How many classes each label names; 0 where it has the whole distribution."""
        if self.full:
            return 0
        return int(self.labels.shape[2]) if self.labels.ndim == 3 else 1

    def boxes(self, height: int, width: int) -> NDArray[np.void]:
        """Boxes (``crop_plan.BOX``) [M] in an image of that size, as FKD's replay cuts them.

        Raises BadLabelFile for a crop that does not lie in such an image.
        """
        boxes, inside = replayed_boxes(self.coords, height, width)
        if not inside.all():
            row = int(np.flatnonzero(~inside)[0])
            raise BadLabelFile(
                f"{self.name}: crop {row} covers {np.round(self.coords[row], 4).tolist()} (top, left, height, width) "
                f"of an image of {height} x {width} pixels, which is no crop of it: is it the label file of this image?"
            )
        boxes["flip"] = self.flips
        return boxes

    def top_k(self) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Class numbers and probabilities [M, K], best first, of every form but full."""
        labels = self.labels
        if labels.ndim == 1:
            return labels.astype(np.int64)[:, None], np.ones((len(labels), 1), np.float32)
        parts = labels[:, :, None] if labels.ndim == 2 else labels
        return parts[:, 0].astype(np.int64), parts[:, 1]


def read_fkd(path: str | Path, *, num_classes: int, form: FkdForm | None = None) -> FkdLabels:
    """One image's label file. Raises BadLabelFile naming what is wrong, UnsafeLabelFile, or OSError.

    ``form``: refuse others; needed only for a teacher of two classes, whose full labels look like smoothing ones.
    """
    arrays = read_arrays(path)
    name = str(path)
    if len(arrays) != 3:
        raise BadLabelFile(f"{name} holds {len(arrays)} arrays; FKD's label files hold three: coords, flips, labels")
    coords, flips, labels = arrays
    if coords.ndim != 2 or coords.shape[1:] != (4,) or coords.dtype.kind != "f":
        raise BadLabelFile(f"{name}: coords are floats [M, 4], got {coords.dtype} {list(coords.shape)}")
    if flips.shape != (len(coords),) or not np.isin(flips, (0, 1)).all():
        raise BadLabelFile(f"{name}: flips are one bool for each of {len(coords)} crops, got {list(flips.shape)}")
    if len(labels) != len(coords) or labels.ndim not in (1, 2, 3) or (labels.ndim == 3 and labels.shape[1] != 2):
        raise BadLabelFile(f"{name}: labels {list(labels.shape)} are none of FKD's forms for {len(coords)} crops")
    full = labels.ndim == 2 and (labels.shape[1] != 2 or form == "full")
    if full:
        _check_full(labels, num_classes, name)
    else:
        _check_kept(labels, num_classes, name)
    found = FkdLabels(coords=coords, flips=flips.astype(np.bool_), labels=labels, full=full, name=name)
    if form is not None and (found.num_kept, labels.ndim == 1) != (KEPT[form], form == "hard"):
        raise BadLabelFile(f"{name} holds labels {list(labels.shape)}, which is not the form {form}")
    return found


def write_fkd(path: str | Path, labels: FkdLabels) -> None:
    """Write a label file that FKD's loader reads, whole or not at all; its folder must be there."""
    beside = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(beside, "wb") as file:
            file.write(dump_arrays([labels.coords, labels.flips, labels.labels]))
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def fkd_labels(
    classes: NDArray[Any] | None,
    probabilities: NDArray[np.float32],
    boxes: NDArray[np.void],
    size: tuple[int, int],
    form: FkdForm,
    *,
    number_type: NumberType = "float32",
    name: str = "image",
) -> FkdLabels:
    """Labels in one of FKD's forms: of whole distributions [M, C] (``classes`` None) or of the best classes [M, K].

    ``size``: the image's height and width. Raises ValueError where the labels keep fewer classes than the form.
    """
    kept = KEPT[form]
    if classes is None and kept:
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :kept]
        classes, probabilities = order, np.take_along_axis(probabilities, order, axis=1)
    if classes is not None:
        if not kept or classes.shape[1] < kept:
            raise ValueError(
                f"form {form} needs {kept or 'all'} classes of each label, and the {classes.shape[1]} best were kept: "
                "choose a smaller form, or record labels with more (dense: top_k=0)"
            )
        classes, probabilities = classes[:, :kept], probabilities[:, :kept]
        if number_type == "float16" and form != "hard" and classes.size and classes.max() > MOST_FLOAT16_CLASSES:
            raise ValueError(
                f"float16 cannot hold class {classes.max()} (whole numbers end at {MOST_FLOAT16_CLASSES}): use float32"
            )
    if form == "full" or classes is None:
        labels: NDArray[Any] = probabilities.astype(number_type)
    elif form == "hard":
        labels = classes[:, 0].astype(np.int64)
    else:
        labels = np.stack([classes.astype(number_type), probabilities.astype(number_type)], axis=1)
        labels = labels[:, :, 0] if form == "smoothing" else labels
    coords = box_fractions(boxes, *size, number_type=number_type)
    flips = boxes["flip"].astype(np.bool_)
    return FkdLabels(coords=coords, flips=flips, labels=labels, full=form == "full", name=name)


def replayed_boxes(coords: NDArray[Any], height: int, width: int) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
    """Boxes [M] that FKD's replay cuts for fractions [M, 4], and which of them lie in the image; flips are False.

    It multiplies by height and width as doubles, and Pillow rounds the four edges, halves to even. An edge that the
    rounding of float16 fractions put outside, where Pillow adds a black line, is moved back.
    """
    exact = coords.astype(np.float64) * (height, width, height, width)
    with np.errstate(invalid="ignore"):
        edges = np.rint(np.concatenate([exact[:, :2], exact[:, :2] + exact[:, 2:]], axis=1))
        most = np.array((height, width, height, width), np.float64)
        clipped = np.clip(edges, 0, most)
        slack = np.ceil(most / 2048) if coords.dtype == np.float16 else 1
        inside = (np.abs(edges - clipped) <= slack).all(axis=1) & (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    whole = np.where(inside[:, None], clipped, 0).astype(np.uint32)
    boxes = np.zeros(len(coords), BOX)
    boxes["top"], boxes["left"] = whole[:, 0], whole[:, 1]
    boxes["height"], boxes["width"] = whole[:, 2] - whole[:, 0], whole[:, 3] - whole[:, 1]
    return boxes, inside


def box_fractions(
    boxes: NDArray[np.void], height: int, width: int, *, number_type: NumberType = "float32"
) -> NDArray[Any]:
    """Fractions [M, 4] of an image that FKD's replay turns back into exactly these boxes.

    float32 can for every image side up to 65535. The nearest float16 can up to 1366 pixels; up to 2048 a height can be
    chosen so that the lower edge is right, not the height itself; beyond, such an image's fractions are float32.
    """
    top, left, tall, wide = (boxes[field].astype(np.float64) for field in ("top", "left", "height", "width"))
    exact = np.stack([top / height, left / width, tall / height, wide / width], axis=1)
    if number_type == "float32":
        return exact.astype(np.float32)
    starts = exact[:, :2].astype(np.float16)
    ends = np.stack([(top + tall) / height, (left + wide) / width], axis=1)
    for sizes in (exact[:, 2:], ends - starts):
        coords = np.concatenate([starts, sizes.astype(np.float16)], axis=1)
        back, inside = replayed_boxes(coords, height, width)
        if inside.all() and all((back[field] == boxes[field]).all() for field in ("top", "left", "height", "width")):
            return coords
    return exact.astype(np.float32)


def label_path(name: str) -> str:
    """Where FKD's loader looks for a sample's file, below the folder of a split: "n01440764/n01440764_18.tar".

    It takes the last two parts of the image's path and cuts them at the first dot. Raises ValueError where it would not
    find the file.
    """
    parts = name.split("/")
    stem = parts[-1].partition(".")[0]
    if len(parts) < 2 or not stem or not parts[-2] or "." in parts[-2]:
        raise ValueError(
            f"FKD has no place for the labels of {name!r}: it needs CLASS/IMAGE, and a class folder without a dot"
        )
    return f"{parts[-2]}/{stem}.tar"


def label_paths(names: Sequence[str]) -> list[str]:
    """:func:`label_path` of each sample; ValueError where two samples would share one."""
    paths = [label_path(name) for name in names]
    found: dict[str, str] = {}
    for name, path in zip(names, paths, strict=True):
        if path in found:
            raise ValueError(
                f"FKD keeps the labels of {found[path]!r} and {name!r} in the same file, {path}: rename one"
            )
        found[path] = name
    return paths


def _check_full(labels: NDArray[Any], num_classes: int, name: str) -> None:
    if labels.shape[1] != num_classes:
        raise BadLabelFile(f"{name} holds labels of {labels.shape[1]} classes, expected {num_classes}")
    _check_probabilities(labels, name)
    if len(labels) and not (np.abs(labels.sum(axis=1, dtype=np.float64) - 1) < 0.02).all():
        raise BadLabelFile(f"{name}: full labels sum to 1; these do not, so they are no probabilities")


def _check_kept(labels: NDArray[Any], num_classes: int, name: str) -> None:
    classes = labels if labels.ndim == 1 else labels[:, :1] if labels.ndim == 2 else labels[:, 0]
    if not ((classes >= 0) & (classes < num_classes) & (classes == np.floor(classes))).all():
        raise BadLabelFile(f"{name}: class numbers are whole and lie in 0..{num_classes - 1}; these do not")
    if labels.ndim == 1:
        return
    if classes.shape[1] > 1 and (np.diff(np.sort(classes, axis=1), axis=1) == 0).any():
        raise BadLabelFile(f"{name} names a class twice in one label")
    _check_probabilities(labels[:, 1:] if labels.ndim == 2 else labels[:, 1], name)


def _check_probabilities(values: NDArray[Any], name: str) -> None:
    # float16 lifts sums a little above 1.
    if not ((values >= 0).all() and (values.sum(axis=1, dtype=np.float64) < 1.02).all()):
        raise BadLabelFile(f"{name}: probabilities lie in 0..1 and sum to at most 1; these do not (are they logits?)")
