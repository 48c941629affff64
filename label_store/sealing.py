"""Sealing: merges the journals of writers that are done into shards, safe against kill -9 at any moment.

New shards are written beside the old ones; then the manifest names them, in one step; then journals and old shards go.
Until that step nothing has changed, and after it nothing is missing: done again, it finds nothing to do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from teacherfarm.label_store.journal import Frame, is_journal_of, lock_if_dead, read_journal
from teacherfarm.label_store.label_directory import Content, LabelDirectory, ShardFiles
from teacherfarm.label_store.shards import Shard, ShardWriter
from teacherfarm.protos.faults import RecordingStopped

log = logging.getLogger(__name__)

_LABELS_AT_ONCE, _BYTES_AT_ONCE = 1 << 17, 32 << 20

Progress = Callable[[int], object]
"""Told how many more bytes of journals are merged."""


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """``new_labels`` came into the shards from ``journals`` journals; ``live`` writers go on and keep theirs."""

    new_labels: int = 0
    journals: int = 0
    live: int = 0


def journal_bytes(root: str | Path) -> int:
    """How much there is to seal, living writers' too."""
    return sum(path.stat().st_size for path in LabelDirectory(root).journals())


def seal(root: str | Path, *, wait_for_writers: bool = False, progress: Progress | None = None) -> Sealed:
    """Merge every journal that no living writer holds.

    ``wait_for_writers``: leave all to the last writer, when others still write. A label that is sealed already stays as
    it is; of several journals' the first one's counts, by file name. A journal of other labels, or without its head, is
    left beside with the ending .unusable. Raises RecordingStopped, naming what is missing,
    when the disk has no room; the journals are whole then.
    """
    directory = LabelDirectory(root)
    directory.read()
    with ExitStack() as stack:
        stack.enter_context(directory.lock())
        content = directory.read()
        directory.remove_leftovers(content)
        paths = directory.journals()
        journals = [stack.enter_context(file) for path in paths if (file := lock_if_dead(path)) is not None]
        live = len(paths) - len(journals)
        if not journals or (live and wait_for_writers):
            return Sealed(live=live)
        merge = _Merge(directory=directory, content=content)
        stack.callback(merge.close)
        try:
            for file in journals:
                for frame in read_journal(file, content.manifest, content.geometry.num_labels):
                    merge.add(frame)
                    if progress is not None:
                        progress(frame.records.nbytes)
            shards = merge.finish()
        except OSError as error:
            raise RecordingStopped(
                f"{directory} cannot be sealed: {error.strerror or error}. Its labels are committed in "
                f"{len(journals)} journals; free space on that disk, then `teacherfarm labels seal {directory}`"
            ) from error
        if shards != content.shards:
            directory.write(replace(content, shards=shards))
        for file in journals:
            if is_journal_of(file, content.manifest):
                os.unlink(file.name)
            else:
                os.rename(file.name, f"{file.name}.unusable")
        directory.remove_leftovers(replace(content, shards=shards))
        return Sealed(new_labels=merge.new_labels, journals=len(journals), live=live)


def drop_damaged(root: str | Path, *, progress: Progress | None = None) -> int:
    """Write the shards that have damaged blocks again without these, so that their labels count as never recorded.

    Checks every block. Returns how many labels were dropped.
    """
    directory = LabelDirectory(root)
    directory.read()
    with directory.lock():
        content = directory.read()
        shards = []
        for files in content.shards:
            shard = Shard(directory.root, files, content.geometry, _ignore)
            for block in range(content.geometry.shard_blocks(files.number)):
                shard.check_blocks(block, block + 1)
                if progress is not None:
                    progress(1)
            if not len(shard.damaged_blocks()):
                shards.append(files)
                continue
            writer = ShardWriter(directory.new_shard(files.number), files.number, content.geometry)
            try:
                _copy(shard, writer, content)
                kept = writer.finish()
            finally:
                writer.close()
            shards += [] if kept is None else [kept]
        lost = sum(files.num_labels for files in content.shards) - sum(files.num_labels for files in shards)
        if lost:
            directory.write(replace(content, shards=tuple(shards)))
            directory.remove_leftovers(replace(content, shards=tuple(shards)))
        return lost


@dataclass(kw_only=True)
class _Merge:
    """The new shards that journals make; only those that get a new label are written."""

    directory: LabelDirectory
    content: Content
    new_labels: int = 0
    _waiting: list[Frame] = field(default_factory=list)
    _num_waiting: int = 0
    _old: dict[int, Shard] = field(default_factory=dict)
    _new: dict[int, ShardWriter] = field(default_factory=dict)

    def add(self, frame: Frame) -> None:
        """Frames are merged many at once: a training loop's are small."""
        self._waiting.append(frame)
        self._num_waiting += len(frame.places)
        if self._num_waiting >= _LABELS_AT_ONCE or self._num_waiting * frame.records.shape[1] >= _BYTES_AT_ONCE:
            self._merge_waiting()

    def _merge_waiting(self) -> None:
        if not self._waiting:
            return
        all_places = np.concatenate([frame.places for frame in self._waiting])
        records = np.concatenate([frame.records for frame in self._waiting])
        self._waiting, self._num_waiting = [], 0
        numbers = all_places // self.content.geometry.shard_labels
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == number)
            places = all_places[rows] - number * self.content.geometry.shard_labels
            old = self._old_shard(number)
            if old is not None:
                new = ~old.intact(places)
                rows, places = rows[new], places[new]
            if len(rows):
                self.new_labels += self._writer(number).add(places, records[rows])

    def finish(self) -> tuple[ShardFiles, ...]:
        """All valid shards, after every new one is on disk."""
        self._merge_waiting()
        valid = {files.number: files for files in self.content.shards}
        for number, writer in self._new.items():
            old = self._old_shard(number)
            if old is not None:
                _copy(old, writer, self.content)
            files = writer.finish()
            if files is not None:
                valid[number] = files
        return tuple(valid[number] for number in sorted(valid))

    def close(self) -> None:
        for writer in self._new.values():
            writer.close()

    def _old_shard(self, number: int) -> Shard | None:
        if number not in self._old:
            for files in self.content.shards:
                if files.number == number:
                    self._old[number] = Shard(self.directory.root, files, self.content.geometry, _warn)
        return self._old.get(number)

    def _writer(self, number: int) -> ShardWriter:
        if number not in self._new:
            path = self.directory.new_shard(number)
            self._new[number] = ShardWriter(path, number, self.content.geometry)
        return self._new[number]


def _copy(shard: Shard, writer: ShardWriter, content: Content) -> None:
    for block in range(content.geometry.shard_blocks(shard.files.number)):
        places, labels = shard.block(block)
        if len(places):
            writer.add(places, labels)


def _warn(file: str, number: int, block: int) -> None:
    log.warning("%s: %s is damaged; its labels are dropped", file, "the file" if block < 0 else f"block {block}")


def _ignore(file: str, number: int, block: int) -> None:
    pass
