"""Small image folders, drawn: one colour and pattern for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_images(folder: Path, classes: tuple[str, ...], per_class: int, *, size: int = 40, seed: int = 0) -> Path:
    """``folder``/CLASS/0000.png ..."""
    from PIL import Image

    generator = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        base = np.random.default_rng(number).integers(0, 256, (4, 4, 3))
        for index in range(per_class):
            pixels = np.kron(base, np.ones((size // 4, size // 4, 1))) + generator.normal(0, 20, (size, size, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index:04}.png")
    return folder
