"""Small image folders, drawn: one colour and pattern for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def pattern(number: int, size: int) -> np.ndarray:
    """Class ``number``'s picture without noise, [size, size, 3]; ``size`` is a multiple of 4."""
    base = np.random.default_rng(number).integers(0, 256, (4, 4, 3))
    return np.kron(base, np.ones((size // 4, size // 4, 1)))


def write_images(folder: Path, classes: tuple[str, ...], per_class: int, *, size: int = 40, seed: int = 0) -> Path:
    """``folder``/CLASS/0000.png ..."""
    from PIL import Image

    generator = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = pattern(number, size) + generator.normal(0, 20, (size, size, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index:04}.png")
    return folder
