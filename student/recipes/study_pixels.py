"""Ways to send one crop to a teacher: codecs, renderings, smaller sizes; what each weighs and which pixels arrive.

The server decodes with the very code that is used here, so nothing has to travel to see what would arrive.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.crop_codec import (
    JPEG_QUALITY,
    JPEG_SUBSAMPLING,
    JpegSubsampling,
    decode_crops,
    encode_crops,
)
from teacherfarm.crops.crop_plan import CropPlan, sample_number
from teacherfarm.crops.cutting import cut, decode
from teacherfarm.crops.sample_readers import SampleReader
from teacherfarm.protos.crop import CropBox, CropFormat, Rendering
from teacherfarm.protos.faults import UnreadableImage
from teacherfarm.protos.references import VIEW_REFERENCE
from teacherfarm.protos.teacher_card import TeacherCard

_log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

QUALITIES = (50, 60, 70, 80, 85, 90, 95, 98)
SUBSAMPLINGS: tuple[JpegSubsampling, ...] = ("444", "422", "420")
SMALLER = (0.5, 0.7, 0.85)
REFERENCE_BYTES = VIEW_REFERENCE.itemsize


@dataclass(frozen=True, kw_only=True)
class PixelWay:
    """One way to send crops. ``group``: what it varies. ``advice``: how to get it; empty where nothing offers it."""

    name: str
    group: str
    advice: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrival:
    """What arrived of all crops by one way: mean bytes a crop, pixels [N, H, W, 3], seconds a crop to make and undo."""

    way: PixelWay
    crop_bytes: float
    pixels: Pixels
    seconds: float


class CropSample:
    """``num_crops`` random crops by the plan, as many images as there are first, then more views of each."""

    def __init__(self, reader: SampleReader, *, num_crops: int, plan: CropPlan) -> None:
        chosen = choose_images(len(reader), num_crops, plan.seed)
        self._reader, self._plan = reader, plan
        self._images: list[tuple[int, NDArray[np.int64]]] = [
            (index, np.arange(num_crops // len(chosen) + (place < num_crops % len(chosen))))
            for place, index in enumerate(chosen)
        ]
        self._boxes: dict[int, NDArray[np.void]] = {}
        self._unreadable: set[int] = set()

    @property
    def num_images(self) -> int:
        return len(self._images) - len(self._unreadable)

    def cut(self, rendering: Rendering) -> tuple[Pixels, float]:
        """All crops [N, H, W, 3] in one rendering, and the seconds that cutting (not decoding) one took."""
        crops: list[Pixels] = []
        spent_s = 0.0
        for index, views in self._images:
            pixels = self._decoded(index)
            if pixels is None:
                continue
            if index not in self._boxes:
                sample = sample_number(self._reader.name(index))
                self._boxes[index] = self._plan.boxes(sample, views, pixels.shape[0], pixels.shape[1])
            begun_s = time.perf_counter()
            crops.append(cut(pixels, self._boxes[index], rendering))
            spent_s += time.perf_counter() - begun_s
        if not crops:
            raise UnreadableImage(f"none of {len(self._images)} images can be read; the log names each")
        whole = np.concatenate(crops)
        return whole, spent_s / len(whole)

    def _decoded(self, index: int) -> Pixels | None:
        if index in self._unreadable:
            return None
        name = self._reader.name(index)
        try:
            return decode(self._reader.read(index), name)
        except UnreadableImage as fault:
            self._unreadable.add(index)
            _log.warning("left out: %s", fault)
            return None


def check_pictures(card: TeacherCard) -> None:
    """ValueError for a teacher that takes anything but colour pictures, which are what is cut here."""
    if card.crop_format.number_type != "uint8" or card.crop_format.channels != 3:
        raise ValueError(
            f"teacher {card.name!r} takes {card.crop_format.describe()}; crops are cut from images as uint8 with 3 "
            "channels"
        )


def choose_images(there: int, wanted: int, seed: int) -> list[int]:
    """At most ``wanted`` of ``there`` images, in an order of chance; ValueError where there are none."""
    if not there:
        raise ValueError("no images there to cut crops from")
    chosen: list[int] = np.random.default_rng(seed).permutation(there)[:wanted].tolist()
    return chosen


def num_ways(rendering: Rendering) -> int:
    """How many arrivals :func:`arrivals` yields."""
    return 1 + len(QUALITIES) * len(SUBSAMPLINGS) + len(_other_renderings(rendering)) + len(SMALLER)


def arrivals(sample: CropSample, rendering: Rendering, crop_format: CropFormat) -> Iterator[Arrival]:
    """Raw crops in the teacher's own rendering first: what the others are compared with."""
    native, seconds = sample.cut(rendering)
    raw_bytes = float(crop_format.crop_bytes)
    yield Arrival(
        way=PixelWay(name=f"{_described(rendering)}, the teacher's own", group="raw", advice='codec="raw"'),
        crop_bytes=raw_bytes,
        pixels=native,
        seconds=seconds,
    )
    jpeg = replace(crop_format, codec="jpeg")
    for subsampling in SUBSAMPLINGS:
        for quality in QUALITIES:
            yield _by_jpeg(native, jpeg, quality, subsampling)
    for other in _other_renderings(rendering):
        pixels, seconds = sample.cut(other)
        advice = "CropDataset(teacher_rendering=" + _as_code(other) + ")"
        way = PixelWay(name=_described(other), group="rendering", advice=advice)
        yield Arrival(way=way, crop_bytes=raw_bytes, pixels=pixels, seconds=seconds)
    for share in SMALLER:
        yield _smaller(sample, rendering, share)


