"""Labels on this machine's disk, in LMDB: what was committed survives kill -9 and the machine's fall.

One writer thread commits what came meanwhile together. Dated segments, each at most a sixteenth of the room and of the
age that is allowed, are dropped whole, the oldest first. A disk that is full or broken stops the writing, not the
answers; it is tried again now and then.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb

from teacherfarm.label_store.label_directory import MANIFEST_FILE
from teacherfarm.label_store.label_store import LayerStats, StoreScope
from teacherfarm.label_store.lmdb_segment import (
    Segment,
    SegmentCutShort,
    new_path,
    remove_segment,
    segment_paths,
)
from teacherfarm.label_store.write_queue import Groups, WriteQueue
from teacherfarm.protos.faults import LabelStoreFault

log = logging.getLogger(__name__)

NUM_SEGMENTS = 16
LEAST_BYTES = NUM_SEGMENTS << 20
COMMIT_BYTES = 8 << 20
QUEUE_BYTES = 64 << 20
COMMIT_EVERY_S = 0.2
TRY_AGAIN_S = 10.0
LOOK_AROUND_S = 30.0
"""How often old segments are looked for while nothing is written."""
LOCK_FILE = "writer.lock"
DAMAGED = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.BadTxnError, lmdb.PanicError)
"""What LMDB says of a file whose own pages it cannot follow any more: unlike a full disk, no time mends it."""


class LmdbStore:
    """``folder`` is made where it is absent; one server may write it at a time. Raises LabelStoreFault, ValueError."""

    def __init__(
        self,
        folder: str | Path,
        *,
        most_bytes: int,
        most_age_s: float,
        queue_bytes: int = QUEUE_BYTES,
        commit_every_s: float = COMMIT_EVERY_S,
        try_again_s: float = TRY_AGAIN_S,
    ) -> None:
        if most_bytes < LEAST_BYTES:
            raise ValueError(f"a label store on disk needs {LEAST_BYTES >> 20} MiB or more, got {most_bytes}")
        self.folder = Path(folder)
        self._most_bytes, self._most_age_s = most_bytes, most_age_s
        self._segment_bytes = most_bytes // NUM_SEGMENTS
        # A commit must leave most of a segment's room to others, and copies some pages while it lasts.
        self._commit_bytes = min(COMMIT_BYTES, self._segment_bytes // 4)
        self._commit_every_s, self._try_again_s = commit_every_s, try_again_s
        self._queue = WriteQueue(queue_bytes)
        self._wake, self._stopping = threading.Event(), threading.Event()
        # Held by whoever reads segments or changes which are open: a file must not be closed under a reader.
        self._lock = threading.Lock()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="label store reader")
        self._writer = threading.Thread(target=self._write_for_ever, name="label store writer", daemon=True)
        self._dropped = self._written = self._damaged = self._unwritten = 0
        self._kept_labels = self._kept_bytes = 0
        self._why = ""
        self._tried_s = 0.0
        self._lock_file = _lock_folder(self.folder)
        self._segments = [segment for path in segment_paths(self.folder) if (segment := self._open(path))]
        self._drop_old()
        self._count()

    def __repr__(self) -> str:
        return f"<LmdbStore {self.folder}, {self._kept_labels} label(s), {self._kept_bytes >> 20} MiB{self._why}>"

    async def start(self) -> None:
        """Start writing."""
        self._writer.start()

    async def get(self, scope: StoreScope, keys: Sequence[bytes]) -> list[bytes | None]:
        """The record of each key, None where there is none that is whole. In a thread: the disk may be slow."""
        if not self._segments:
            return [None] * len(keys)
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._read, scope, keys)

    def put(self, scope: StoreScope, keys: Sequence[bytes], records: Sequence[bytes]) -> None:
        """Queue these for the writer."""
        out_of_order = self._why and time.monotonic() - self._tried_s < self._try_again_s
        if out_of_order or not self._queue.put(scope, keys, records):
            self._dropped += len(keys)
        elif not self._wake.is_set():
            self._wake.set()

    def stats(self) -> tuple[LayerStats, ...]:
        """This one layer."""
        return (
            LayerStats(
                layer="lmdb",
                kept_labels=self._kept_labels,
                kept_bytes=self._kept_bytes,
                written=self._written,
                dropped=self._dropped + self._unwritten,
                damaged=self._damaged,
                why=self._why,
            ),
        )

    async def close(self) -> None:
        """Commit what is queued, and close the files."""
        self._stopping.set()
        self._wake.set()
        if self._writer.is_alive():
            await asyncio.get_running_loop().run_in_executor(None, self._writer.join)
        self._reader.shutdown()
        with self._lock:
            for segment in self._segments:
                segment.close()
            self._segments = []
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1

    def _read(self, scope: StoreScope, keys: Sequence[bytes]) -> list[bytes | None]:
        found: list[bytes | None] = [None] * len(keys)
        with self._lock:
            # The newest first: that is where the last crops went.
            for segment in reversed(self._segments):
                try:
                    damaged = segment.read(scope, keys, found)
                except Exception as error:
                    # Whatever a damaged file brings about: its labels are computed again.
                    damaged = 1
                    log.warning("label store: %s cannot be read, its labels are asked again: %s", segment.path, error)
                if damaged:
                    self._damaged += damaged
                    log.warning("label store: %d damaged label(s) in %s are asked again", damaged, segment.path)
                if None not in found:
                    break
        return found

    def _write_for_ever(self) -> None:
        while True:
            self._wake.wait(LOOK_AROUND_S)
            # What comes meanwhile is committed together.
            self._stopping.wait(self._commit_every_s)
            self._wake.clear()
            try:
                while len(self._queue):
                    groups, num_labels = self._queue.take(self._commit_bytes)
                    self._commit(groups, num_labels)
                self._drop_old()
                self._count()
            except Exception:
                log.exception("label store: undeclared error of the writer")
            if self._stopping.is_set() and not len(self._queue):
                return

    def _commit(self, groups: Groups, num_labels: int) -> None:
        try:
            try:
                self._newest().write(groups)
            except lmdb.MapFullError:
                self._begin_segment().write(groups)
            except DAMAGED as error:
                log.error("label store: %s is damaged, a new file takes what comes: %s", self._segments[-1].path, error)
                self._begin_segment().write(groups)
        except (lmdb.Error, OSError) as error:
            self._unwritten += num_labels
            self._tried_s = time.monotonic()
            if not self._why:
                log.error(
                    "label store: writing to %s stopped, answers go on without it and it is tried again every %g s: %s",
                    self.folder,
                    self._try_again_s,
                    error,
                )
            self._why = f"not writing to {self.folder}: {error}"
        else:
            self._written += num_labels
            if self._why:
                log.warning("label store: writing to %s again", self.folder)
            self._why = ""

    def _newest(self) -> Segment:
        period_s = self._most_age_s / NUM_SEGMENTS
        newest = self._segments[-1] if self._segments else None
        if newest is None or newest.is_full or not 0 <= time.time() - newest.started_s < period_s:
            return self._begin_segment()
        return newest

    def _begin_segment(self) -> Segment:
        segment = Segment(new_path(self.folder, time.time()), map_bytes=self._segment_bytes)
        with self._lock:
            self._segments.append(segment)
        self._drop_old()
        return segment

    def _drop_old(self) -> None:
        """Room for the newest segment to grow full, nothing too old, and nothing that somebody else deleted."""
        oldest_s = time.time() - self._most_age_s
        while self._segments:
            first = self._segments[0]
            full = len(self._segments) > NUM_SEGMENTS
            if not (full or first.started_s < oldest_s):
                break
            self._forget(first)
            remove_segment(first.path)
            log.info("label store: dropped %s (%s)", first.path.name, "no more room" if full else "too old")
        for segment in list(self._segments):
            if not segment.path.exists():
                self._forget(segment)

    def _forget(self, segment: Segment) -> None:
        with self._lock:
            self._segments.remove(segment)
            segment.close()

    def _open(self, path: Path) -> Segment | None:
        try:
            segment = Segment(path, map_bytes=self._segment_bytes, repair=True)
        except (lmdb.Error, OSError, SegmentCutShort) as error:
            aside = path.with_suffix(".damaged")
            log.error("label store: %s cannot be opened (%s); put aside as %s", path, error, aside.name)
            path.rename(aside)
            return None
        return segment

    def _count(self) -> None:
        segments = list(self._segments)
        self._kept_labels = sum(segment.num_labels for segment in segments)
        self._kept_bytes = sum(segment.disk_bytes for segment in segments)


def _lock_folder(folder: Path) -> int:
    """Be the one writer; the lock goes with the process, however it ends."""
    if (folder / MANIFEST_FILE).exists():
        raise LabelStoreFault(
            f"{folder} holds recorded labels (teacherfarm label, distill --record), and a server's store is something "
            "else: give --store another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise LabelStoreFault(f"cannot keep labels in {folder}: {error}. Give --store another folder") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise LabelStoreFault(
            f"another server keeps its labels in {folder}: give each its own folder, or let several share Redis "
            "(--store redis://HOST:PORT/0)"
        ) from error
    return file
