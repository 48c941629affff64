"""Finds the folders of images that a recipe was pointed at, and says what it expected when they are not
there.
"""

from __future__ import annotations

from pathlib import Path


def image_folder(data: Path, name: str, option: str) -> Path:
    """DATA/name, with at least one class folder in it. Raises ValueError naming what is there instead."""
    expected = f"expected {data / name}/CLASS/IMAGE.jpg"
    if not data.is_dir():
        raise ValueError(f"{data} is not a folder: {expected}")
    folder = data / name
    if not folder.is_dir():
        there = sorted(entry.name for entry in data.iterdir() if entry.is_dir())
        found = (
            f"its folders are {', '.join(there[:8])}{', ...' if len(there) > 8 else ''}" if there else "no folder there"
        )
        raise ValueError(f"{data} has no folder {name!r} ({found}): {expected}; another name goes to {option}")
    if not any(entry.is_dir() for entry in folder.iterdir()):
        raise ValueError(f"{folder} holds no class folders: {expected}")
    return folder
