"""The journal of one writer: labels in checksummed frames, appended; what was committed survives kill -9.

A frame holds the places of some labels and their records. A journal is locked by its writer for as long as that lives,
which is how others know not to touch it; a torn or damaged frame is found, told, and left out.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from teacherfarm.label_store.label_directory import JOURNAL_SUFFIX, UNFINISHED_SUFFIX, sync_folder
from teacherfarm.label_store.manifest import Manifest
from teacherfarm.label_store.presence import Positions

_FILE_HEADER = struct.Struct("<8sQIIQ")  # magic, manifest, bytes of a record, 0; checksum of these
_FRAME_HEADER = struct.Struct("<8sIIQQ")  # magic, labels, 0, checksum of the body; checksum of these
_FILE_MAGIC, _FRAME_MAGIC = b"TFJRNL1\n", b"TFFRAME\n"
_PLACE_BYTES = 8
_MOST_FRAME_BYTES = 4 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """Labels that were written together. ``offset``: where the first record lies in the file."""

    places: Positions
    records: NDArray[np.uint8]
    offset: int


class JournalWriter:
    """Appends to a journal of its own below ``folder``; ``append`` hands to the system, ``sync`` makes durable.

    Both may raise OSError, when the disk is full or gone.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.path = folder / f"{name}{JOURNAL_SUFFIX}"
        self._record_bytes = manifest.stored_dtype.itemsize
        unborn = folder / f"{name}{UNFINISHED_SUFFIX}"
        self._file = open(unborn, "xb", buffering=0)  # noqa: SIM115 - for as long as the writer lives
        try:
            # Locked before it has its name: nobody ever sees a journal of a living writer unlocked.
            fcntl.flock(self._file, fcntl.LOCK_EX)
            _write_all(self._file, _file_header(manifest))
            os.fsync(self._file.fileno())
            os.rename(unborn, self.path)
            sync_folder(folder)
        except BaseException:
            unborn.unlink(missing_ok=True)
            self._file.close()
            raise
        self._length = self._durable = _FILE_HEADER.size
        self._distrusted = False

    def append(self, places: Positions, records: NDArray[np.uint8]) -> None:
        """One or more frames of labels: ``records`` [N, bytes of a record]."""
        step = max(1, _MOST_FRAME_BYTES // (self._record_bytes + _PLACE_BYTES))
        for start in range(0, len(places), step):
            body = places[start : start + step].astype("<u8").tobytes() + records[start : start + step].tobytes()
            head = _frame_head(len(places[start : start + step]), body)
            _write_all(self._file, head + body)
            self._length += len(head) + len(body)

    def sync(self) -> None:
        """What was appended survives whatever happens to this process or machine from now on."""
        try:
            os.fsync(self._file.fileno())
        except OSError:
            self._distrusted = True
            raise
        self._durable = self._length

    def save_what_is_whole(self) -> bool:
        """After a failure: cut off the torn frame, and make the others durable; what is not, is cut off as well.

        Whether all whole frames are durable.
        """
        with contextlib.suppress(OSError):
            # What could not be written Linux reports once: a second fsync says that all is well, and it is lost.
            if not self._distrusted:
                self._file.truncate(self._length)
                self.sync()
                return True
        with contextlib.suppress(OSError):
            self._file.truncate(self._durable)
        return False

    def close(self) -> None:
        """Unlock. The journal stays until it is sealed."""
        if not self._file.closed:
            # Closing does not unlock while a forked process (a DataLoader's worker) has the file open, too.
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()


def lock_if_dead(path: Path) -> IO[bytes] | None:
    """Open and lock a journal that no living writer holds; None where one does, or where it is gone."""
    try:
        file = open(path, "r+b", buffering=0)  # noqa: SIM115 - the caller holds it
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
    except OSError:
        pass
    file.close()
    return None


def read_journal(
    file: IO[bytes], manifest: Manifest, num_labels: int, *, on_damage: Callable[[str], object] = log.warning
) -> Iterator[Frame]:
    """The intact frames of a journal, in order; ``on_damage`` is told what is damaged, by file and place.

    ``num_labels``: places lie below it. A journal of other labels, or one whose head is damaged, has no frames.
    """
    if not is_journal_of(file, manifest):
        on_damage(f"{file.name}: its head is damaged or it belongs to other labels: nothing in it is used")
        return
    record_bytes = manifest.stored_dtype.itemsize
    size = os.fstat(file.fileno()).st_size
    offset = _FILE_HEADER.size
    while offset < size:
        count = _frame_count(_read_at(file, offset, _FRAME_HEADER.size))
        body_at = offset + _FRAME_HEADER.size
        end = body_at + count * (_PLACE_BYTES + record_bytes)
        frame = _frame(file, offset, count, record_bytes) if count > 0 and end <= size else None
        if frame is not None and int(frame.places.max()) < num_labels:
            yield frame
            offset = end
            continue
        # A damaged body ends where its head says; behind a damaged head the next one is looked for.
        following = end if count > 0 and end < size else _next_head(file, offset + 1, size)
        if following is None and (end > size or size < body_at):
            log.info("%s: its last %d bytes are an unfinished frame and are not used", file.name, size - offset)
            return
        following = size if following is None else following
        on_damage(
            f"{file.name}: {count or 'some'} labels in bytes {offset} to {following} are damaged and not used: they "
            "will be asked again"
        )
        offset = following


def is_journal_of(file: IO[bytes], manifest: Manifest) -> bool:
    """Whether a journal's head is intact, and is one of these labels."""
    return _read_at(file, 0, _FILE_HEADER.size) == _file_header(manifest)


def _write_all(file: IO[bytes], content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def _read_at(file: IO[bytes], offset: int, size: int) -> bytes:
    return os.pread(file.fileno(), size, offset)


def _file_header(manifest: Manifest) -> bytes:
    import xxhash

    known = _FILE_HEADER.pack(
        _FILE_MAGIC, xxhash.xxh3_64_intdigest(repr(manifest.to_dict()).encode()), manifest.stored_dtype.itemsize, 0, 0
    )[:-8]
    return known + struct.pack("<Q", xxhash.xxh3_64_intdigest(known))


def _frame_head(count: int, body: bytes) -> bytes:
    import xxhash

    known = _FRAME_HEADER.pack(_FRAME_MAGIC, count, 0, xxhash.xxh3_64_intdigest(body), 0)[:-8]
    return known + struct.pack("<Q", xxhash.xxh3_64_intdigest(known))


def _frame_count(head: bytes) -> int:
    """Labels of the frame that starts with this head; 0 when it is none."""
    import xxhash

    if len(head) < _FRAME_HEADER.size:
        return 0
    magic, count, _, _, checksum = _FRAME_HEADER.unpack(head)
    return int(count) if magic == _FRAME_MAGIC and checksum == xxhash.xxh3_64_intdigest(head[:-8]) else 0


def _frame(file: IO[bytes], offset: int, count: int, record_bytes: int) -> Frame | None:
    """The frame at ``offset``; None when its body is not what was written."""
    import xxhash

    head = _read_at(file, offset, _FRAME_HEADER.size)
    body_at = offset + _FRAME_HEADER.size
    body = _read_at(file, body_at, count * (_PLACE_BYTES + record_bytes))
    if xxhash.xxh3_64_intdigest(body) != _FRAME_HEADER.unpack(head)[3]:
        return None
    return Frame(
        places=np.frombuffer(body, "<i8", count),
        records=np.frombuffer(body, np.uint8, offset=count * _PLACE_BYTES).reshape(count, record_bytes),
        offset=body_at + count * _PLACE_BYTES,
    )


def _next_head(file: IO[bytes], offset: int, size: int) -> int | None:
    """Where the next intact head of a frame begins, from ``offset``."""
    step = 1 << 20
    while offset < size:
        window = _read_at(file, offset, step + _FRAME_HEADER.size)
        place = window.find(_FRAME_MAGIC)
        while place >= 0:
            if _frame_count(window[place : place + _FRAME_HEADER.size]):
                return offset + place
            place = window.find(_FRAME_MAGIC, place + 1)
        offset += step
    return None
