"""Labels that lie in journals still: found by their places, read one by one.

Holds 24 bytes in memory for each label; sealed, they need none and are read faster.
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from teacherfarm.label_store.block_table import FULL, PARTIAL
from teacherfarm.label_store.journal import read_journal
from teacherfarm.label_store.label_directory import Content, LabelDirectory
from teacherfarm.label_store.manifest import Manifest
from teacherfarm.label_store.presence import Positions, Presence
from teacherfarm.label_store.shards import read_table

log = logging.getLogger(__name__)


class UnsealedLabels:
    """What the journals at ``paths`` hold. Make it before the manifest is read, and none is missed."""

    def __init__(self, paths: list[Path]) -> None:
        self._files: list[IO[bytes]] = []
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                self._files.append(open(path, "rb", buffering=0))  # noqa: SIM115 - for as long as it is read
        self.damaged: list[str] = []
        """What was found damaged, in words; it was warned of."""
        weakref.finalize(self, _close, self._files)
        self._places = np.zeros(0, np.int64)
        self._sources = np.zeros(0, np.int64)
        self._offsets = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def scan(self, manifest: Manifest, num_labels: int) -> None:
        """Find the labels; of several for one place the first one counts, as in sealing."""
        places, sources, offsets = [self._places], [self._sources], [self._offsets]
        label_bytes = manifest.stored_dtype.itemsize
        for number, file in enumerate(self._files):
            for frame in read_journal(file, manifest, num_labels, on_damage=self._found_damaged):
                places.append(frame.places)
                sources.append(np.full(len(frame.places), number))
                offsets.append(frame.offset + label_bytes * np.arange(len(frame.places)))
        self._places, first = np.unique(np.concatenate(places), return_index=True)
        self._sources, self._offsets = np.concatenate(sources)[first], np.concatenate(offsets)[first]

    def _found_damaged(self, what: str) -> None:
        self.damaged.append(what)
        log.warning("%s", what)

    @property
    def places(self) -> Positions:
        """In order."""
        return self._places

    @property
    def num_journals(self) -> int:
        return len(self._files)

    def take(self, places: Positions, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Copy the labels at ``places`` to ``out`` [N, bytes]; which of them are there."""
        if not len(self):
            return np.zeros(len(places), np.bool_)
        found = np.searchsorted(self._places, places)
        found[found == len(self._places)] = 0
        here: NDArray[np.bool_] = self._places[found] == places
        for row in np.flatnonzero(here).tolist():
            source, offset = self._sources[found[row]], self._offsets[found[row]]
            label = os.pread(self._files[source].fileno(), out.shape[1], offset)
            # A writer whose disk failed takes back what it had not committed.
            here[row] = len(label) == out.shape[1]
            if here[row]:
                out[row] = np.frombuffer(label, np.uint8)
        return here


def _close(files: list[IO[bytes]]) -> None:
    for file in files:
        file.close()


def known_labels(directory: LabelDirectory, content: Content, unsealed: UnsealedLabels) -> Presence:
    """Which labels were written, by the shards' tables and the journals; the labels themselves are not checked."""
    presence = sealed_labels(directory, content)
    presence.add(unsealed.places)
    return presence


def sealed_labels(directory: LabelDirectory, content: Content) -> Presence:
    """Which labels are sealed, by the shards' tables."""
    geometry = content.geometry
    presence = Presence(geometry.num_labels)
    for files in content.shards:
        try:
            table = read_table(directory.root, files, geometry)
        except ValueError:  # who reads these labels is told
            continue
        bits = np.zeros((len(table.states), geometry.block_labels // 8), np.uint8)
        bits[table.states == FULL] = 255
        bits[table.states == PARTIAL] = table.bitmaps
        start = files.number * geometry.shard_labels
        presence.add_packed(start, bits.reshape(-1)[: len(presence.bits) - (start >> 3)])
    return presence
