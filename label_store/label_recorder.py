"""Records labels: one writer of a directory that several processes may write at once. Asks no teacher."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.crop_plan import BOX
from teacherfarm.crops.sample_index import SampleIndex
from teacherfarm.label_store.journal import JournalWriter
from teacherfarm.label_store.label_directory import JOURNALS, LabelDirectory
from teacherfarm.label_store.manifest import BOX_FIELD, LABEL, Manifest
from teacherfarm.label_store.record_checks import unusable
from teacherfarm.label_store.sealing import seal as seal_directory
from teacherfarm.label_store.unsealed_labels import UnsealedLabels, known_labels
from teacherfarm.protos.faults import RecordingStopped

_MOST_WARNINGS = 5

log = logging.getLogger(__name__)


class LabelRecorder:
    """One writer, from any thread; ``rows`` are places in ``index``.

    What :meth:`commit` reported survives kill -9 and the machine's end; ``add`` commits by itself every
    ``commit_every_s`` seconds. Raises LabelsMismatch where the directory holds other labels.
    """

    def __init__(self, directory: str, manifest: Manifest, index: SampleIndex, *, commit_every_s: float = 1.0) -> None:
        if manifest.samples != index.digest():
            raise ValueError(f"the manifest's samples are {manifest.samples!r}, the index is {index.digest()!r}")
        self.directory = LabelDirectory(directory)
        self.manifest = manifest
        self.index = index
        self.refused = 0
        """Labels that a broken teacher made (NaN): not recorded."""
        self.dropped = 0
        """Labels that came after the recording had stopped."""
        self._commit_every_s = commit_every_s
        self._added = self._committed = 0
        self._stopped = self._closed = False
        self._lock = threading.Lock()
        try:
            self.directory.create(manifest, index)
            unsealed = UnsealedLabels(self.directory.journals())
            content = self.directory.read()
            content.manifest.refuse_other(manifest, directory)
            unsealed.scan(manifest, content.geometry.num_labels)
            self._known = known_labels(self.directory, content, unsealed)
            self._writer = JournalWriter(self.directory.root / JOURNALS, manifest)
        except OSError as error:
            raise RecordingStopped(f"no labels can be recorded in {directory}: {error.strerror or error}") from error
        self._committed_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(seal=error is None)

    def __repr__(self) -> str:
        state = "stopped" if self._stopped else "closed" if self._closed else "recording"
        return f"<LabelRecorder {self.directory}: {state}, {self._committed} labels committed, {self.refused} refused>"

    def add(
        self,
        rows: NDArray[np.int64],
        views: NDArray[np.int64],
        records: NDArray[np.void],
        boxes: NDArray[np.void] | None = None,
    ) -> None:
        """Record labels [N]; leave out those of weight 0. Once the recording has stopped, nothing happens.

        Labels without a number for a best class are refused by name, the others recorded. Raises RecordingStopped once,
        when the disk is full; ValueError for arrays that do not fit.
        """
        rows, views = np.asarray(rows), np.asarray(views)
        self._check(rows, views, records, boxes)
        bad = unusable(records)
        if bad.any():
            self._refuse(rows[bad], views[bad])
            rows, views, records = rows[~bad], views[~bad], records[~bad]
            boxes = None if boxes is None else boxes[~bad]
        stored = records
        if boxes is not None:
            stored = np.empty(len(records), self.manifest.stored_dtype)
            stored[LABEL], stored[BOX_FIELD] = records, boxes
        places = views.astype(np.int64) * len(self.index) + rows
        with self._lock:
            if self._stopped or not len(places):
                self.dropped += len(places)
                return
            try:
                self._writer.append(places, np.ascontiguousarray(stored).view(np.uint8).reshape(len(stored), -1))
            except OSError as error:
                self._stop(error)
            self._added += len(places)
            self._known.add(places)
            if time.monotonic() - self._committed_s >= self._commit_every_s:
                self._commit()

    def commit(self) -> int:
        """Make all that was added durable, now; labels committed so far by this writer. May raise RecordingStopped."""
        with self._lock:
            if not (self._stopped or self._closed):
                self._commit()
            return self._committed

    def close(self, *, seal: bool = True) -> None:
        """Commit, and let others seal this writer's journal; ``seal``: do it, if no other process still writes.

        The last of several writers to close thus seals all of theirs. May raise RecordingStopped: the disk has no room;
        what was committed stays in the journal, where it can be read and sealed later.
        """
        with self._lock:
            if self._closed:
                return
            try:
                if not self._stopped:
                    self._commit()
            finally:
                self._closed = self._stopped = True
                self._writer.close()
        if seal:
            live = seal_directory(self.directory.root, wait_for_writers=True).live
            if live:
                log.info("%s: not sealed, as %d others still write; the last one seals", self.directory, live)

    def present(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which labels anybody had committed when this recorder was opened, or were added by it.

        Not by reading them: a label that ``RecordedLabels`` finds damaged counts as there, and may be added again.
        """
        rows, views = np.asarray(rows, np.int64), np.asarray(views, np.int64)
        possible = (rows >= 0) & (rows < len(self.index)) & (views >= 0) & (views < self.manifest.views)
        return possible & self._known.has(np.where(possible, views * len(self.index) + rows, 0))

    def _commit(self) -> None:
        if self._committed != self._added:
            try:
                self._writer.sync()
            except OSError as error:
                self._stop(error)
            self._committed = self._added
        self._committed_s = time.monotonic()

    def _stop(self, error: OSError) -> None:
        self._stopped = True
        if self._writer.save_what_is_whole():
            self._committed = self._added
        self._writer.close()
        lost = self._added - self._committed
        raise RecordingStopped(
            f"recording in {self.directory} stopped: {error.strerror or error}. This writer's {self._committed} "
            f"committed labels stay readable, {lost} others are lost. Training can go on; free space, "
            "then record again: what is there already is not asked again"
        ) from error

    def _check(
        self,
        rows: NDArray[np.int64],
        views: NDArray[np.int64],
        records: NDArray[np.void],
        boxes: NDArray[np.void] | None,
    ) -> None:
        if records.dtype != self.manifest.record_dtype:
            raise ValueError(f"records are {self.manifest.record_dtype}, got {records.dtype}")
        if (boxes is None) == self.manifest.has_boxes or (boxes is not None and boxes.dtype != BOX):
            raise ValueError("labels come with boxes (crop_plan.BOX) if and only if the manifest has_boxes")
        lengths = {len(rows), len(views), len(records), len(records) if boxes is None else len(boxes)}
        if len(lengths) != 1 or rows.ndim != 1:
            raise ValueError(f"rows, views and records are equally long, got {sorted(lengths)}")
        if len(rows) and not (
            0 <= rows.min() <= rows.max() < len(self.index) and 0 <= views.min() <= views.max() < self.manifest.views
        ):
            raise ValueError(
                f"rows lie in 0..{len(self.index) - 1} and views in 0..{self.manifest.views - 1}, got rows "
                f"{rows.min()}..{rows.max()} and views {views.min()}..{views.max()}"
            )

    def _refuse(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> None:
        if self.refused < _MOST_WARNINGS:
            named = f"view {views[0]} of {self.index.name(int(rows[0]))!r}"
            log.warning(
                "%d labels are not recorded, the first for %s: the teacher's answer is NaN or infinite",
                len(rows),
                named,
            )
        self.refused += len(rows)
