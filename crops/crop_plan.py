"""The crop plan: the stateless rule (seed, sample, view) -> box and flip, with the semantics of RandomResizedCrop.

Boxes are equal on every machine: the random numbers are whole, and between them and a box stand only additions,
products, quotients, square roots and roundings to whole numbers, which IEEE 754 fixes to the last bit. The exponential
function, which it does not fix, is computed from those. Knows nothing of images but their size.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from teacherfarm.crops.counter_random import FLIP_DRAW, check_seed, random_words
from teacherfarm.protos.crop import CropBox

BOX = np.dtype([("top", "<u4"), ("left", "<u4"), ("height", "<u4"), ("width", "<u4"), ("flip", "?")])
"""One crop's box and flip, 17 packed bytes: what the plan answers for many crops at once."""

PLAN_KIND = "random-resized-crop/philox4x32-10/1"
"""Named in manifests; another rule, or another reading of the same numbers, needs another name."""

MOST_ATTEMPTS = 100
_EAGER_ATTEMPTS = 2
_UNIT = 2.0**-32
_MAX_SIDE = 2**16
_EXP_TERMS = tuple(1.0 / math.factorial(power) for power in range(9))


@dataclass(frozen=True, kw_only=True)
class CropPlan:
    """Which box and flip the ``view``-th crop of a sample has.

    A box covers an area drawn evenly from ``scale`` (as a share of the image), with width / height drawn evenly in
    logarithm from ``ratio``, anywhere it fits; after ``attempts`` draws that do not fit comes the largest central box
    whose ratio is allowed. Areas and ratios are drawn with 32 bits, so are places (their bias is below 1e-5).
    """

    seed: int = 0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    attempts: int = 10

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name, (low, high), most in (("scale", self.scale, 1.0), ("ratio", self.ratio, 100.0)):
            if not 0 < low <= high <= most:
                raise ValueError(f"a crop plan's {name} is (lowest, highest) within 0..{most:g}, got {(low, high)}")
        if not 0.0 <= self.flip_probability <= 1.0:
            raise ValueError(f"flip_probability lies in 0..1, got {self.flip_probability}")
        # Peers name plans, and each attempt costs whoever cuts.
        if not 1 <= self.attempts <= MOST_ATTEMPTS:
            raise ValueError(f"attempts lies in 1..{MOST_ATTEMPTS}, got {self.attempts}")

    def boxes(self, samples: ArrayLike, views: ArrayLike, heights: ArrayLike, widths: ArrayLike) -> NDArray[np.void]:
        """Boxes (``BOX``) for sample numbers, views and image sizes in pixels, broadcast against one another.

        ``samples``: unsigned 64-bit numbers, see :func:`sample_number`.
        """
        sample, view, height, width = np.broadcast_arrays(
            np.asarray(samples, np.uint64),
            views,
            np.asarray(heights, np.float64),
            np.asarray(widths, np.float64),
        )
        shape = sample.shape
        sample, view, height, width = sample.ravel(), view.ravel(), height.ravel(), width.ravel()
        if sample.size and not (min(height.min(), width.min()) >= 1 and max(height.max(), width.max()) < _MAX_SIDE):
            raise ValueError(f"image sides lie in 1..{_MAX_SIDE - 1} pixels")
        boxes = np.empty(sample.shape, BOX)
        # The first attempts and the flip are drawn in one call: for the few crops of one image calls cost
        # most.
        eager = min(_EAGER_ATTEMPTS, self.attempts)
        draws = np.array([*range(eager), FLIP_DRAW], np.uint64)
        words = random_words(self.seed, sample[:, None], view[:, None], draws)
        boxes["flip"] = words[0, :, -1] < np.uint64(round(self.flip_probability * 2**32))
        missing = self._place(boxes, np.arange(len(boxes)), words[:, :, :-1], height, width)
        if len(missing) and eager < self.attempts:
            later = np.arange(eager, self.attempts, dtype=np.uint64)
            words = random_words(self.seed, sample[missing, None], view[missing, None], later)
            missing = self._place(boxes, missing, words, height[missing], width[missing])
        if len(missing):
            self._place_in_the_middle(boxes, missing, height[missing], width[missing])
        return boxes.reshape(shape)

    def box(self, sample: int, view: int, height: int, width: int) -> CropBox:
        """The box of one crop of an image of ``height`` x ``width`` pixels."""
        return crop_boxes(self.boxes([sample], [view], [height], [width]))[0]

    def to_dict(self) -> dict[str, object]:
        """For manifests and checkpoints: plain JSON values that :meth:`from_dict` reads back to an equal plan."""
        return {
            "kind": PLAN_KIND,
            "seed": self.seed,
            "scale": list(self.scale),
            "ratio": list(self.ratio),
            "flip_probability": self.flip_probability,
            "attempts": self.attempts,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> CropPlan:
        """Raises ValueError naming what is missing, unknown, or of a rule that this version does not know."""
        expected = cls().to_dict().keys()
        if values.keys() != expected:
            raise ValueError(f"a crop plan has the fields {', '.join(expected)}; got {', '.join(values)}")
        if values["kind"] != PLAN_KIND:
            raise ValueError(f"crop plan of kind {values['kind']!r}, this teacherfarm cuts by {PLAN_KIND!r}")
        return cls(
            seed=_whole(values["seed"], "seed"),
            scale=_pair(values["scale"], "scale"),
            ratio=_pair(values["ratio"], "ratio"),
            flip_probability=_number(values["flip_probability"], "flip_probability"),
            attempts=_whole(values["attempts"], "attempts"),
        )

    def _place(
        self,
        boxes: NDArray[np.void],
        rows: NDArray[np.int64],
        words: NDArray[np.uint64],
        height: NDArray[np.float64],
        width: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """Fill ``rows`` of ``boxes`` by the first attempt of ``words`` [4, rows, attempts] that fits; the rest."""
        low, high = self.scale
        area = (height * width)[:, None] * (low + words[0] * _UNIT * (high - low))
        log_low, log_high = (_exact_log(value) for value in self.ratio)
        ratio = _exp(log_low + words[1] * _UNIT * (log_high - log_low))
        box_width = np.rint(np.sqrt(area * ratio))
        box_height = np.rint(np.sqrt(area / ratio))
        fits = (box_width >= 1) & (box_width <= width[:, None]) & (box_height >= 1) & (box_height <= height[:, None])
        first = fits.argmax(axis=1)
        here = np.arange(len(rows))
        found = fits[here, first]
        if not found.all():
            here, first = here[found], first[found]
        done = rows[here]
        box_height, box_width = box_height[here, first], box_width[here, first]
        boxes["height"][done] = box_height
        boxes["width"][done] = box_width
        boxes["top"][done] = _below(words[2, here, first], height[here] - box_height + 1)
        boxes["left"][done] = _below(words[3, here, first], width[here] - box_width + 1)
        missing: NDArray[np.int64] = rows[~found]
        return missing

    def _place_in_the_middle(
        self,
        boxes: NDArray[np.void],
        rows: NDArray[np.int64],
        height: NDArray[np.float64],
        width: NDArray[np.float64],
    ) -> None:
        low, high = self.ratio
        # Rounding up to zero rows or past the image can only happen with ratios of more than the image's own
        # side.
        box_height = np.where(width / height < low, np.clip(np.rint(width / low), 1, height), height)
        box_width = np.where(width / height > high, np.clip(np.rint(height * high), 1, width), width)
        boxes["height"][rows] = box_height
        boxes["width"][rows] = box_width
        boxes["top"][rows] = (height - box_height) // 2
        boxes["left"][rows] = (width - box_width) // 2


def sample_number(name: str) -> int:
    """The 64-bit number that stands for a sample's name in plans and schedules: BLAKE2b of its UTF-8, little-endian."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "little")


def sample_numbers(names: Iterable[str]) -> NDArray[np.uint64]:
    """:func:`sample_number` of many names."""
    return np.fromiter((sample_number(name) for name in names), np.uint64)


def crop_boxes(boxes: NDArray[np.void]) -> list[CropBox]:
    """Rows of a ``BOX`` array as values."""
    return [
        CropBox(top=top, left=left, height=height, width=width, flip=flip)
        for top, left, height, width, flip in boxes.tolist()
    ]


def box_array(boxes: Iterable[CropBox]) -> NDArray[np.void]:
    """The inverse of :func:`crop_boxes`."""
    return np.array([(box.top, box.left, box.height, box.width, box.flip) for box in boxes], BOX)


def _below(words: NDArray[np.uint64], bound: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Whole numbers from 0 to bound - 1: the upper half of a 64-bit product, no remainder taken."""
    return (words * bound.astype(np.uint64)) >> np.uint64(32)


@functools.lru_cache(maxsize=256)
def _exact_log(value: float) -> float:
    """Natural logarithm, correctly rounded: decimal does not use the mathematical library of the machine."""
    return float(Decimal(value).ln(Context(prec=40)))


def _exp(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp by a polynomial and squarings: each step is one correctly rounded operation, so bits are fixed.

    Within 1e-15 of exp for the usual ratios and 1e-9 for the widest allowed ones.
    """
    small = values / 16.0
    result = np.full_like(small, _EXP_TERMS[-1])
    for term in _EXP_TERMS[-2::-1]:
        result *= small
        result += term
    for _ in range(4):
        result *= result
    return result


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"a crop plan's {name} is a number, got {value!r}")
    return float(value)


def _whole(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"a crop plan's {name} is a whole number, got {value!r}")
    return value


def _pair(value: object, name: str) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"a crop plan's {name} is a pair of numbers, got {value!r}")
    return _number(value[0], name), _number(value[1], name)
