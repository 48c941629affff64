"""Finds the images that a recipe was pointed at, and says what it expected when they are not there."""

from __future__ import annotations

import os
from pathlib import Path

from teacherfarm.crops.cifar_samples import cifar_location
from teacherfarm.crops.sample_readers import SampleReader, expand, open_samples
from teacherfarm.protos.faults import BadDataSet

PLACES = ("{}", "{}.tar", "{}-*.tar", "{}.parquet", "{}-*.parquet", "data/{}-*.parquet")


def find_samples(data: Path, name: str, option: str) -> SampleReader:
    """DATA/name: class folders, or tar or Parquet files. Raises ValueError naming what is there instead."""
    folder = data / name
    expected = f"expected {folder}/CLASS/IMAGE.jpg, {folder}-*.tar or {folder}-*.parquet"
    if not data.is_dir():
        raise ValueError(f"{data} is not a folder: {expected}")
    location = samples_location(data, name)
    if location is None:
        there = sorted(entry.name for entry in data.iterdir() if entry.is_dir())
        found = (
            f"its folders are {', '.join(there[:8])}{', ...' if len(there) > 8 else ''}" if there else "no folder there"
        )
        raise ValueError(f"{data} has no folder {name!r} ({found}): {expected}; another name goes to {option}")
    if os.path.isdir(location) and not os.listdir(location):
        raise ValueError(f"{folder} holds no class folders: {expected}")
    return open_samples(location)


def training_images(data: str, name: str = "train") -> str:
    """DATA's training images where DATA holds such, as distill finds them; otherwise DATA itself."""
    location = samples_location(Path(data), name) if os.path.isdir(data) else None
    if location is None or (os.path.isdir(location) and not _holds_samples(location)):
        return data  # or a class of that name
    return location


def _holds_samples(folder: str) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.is_dir() or entry.name.endswith((".tar", ".parquet", ".arrow")) for entry in entries)


def samples_location(data: Path, name: str) -> str | None:
    """The folder DATA/name, or the tar, Parquet or CIFAR files that are called so; None where there are none."""
    if cifar := cifar_location(data, name):
        return cifar
    for place in PLACES:
        location = os.path.join(data, place.format(name))
        try:
            if os.path.isdir(location) or all(map(os.path.isfile, expand(location))):
                return location
        except BadDataSet:
            continue  # no file matches
    return None
