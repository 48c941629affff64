"""A folder of JPEG files like ImageNet's, made of the photographs that ship with scikit-image and scikit-learn."""

from __future__ import annotations

import bisect
import io
from pathlib import Path

import numpy as np
from PIL import Image

from teacherfarm.crops.cutting import decode
from teacherfarm.demo.photographs import PHOTOGRAPHS, file_of

CLASS = "photograph"
SIDES = (500, 375)
"""Of most of ImageNet's files, upright ones the other way round."""
FILE_BYTES = 110_000
"""Of ImageNet's files on average."""
UPRIGHT_SHARE = 0.25
LEAST_SHARE = 0.6
QUALITIES = range(60, 101)


def write_photographs(root: Path, num_images: int) -> None:
    """``root/photograph/NUMBER.jpg``: parts of the photographs, mirrored or not, of about ``FILE_BYTES`` each; the same
    files every time.
    """
    pictures = [Image.fromarray(decode(file_of(*place).read_bytes())) for place in PHOTOGRAPHS.values()]
    random = np.random.default_rng(0)
    for number in range(num_images):
        upright = random.random() < UPRIGHT_SHARE
        part = _part(pictures[number % len(pictures)], SIDES[::-1] if upright else SIDES, random)
        file = root / CLASS / f"{number:04}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_jpeg(part))


def _part(picture: Image.Image, sides: tuple[int, int], random: np.random.Generator) -> Image.Image:
    width, height = sides
    largest = min(picture.width / width, picture.height / height)
    scale = largest * random.uniform(LEAST_SHARE, 1.0)
    left = random.uniform(0, picture.width - width * scale)
    top = random.uniform(0, picture.height - height * scale)
    box = (left, top, left + width * scale, top + height * scale)
    part = picture.resize(sides, Image.Resampling.BICUBIC, box=box)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else part


def _jpeg(picture: Image.Image) -> bytes:
    """At the quality whose file comes nearest to ``FILE_BYTES``."""
    above = bisect.bisect_left(QUALITIES, FILE_BYTES, key=lambda quality: len(_encoded(picture, quality)))
    near = [_encoded(picture, quality) for quality in QUALITIES[max(0, above - 1) : above + 1]]
    return min(near, key=lambda data: abs(len(data) - FILE_BYTES))


def _encoded(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