def _by_jpeg(native: Pixels, crop_format: CropFormat, quality: int, subsampling: JpegSubsampling) -> Arrival:
    begun_s = time.perf_counter()
    arrived = np.empty_like(native)
    num_bytes = 0
    for row, crop in enumerate(native):
        encoded = encode_crops(crop[None], crop_format, quality=quality, subsampling=subsampling)
        num_bytes += len(encoded.parts[0])
        arrived[row] = decode_crops(encoded.parts[0], 1, crop_format, encoded.crop_bytes)[0]
    offered = quality == JPEG_QUALITY and subsampling == JPEG_SUBSAMPLING
    colours = ":".join(subsampling)
    return Arrival(
        way=PixelWay(
            name=f"quality {quality}",
            group=f"jpeg {colours}",
            advice='codec="jpeg"' if offered else "",
        ),
        crop_bytes=num_bytes / len(native),
        pixels=arrived,
        seconds=(time.perf_counter() - begun_s) / len(native),
    )


def _other_renderings(rendering: Rendering) -> Sequence[Rendering]:
    ways = [("bicubic", True), ("bilinear", True), ("area", True), ("bicubic", False), ("bilinear", False)]
    others = [replace(rendering, interpolation=kind, antialias=smooth) for kind, smooth in ways]  # type: ignore[arg-type]
    others.append(replace(rendering, interpolation="nearest", antialias=False))
    return [other for other in others if other != rendering]


def _smaller(sample: CropSample, rendering: Rendering, share: float) -> Arrival:
    """Cut at a student's smaller size and enlarged to the teacher's, as when both are given the same pixels."""
    height, width = round(rendering.height * share), round(rendering.width * share)
    small, seconds = sample.cut(Rendering(height=height, width=width))
    whole = [CropBox(top=0, left=0, height=height, width=width)]
    enlarged = Rendering(height=rendering.height, width=rendering.width)
    return Arrival(
        way=PixelWay(name=f"{height} px, enlarged", group="smaller"),
        crop_bytes=float(small[0].nbytes),
        pixels=np.concatenate([cut(crop, whole, enlarged) for crop in small]),
        seconds=seconds,
    )


def _described(rendering: Rendering) -> str:
    smooth = "" if rendering.interpolation in ("nearest", "area") or rendering.antialias else ", no antialias"
    return f"{rendering.height} px {rendering.interpolation}{smooth}"


def _as_code(rendering: Rendering) -> str:
    return (
        f'Rendering(height={rendering.height}, width={rendering.width}, interpolation="{rendering.interpolation}", '
        f"antialias={rendering.antialias})"
    )
