"""Looking after a label store in LMDB, whether or not a server uses it at this moment."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import lmdb

from teacherfarm.label_store.label_store import StoreScope
from teacherfarm.label_store.lmdb_segment import (
    Segment,
    SegmentCutShort,
    disk_bytes,
    remove_segment,
    segment_paths,
)
from teacherfarm.label_store.lmdb_store import LOCK_FILE
from teacherfarm.label_store.store_upkeep import Chosen, Progress, ScopeSummary, Verdict, describe
from teacherfarm.protos.faults import LabelStoreFault

STEP = 1000


def is_store_folder(folder: Path) -> bool:
    """Whether a server keeps labels here, or kept them."""
    return (folder / LOCK_FILE).is_file() or bool(segment_paths(folder))


class LmdbUpkeep:
    """The store in a folder. A file that cannot be opened is a LabelStoreFault; :meth:`verify` tells it with others."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __len__(self) -> int:
        total = 0
        for path in segment_paths(self._folder):
            try:
                total += _count(path)
            except LabelStoreFault:
                continue
        return total

    def disk_bytes(self) -> int:
        """What its files take on disk."""
        return sum(disk_bytes(path) for path in segment_paths(self._folder))

    def summaries(self, progress: Progress) -> list[ScopeSummary]:
        """What there is, the largest first."""
        found: dict[StoreScope, ScopeSummary] = {}
        for path in segment_paths(self._folder):
            segment = _open(path, read_only=True)
            try:
                for hold in segment.holds():
                    progress(hold.labels)
                    known = found.get(hold.scope, ScopeSummary(scope=hold.scope, labels=0, bytes=0))
                    found[hold.scope] = replace(
                        known, labels=known.labels + hold.labels, bytes=known.bytes + hold.bytes
                    )
            finally:
                segment.close()
        return sorted(found.values(), key=lambda summary: -summary.bytes)

    def verify(self, progress: Progress) -> Verdict:
        """Check every label against its checksum."""
        verdict = Verdict()
        for path in segment_paths(self._folder):
            try:
                segment = _open(path, read_only=True)
            except LabelStoreFault as fault:
                verdict.damaged.append(str(fault))
                continue
            try:
                for hold in segment.holds():
                    unseen = 0
                    for key, whole in segment.check(hold):
                        verdict.checked += 1
                        unseen += 1
                        if unseen == STEP:
                            progress(unseen)
                            unseen = 0
                        if not whole:
                            verdict.damaged.append(f"{path.name}: key {key.hex()} of {describe(hold.scope)}")
                    progress(unseen)
            except Exception as error:
                # Whatever a damaged file brings about.
                verdict.damaged.append(f"{path.name}: cannot be read to its end ({error})")
            finally:
                segment.close()
        return verdict

    def evict(self, chosen: Chosen | None, older_than_s: float, progress: Progress) -> int:
        """Take labels out: whole files where all of theirs go. The room of others is used again by what comes next."""
        removed, oldest_s = 0, time.time() - older_than_s
        for path in segment_paths(self._folder):
            # Written to until then: all of it is older.
            if older_than_s and path.stat().st_mtime > oldest_s:
                continue
            if chosen is None:
                try:
                    removed += (labels := _count(path))
                    progress(labels)
                except LabelStoreFault:
                    # Nobody can use it, and it was to go.
                    pass
                remove_segment(path)
                continue
            segment = _open(path, read_only=False)
            try:
                for hold in segment.holds():
                    if chosen(hold.scope):
                        for labels in segment.remove(hold):
                            removed += labels
                            progress(labels)
                    else:
                        progress(hold.labels)
            except lmdb.Error as error:
                raise LabelStoreFault(f"could not take all of it out of {path}: {error}") from error
            finally:
                segment.close()
        return removed

    def close(self) -> None:
        """Nothing stays open."""


def _count(path: Path) -> int:
    segment = _open(path, read_only=True)
    try:
        return segment.num_labels
    finally:
        segment.close()


def _open(path: Path, *, read_only: bool) -> Segment:
    try:
        return Segment(path, read_only=read_only)
    except (lmdb.Error, OSError, SegmentCutShort, ValueError) as error:
        raise LabelStoreFault(f"{path.name} cannot be read: {error}") from error
