"""A disk of 4 MiB for tests, to be filled up: a tmpfs of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.real_parts import absent


@contextmanager
def mounted_small_disk(place: Path) -> Iterator[Path]:
    """A file system of 4 MiB, mounted there."""
    if os.geteuid() != 0:
        absent("mounting a file system of its own needs root")
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        absent(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill_up(file: Path) -> None:
    """Leave no room beside this file."""
    with file.open("wb", buffering=0) as stream:
        while shutil.disk_usage(file.parent).free:
            stream.write(bytes(1 << 12))
