"""Mixup, CutMix and SelfMix of uint8 crops, and of the labels that belong to them.

A mix is a value: the same crops and the same :class:`Mix` give the same pixels on every machine, because its arithmetic
is exact. Knows nothing of teachers; whether crops are mixed before the teacher sees them (FunMatch) or labels
afterwards (FKD) is the caller's choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.crop import CropBox
from teacherfarm.protos.references import CUTMIX, MIXUP, CropReferences
from teacherfarm.protos.soft_label import Completion, SoftLabels

MixKind = Literal["mixup", "cutmix"]

SHARES = 256
"""Shares of mixup are counted in 1/256: blended pixels then are exact, and a pixel has no finer steps either."""

_UPWARDS = 1 / (4 * SHARES)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Row i of a batch is mixed with row ``partner[i]``.

    "mixup": ``own_share`` of 256 parts is the row's own pixel, the rest its partner's; halves are rounded up. "cutmix":
    the pixels of ``box`` (in the crop's own coordinates, no flip) are the partner's; ``box`` None replaces nothing.
    """

    kind: MixKind
    partner: tuple[int, ...]
    own_share: int = SHARES
    box: CropBox | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("mixup", "cutmix"):
            raise ValueError(f"a mix is 'mixup' or 'cutmix', got {self.kind!r}")
        if not all(0 <= row < len(self.partner) for row in self.partner):
            raise ValueError(f"partners are rows 0..{len(self.partner) - 1}, got {list(self.partner)}")
        if not 0 <= self.own_share <= SHARES:
            raise ValueError(f"own_share lies in 0..{SHARES}, got {self.own_share}")
        if self.kind == "mixup" and self.box is not None:
            raise ValueError("a box belongs to cutmix")
        if self.kind == "cutmix" and self.own_share != SHARES:
            raise ValueError("the shares of cutmix follow from its box: leave own_share out")
        if self.box is not None and self.box.flip:
            raise ValueError("a mix does not mirror: the box has no flip")

    def __len__(self) -> int:
        return len(self.partner)

    def own_fraction(self, height: int, width: int) -> float:
        """Lambda: how much of a mixed crop of this size is the row's own; exact, from the true area of the box."""
        if self.kind == "mixup":
            return self.own_share / SHARES
        if self.box is None:
            return 1.0
        return 1.0 - self.box.height * self.box.width / (height * width)

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values that :meth:`from_dict` reads back to an equal mix."""
        box = self.box
        return {
            "kind": self.kind,
            "partner": list(self.partner),
            "own_share": self.own_share,
            "box": None if box is None else [box.top, box.left, box.height, box.width],
        }

    def at(self, old: tuple[int, int], new: tuple[int, int]) -> Mix:
        """The same mix of crops rendered ``new`` (height, width) instead of ``old``: a box's edges move to the nearest
        pixels.
        """
        box = self.box
        if box is None or old == new:
            return self
        (top, bottom), (left, right) = (
            tuple((2 * edge * new[axis] + old[axis]) // (2 * old[axis]) for edge in (start, start + length))
            for axis, (start, length) in enumerate(((box.top, box.height), (box.left, box.width)))
        )
        place = None
        if bottom > top and right > left:
            place = CropBox(top=top, left=left, height=bottom - top, width=right - left)
        return dataclasses.replace(self, box=place)

    def to(self, *_: object, **__: object) -> Mix:
        """This mix. Lightning and accelerate move all that they find in a batch by ``to``; nothing is moved here."""
        return self

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Mix:
        """Raises ValueError where the values are no mix."""
        try:
            kind, partner, own_share, box = (values[name] for name in ("kind", "partner", "own_share", "box"))
            place = None if box is None else [int(value) for value in box]  # type: ignore[attr-defined]
            return cls(
                kind=kind,  # type: ignore[arg-type]
                partner=tuple(int(row) for row in partner),  # type: ignore[attr-defined]
                own_share=int(own_share),  # type: ignore[call-overload]
                box=None if place is None else CropBox(top=place[0], left=place[1], height=place[2], width=place[3]),
            )
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"not a mix of kind, partner, own_share and box: {dict(values)!r}") from error


def draw_mixup(random: np.random.Generator, num_crops: int, *, alpha: float = 0.8) -> Mix:
    """Mixup with a random permutation of the batch and lambda from Beta(alpha, alpha) (FKD: 0.8)."""
    return Mix(kind="mixup", partner=_permutation(random, num_crops), own_share=_share(random.beta(alpha, alpha)))


def draw_cutmix(random: np.random.Generator, num_crops: int, height: int, width: int, *, alpha: float = 1.0) -> Mix:
    """CutMix with a random permutation and lambda from Beta(alpha, alpha) (FKD: 1).

    The box's sides are sqrt(1 - lambda) of the crop's, its centre lies anywhere, what hangs over is cut off.
    """
    box = _cutmix_box(random, height, width, alpha)
    return Mix(kind="cutmix", partner=_permutation(random, num_crops), box=box)


def draw_fkd_mix(random: np.random.Generator, num_crops: int, height: int, width: int) -> Mix:
    """FKD's: mixup or CutMix, each half of the time, over the whole batch (arXiv 2112.01528, released code)."""
    if random.random() < 0.5:
        return draw_mixup(random, num_crops)
    return draw_cutmix(random, num_crops, height, width)


def draw_funmatch_mix(random: np.random.Generator, num_crops: int) -> Mix:
    """FunMatch's: every crop with its neighbour, one lambda for all, evenly from 1/2..1 (arXiv 2106.05237)."""
    share = random.random()
    partner = tuple((row - 1) % num_crops for row in range(num_crops))
    return Mix(kind="mixup", partner=partner, own_share=_share(max(share, 1 - share)))


