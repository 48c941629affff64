"""Crops to verify a teacher with: installed packages' photographs, the user's own, synthetic patterns.

Knows renderings; nothing of teachers' answers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.cutting import center_box, cut
from teacherfarm.export.teachers import ChannelOrder
from teacherfarm.protos.crop import CropBox, NumberType, Rendering

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
NUM_STRUCTURED = 4

_INSTALLED_PHOTOGRAPHS = (
    *(
        "skimage/data/astronaut.png",
        "skimage/data/chelsea.png",
        "skimage/data/coffee.png",
        "skimage/data/rocket.jpg",
    ),
    *("skimage/data/motorcycle_left.png", "skimage/data/hubble_deep_field.jpg", "skimage/data/retina.jpg"),
    *("skimage/data/ihc.png", "skimage/data/camera.png", "skimage/data/coins.png", "skimage/data/brick.png"),
    *("skimage/data/grass.png", "sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg"),
)


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Crops in the teacher's rendering, uint8 [N, H, W, C]; the last ``num_structured`` are no photographs."""

    crops: NDArray[np.uint8]
    num_structured: int
    origin: str

    @property
    def num_photographs(self) -> int:
        return len(self.crops) - self.num_structured


def find_images(folder: Path) -> list[Path]:
    """The image files under a folder, sorted. Raises ValueError when there is none."""
    if not folder.is_dir():
        raise ValueError(f"--images {folder}: no such folder")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"--images {folder}: no image in it ({', '.join(SUFFIXES)})")
    return found


def installed_photographs() -> list[Path]:
    """Photographs that scikit-image and scikit-learn carry, as far as they are installed."""
    roots: dict[str, Path] = {}
    for package in ("skimage", "sklearn"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            roots[package] = Path(spec.origin).parent.parent
    paths = [roots[name.partition("/")[0]] / name for name in _INSTALLED_PHOTOGRAPHS if name.partition("/")[0] in roots]
    return [path for path in paths if path.is_file()]


def make_probes(
    rendering: Rendering,
    channel_order: ChannelOrder,
    *,
    images: Path | None = None,
    num_photographs: int = 24,
) -> Probes:
    """From ``images`` where given, else installed photographs, else patterns drawn from a fixed seed."""
    paths = find_images(images) if images is not None else installed_photographs()
    structured = _structured(rendering)
    if paths:
        photographs = _cut_photographs(paths, rendering, num_photographs)
        crops = np.concatenate([photographs, structured])
        where = f"{images}" if images is not None else "scikit-image and scikit-learn"
        origin = f"{len(photographs)} crops of {min(len(paths), num_photographs)} photographs ({where})"
    else:
        crops, origin = (
            np.concatenate([_patterns(rendering, 12), structured]),
            "12 synthetic patterns (no photographs)",
        )
    return Probes(
        crops=_in_order(crops, channel_order),
        num_structured=NUM_STRUCTURED if paths else len(crops),
        origin=f"{origin} and {NUM_STRUCTURED} structured crops",
    )


def as_number_type(crops: NDArray[np.uint8], number_type: NumberType) -> NDArray[Any]:
    """The same crops in another number type's full scale."""
    if number_type == "uint16":
        return crops.astype(np.uint16) * np.uint16(257)
    if number_type == "float32":
        return crops.astype(np.float32) / np.float32(255)
    return crops


def _cut_photographs(paths: Sequence[Path], rendering: Rendering, count: int) -> NDArray[np.uint8]:
    """First every photograph's centre, then other places of them drawn from a fixed seed."""
    from PIL import Image

    draw = np.random.default_rng(20)
    photographs = []
    for path in paths[:count]:
        try:
            with Image.open(path) as image:
                photographs.append(np.asarray(image.convert("RGB")))
        except OSError as error:
            raise ValueError(f"{path} cannot be read as an image ({error}): take it out of the folder") from error
    crops = []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        height, width = photograph.shape[:2]
        box = center_box(height, width, 1.0)
        if number >= len(photographs):
            side = max(1, int(box.height * draw.uniform(0.3, 1.0)))
            top, left = draw.integers(0, height - side + 1), draw.integers(0, width - side + 1)
            box = CropBox(top=int(top), left=int(left), height=side, width=side)
        crops.append(cut(photograph, [box], rendering)[0])
    return np.stack(crops)


def _structured(rendering: Rendering) -> NDArray[np.uint8]:
    """Ramps, a checkerboard, flat colour, noise: what photographs have little of."""
    height, width = rendering.height, rendering.width
    down = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    across = np.linspace(0, 255, width).astype(np.uint8)[None, :]
    zeros = np.zeros((height, width), np.uint8)
    ramp = np.stack([down + zeros, across + zeros, 255 - (down + zeros)], axis=-1)
    cell = max(2, min(height, width) // 8)
    board = ((np.arange(height)[:, None] // cell + np.arange(width)[None, :] // cell) % 2 * 255).astype(np.uint8)
    flat = np.broadcast_to(np.array([200, 90, 30], np.uint8), (height, width, 3))
    noise = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.stack([ramp, np.repeat(board[..., None], 3, axis=-1), flat, noise])


def _patterns(rendering: Rendering, count: int) -> NDArray[np.uint8]:
    """Smooth coloured blobs of random sizes: the nearest thing to photographs that a seed can draw."""
    draw = np.random.default_rng(11)
    rows = np.linspace(0, 1, rendering.height)[:, None, None]
    columns = np.linspace(0, 1, rendering.width)[None, :, None]
    crops = []
    for _ in range(count):
        picture = np.zeros((rendering.height, rendering.width, 3))
        for _ in range(12):
            top, left, size = draw.uniform(0, 1), draw.uniform(0, 1), draw.uniform(0.03, 0.3)
            colour = draw.uniform(-1, 1, 3)
            picture += colour * np.exp(-((rows - top) ** 2 + (columns - left) ** 2) / (2 * size**2))
        crops.append(np.clip(128 + 110 * picture, 0, 255).astype(np.uint8))
    return np.stack(crops)


def _in_order(crops: NDArray[np.uint8], channel_order: ChannelOrder) -> NDArray[np.uint8]:
    if channel_order == "BGR":
        return np.ascontiguousarray(crops[..., ::-1])
    if channel_order == "GRAY":
        # ITU-R BT.601 luma, as Pillow and OpenCV do.
        weighted = crops.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        return np.rint(weighted).astype(np.uint8)[..., None]
    return crops
