"""Crops as values: where a crop lies in its sample, how its pixels are made, what it is called, and batches of them.

Knows nothing of files or decoding; crops/ cuts pixels, wire.py moves them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NewType

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.faults import WrongBatchSize, WrongCropSize, WrongLayout, WrongNumberType

CropKey = NewType("CropKey", bytes)

CROP_KEY_BYTES = 16
MOST_PRIORITY = 8

Interpolation = Literal["nearest", "bilinear", "bicubic", "area"]
NumberType = Literal["uint8", "uint16", "float32"]
Codec = Literal["raw", "jpeg", "reference"]
"""How a session's crops travel. "reference": as a few bytes that name them, or raw where the server lacks a sample."""

NUMBER_BYTES: dict[NumberType, int] = {"uint8": 1, "uint16": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """How a crop's box becomes pixels: output size in pixels, interpolation, antialiasing when shrinking."""

    height: int
    width: int
    interpolation: Interpolation = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a rendering needs a positive size, got {self.height} x {self.width}")


@dataclass(frozen=True, kw_only=True)
class CropBox:
    """A rectangle in a sample's own pixels (from the top left) and whether it is mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False

    def __post_init__(self) -> None:
        if self.top < 0 or self.left < 0 or self.height < 1 or self.width < 1:
            raise ValueError(f"not a box inside an image: {self}")


@dataclass(frozen=True, kw_only=True)
class CropFormat:
    """What the pixels of one session's crops look like; fixed at Hello. Raw pixels are NHWC."""

    height: int
    width: int
    channels: int = 3
    number_type: NumberType = "uint8"
    codec: Codec = "raw"

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1 or self.channels < 1:
            raise WrongCropSize(
                f"a crop has a positive height, width and number of channels, got {self.height} x {self.width} x "
                f"{self.channels}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.height, self.width, self.channels)

    @property
    def crop_bytes(self) -> int:
        """Bytes of one decoded crop."""
        return self.height * self.width * self.channels * NUMBER_BYTES[self.number_type]

    def describe(self) -> str:
        return f"{self.number_type} [N, {self.height}, {self.width}, {self.channels}]"

    def check(self, pixels: NDArray[Any]) -> None:
        """Raise the fault that names what is wrong with ``pixels``; silent when they fit."""
        if pixels.ndim != 4:
            raise WrongLayout(
                f"crops must be one array {self.describe()} (batch, height, width, channels), got {pixels.ndim} "
                f"dimension(s) {list(pixels.shape)}; stack single crops with numpy.stack"
            )
        if pixels.shape[0] == 0:
            raise WrongBatchSize("a crop batch holds at least one crop, got an empty array")
        channels_first = pixels.shape[1] == self.channels and pixels.shape[3] != self.channels
        if np.issubdtype(pixels.dtype, np.floating) and self.number_type != "float32":
            raise WrongNumberType(
                f"this teacher takes {self.describe()}, got {pixels.dtype} {list(pixels.shape)}"
                f"{' in channels-first order' if channels_first else ''}: these look like a student's normalised "
                "pixels. Normalisation is part of the teacher, so send the pixels before ToTensor and Normalize: let "
                "the data set return two views (the teacher's uint8 HWC crop and the student's tensor) and give "
                "LabelledLoader teacher_view=lambda batch: batch['crops']"
            )
        if pixels.dtype != np.dtype(self.number_type):
            raise WrongNumberType(
                f"this teacher takes {self.describe()}, got numbers of type {pixels.dtype}; convert them where they "
                "are made (a cast of values outside 0..255 would be silently wrong)"
            )
        if channels_first:
            raise WrongLayout(
                f"this teacher takes {self.describe()} (channels last), got {list(pixels.shape)}, which is channels "
                "first: use pixels.transpose(0, 2, 3, 1), or better return the uint8 HWC view from the data set"
            )
        if pixels.shape[1:] != self.shape:
            raise WrongCropSize(
                f"this teacher takes {self.describe()}, got {list(pixels.shape)}; cut the teacher's view to "
                f"{self.height} x {self.width} (the card's rendering says how)"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class CropBatch:
    """What a student sends at once: pixels [N, H, W, C] and, where known, their crop keys (N x 16 bytes, joined).

    The arrays are borrowed, not copied: they must not change until the batch was answered.
    """

    pixels: NDArray[Any]
    keys: bytes = b""
    priority: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.keys, bytes):
            raise WrongBatchSize(f"keys are bytes, {CROP_KEY_BYTES} for each crop, got {type(self.keys).__name__}")
        if not isinstance(self.priority, int) or abs(self.priority) > MOST_PRIORITY:
            raise ValueError(
                f"priority is a whole number from -{MOST_PRIORITY} to {MOST_PRIORITY}, got {self.priority!r}"
            )
        if self.keys and len(self.keys) != CROP_KEY_BYTES * len(self.pixels):
            raise WrongBatchSize(
                f"{len(self.pixels)} crops need {CROP_KEY_BYTES * len(self.pixels)} bytes of keys, got {len(self.keys)}"
            )

    def __len__(self) -> int:
        return len(self.pixels)


def pixel_keys(pixels: NDArray[Any]) -> bytes:
    """Crop keys of raw crops [N, ...]: XXH3-128 of each crop's bytes, joined. About 2 microseconds per 224 px crop.

    Two crops of one session share a key only when all their pixels are equal; keys are compared inside one project, one
    teacher and one crop format, so neither enters the hash.
    """
    import xxhash

    digest = xxhash.xxh3_128_digest
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    return b"".join([digest(row.data) for row in rows])


def content_keys(contents: Sequence[str], boxes: NDArray[np.void], rendering: Rendering) -> bytes:
    """Crop keys of crops named by their sample's content and their box in one rendering, joined; no pixel is read.

    ``contents``: the digest of each crop's sample, "" for one that cannot be read.
    ``boxes``: records of top, left, height, width (unsigned 32 bits, little-endian) and flip, 17 bytes each.
    """
    import xxhash

    places, tail = boxes.tobytes(), _rendering_bytes(rendering)
    digest, size = xxhash.xxh3_128_digest, boxes.dtype.itemsize
    keys = [
        digest(b"\0%b\0%b%b" % (content.encode(), places[row * size : row * size + size], tail))
        for row, content in enumerate(contents)
    ]
    return b"".join(keys)


def _rendering_bytes(rendering: Rendering) -> bytes:
    return struct.pack(
        "<II8s?", rendering.height, rendering.width, rendering.interpolation.encode(), rendering.antialias
    )