def draw_self_mix(
    random: np.random.Generator,
    num_images: int,
    crops_per_image: int,
    height: int,
    width: int,
    *,
    kind: MixKind = "cutmix",
    alpha: float = 1.0,
) -> Mix:
    """SelfMix of a batch that lies crop-index-major: partners are crops of the same image (FerKD, arXiv 2312.17473).

    The paper does not fix the operator: this is CutMix or mixup with a random permutation within each image.
    """
    order = random.random((crops_per_image, num_images)).argsort(axis=0)
    partner = tuple((order * num_images + np.arange(num_images)).reshape(-1).tolist())
    if kind == "mixup":
        return Mix(kind="mixup", partner=partner, own_share=_share(random.beta(alpha, alpha)))
    return Mix(kind="cutmix", partner=partner, box=_cutmix_box(random, height, width, alpha))


def mix_crops(crops: NDArray[np.uint8], mix: Mix, *, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Mixed crops [N, H, W, C], in ``out`` where that is given; the given ones stay as they are."""
    if crops.dtype != np.uint8 or crops.ndim != 4:
        raise ValueError(f"crops are mixed as uint8 [N, H, W, C], got {crops.dtype} {list(crops.shape)}")
    _check_rows(len(crops), mix)
    return mix_table(crops, mix_records(mix), out=out)


def mix_records(mix: Mix) -> NDArray[np.void]:
    """A mix as the records (MIXUP or CUTMIX) that travel with crops by reference."""
    records = np.zeros(len(mix), MIXUP if mix.kind == "mixup" else CUTMIX)
    records["partner"] = mix.partner
    if mix.kind == "mixup":
        records["own_share"] = mix.own_share
    elif mix.box is not None:
        for side in ("top", "left", "height", "width"):
            records[side] = getattr(mix.box, side)
    return records


def mix_references(references: CropReferences, mix: Mix) -> CropReferences:
    """The same crops, mixed by whoever cuts them."""
    if references.mixing is not None:
        raise ValueError("these crops are mixed already")
    _check_rows(len(references), mix)
    return CropReferences(table=references.table, mixing=mix_records(mix), priority=references.priority)


def mix_table(
    table: NDArray[np.uint8], mixing: NDArray[np.void], *, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Crop i of the table [R, H, W, C] mixed with its partner in it, for each of the N records (MIXUP or CUTMIX)."""
    mixed = np.empty((len(mixing), *table.shape[1:]), np.uint8) if out is None else out
    if mixing.dtype == MIXUP:
        import cv2

        flat, mixed_flat = table.reshape(len(table), -1), mixed.reshape(len(mixed), -1)
        for row, (partner, share) in enumerate(mixing.tolist()):
            own = share / SHARES
            # Every sum is exact in 32-bit floats; the last term settles halves, whichever way OpenCV rounds them.
            cv2.addWeighted(flat[row], own, flat[partner], 1 - own, _UPWARDS, dst=mixed_flat[row])
        return mixed
    mixed[...] = table[: len(mixing)]
    height, width = table.shape[1:3]
    for row, (partner, top, left, box_height, box_width) in enumerate(mixing.tolist()):
        bottom, right = top + box_height, left + box_width
        if bottom > height or right > width:
            raise ValueError(
                f"box top={top} left={left} height={box_height} width={box_width} does not lie inside crops of "
                f"{height} x {width} pixels"
            )
        mixed[row, top:bottom, left:right] = table[partner, top:bottom, left:right]
    return mixed


def mix_probabilities(probabilities: NDArray[np.float32], mix: Mix, height: int, width: int) -> NDArray[np.float32]:
    """Targets [N, C] of mixed crops: lambda of the row's own distribution, the rest of its partner's."""
    _check_rows(len(probabilities), mix)
    own = np.float32(mix.own_fraction(height, width))
    partner = np.array(mix.partner, np.int64)
    return own * probabilities + (np.float32(1) - own) * probabilities[partner]


def mix_labels(
    labels: SoftLabels,
    mix: Mix,
    height: int,
    width: int,
    *,
    temperature: float | None = None,
    completion: Completion = "smoothing",
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mixed targets [N, C] and weights [N] of labels that were asked for unmixed crops of this size.

    A row whose own or whose partner's label is missing has weight 0; the product of both weights otherwise.
    """
    _check_rows(len(labels), mix)
    weight = labels.weight * labels.weight[np.array(mix.partner, np.int64)]
    probabilities = labels.probabilities(temperature, completion=completion)
    return mix_probabilities(probabilities, mix, height, width), weight


def _cutmix_box(random: np.random.Generator, height: int, width: int, alpha: float) -> CropBox | None:
    side = np.sqrt(1 - random.beta(alpha, alpha))
    center_y, center_x = int(random.integers(height)), int(random.integers(width))
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    top, bottom = max(center_y - half_height, 0), min(center_y + half_height, height)
    left, right = max(center_x - half_width, 0), min(center_x + half_width, width)
    if bottom <= top or right <= left:
        return None
    return CropBox(top=top, left=left, height=bottom - top, width=right - left)


def _permutation(random: np.random.Generator, num_crops: int) -> tuple[int, ...]:
    return tuple(random.permutation(num_crops).tolist())


def _share(fraction: float) -> int:
    return round(fraction * SHARES)


def _check_rows(num_rows: int, mix: Mix) -> None:
    if num_rows != len(mix):
        raise ValueError(f"this mix is for {len(mix)} crops, got {num_rows}")
