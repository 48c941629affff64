"""What a data set holds: each sample's name, the hash of its encoded image, its size and its class, in columns.

Samples are matched by name and hash, so the same images serve from whatever container they lie in. Cuts nothing.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from teacherfarm.crops.crop_plan import sample_numbers
from teacherfarm.crops.cutting import image_size
from teacherfarm.crops.sample_names import check_unique, text
from teacherfarm.crops.sample_readers import Location, SampleReader, open_samples
from teacherfarm.protos.faults import BadDataSet, SampleMismatch, UnknownSample, UnreadableImage

HASH_BYTES = 16
_KIND = "teacherfarm-sample-index/1"
_COLUMNS = ("names", "hashes", "heights", "widths", "targets")
_ROWS_AT_ONCE = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleIndex:
    """One row a sample, in the data set's order.

    ``names``: bytes, see :mod:`teacherfarm.crops.sample_names`. ``hashes`` (V16): the XXH3-128 digest of the encoded
    bytes. ``heights``, ``widths``: pixels; 0 for an image whose header cannot be understood. ``targets``: -1 unknown.
    ``stamps``: what changes when a sample's file does, so that it need not be read again (0: unknown); no part of the
    digest. Raises BadDataSet where two samples have one name.
    """

    names: NDArray[np.bytes_]
    hashes: NDArray[np.void]
    heights: NDArray[np.uint32]
    widths: NDArray[np.uint32]
    targets: NDArray[np.int64]
    stamps: NDArray[np.uint64] | None = None

    def __post_init__(self) -> None:
        if len({len(getattr(self, column)) for column in _COLUMNS}) != 1:
            raise ValueError("the columns of a sample index are equally long")
        check_unique(self.names, "sample index")

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<SampleIndex {len(self)} samples, {self.digest()[:12]}>"

    def name(self, row: int) -> str:
        """One sample's name as text."""
        return text(self.names[row])

    def numbers(self) -> NDArray[np.uint64]:
        """The number of each sample's name, by which crop plans go."""
        return self._numbers

    def prefixes(self) -> NDArray[np.uint64]:
        """The first half of each hash, big-endian: how a crop by reference names the image that it means."""
        halves = np.frombuffer(self.hashes.tobytes(), ">u8").reshape(-1, 2)
        return np.ascontiguousarray(halves[:, 0]).astype(np.uint64)

    def unreadable(self) -> NDArray[np.int64]:
        """Rows whose image could not be understood when it was indexed."""
        return np.flatnonzero(self.heights == 0)

    def digest(self) -> str:
        """Names the whole: changes with any name, image, size or class, and with their order."""
        return self._digest

    def find(self, names: ArrayLike, hashes: ArrayLike) -> NDArray[np.int64]:
        """The rows of samples that another index or a student knows by ``names`` (bytes) and ``hashes`` (V16).

        A name that is not here is looked up by its hash: renamed samples are found. Raises SampleMismatch naming the
        first that differs, UnknownSample where neither name nor image is here.
        """
        wanted = np.asarray(names, np.bytes_).ravel()
        contents = _as_hashes(hashes)
        if len(wanted) != len(contents):
            raise ValueError(f"{len(wanted)} names with {len(contents)} hashes")
        order, ordered = self._by_name
        places = np.searchsorted(ordered, wanted)
        places[places == len(ordered)] = 0
        rows = order[places]
        named = ordered[places] == wanted
        same = named & (_bytes_view(self.hashes)[rows] == contents)
        if different := np.flatnonzero(named & ~same).tolist():
            first, more = different[0], len(different) - 1
            raise SampleMismatch(
                f"sample {text(wanted[first])!r} is another image here: its hash is "
                f"{self.hashes[rows[first]].tobytes().hex()}, "
                f"wanted is {bytes(contents[first]).hex().ljust(2 * HASH_BYTES, '0')}"
                + (f", and {more} more differ" if more else "")
            )
        unnamed = np.flatnonzero(~named)
        if len(unnamed):
            rows[unnamed] = self._find_by_hash(contents[unnamed], wanted[unnamed])
        return rows

    def save(self, path: str | Path | IO[bytes]) -> None:
        """Write an .npz file, whole or not at all."""
        columns = {column: getattr(self, column) for column in _COLUMNS}
        if self.stamps is not None:
            columns["stamps"] = self.stamps
        columns["hashes"] = np.frombuffer(self.hashes.tobytes(), np.uint8).reshape(-1, HASH_BYTES)
        if not isinstance(path, (str, Path)):
            np.savez(path, kind=np.array(_KIND), **columns)
            return
        beside = f"{os.fspath(path)}.{os.getpid()}.tmp"
        try:
            with open(beside, "wb") as file:
                np.savez(file, kind=np.array(_KIND), **columns)
            os.replace(beside, path)
        finally:
            if os.path.exists(beside):
                os.remove(beside)

    @classmethod
    def load(cls, path: str | Path | IO[bytes]) -> SampleIndex:
        """Raises BadDataSet where the file is no sample index."""
        try:
            with np.load(path, allow_pickle=False) as saved:
                if str(saved["kind"]) != _KIND:
                    raise ValueError(f"it is a {str(saved['kind'])!r}")
                columns = {column: saved[column] for column in _COLUMNS}
                columns |= {"stamps": saved["stamps"]} if "stamps" in saved else {}
            columns["hashes"] = np.ascontiguousarray(columns["hashes"]).view(f"V{HASH_BYTES}").reshape(-1)
            return cls(**columns)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise BadDataSet(
                f"{path} is no sample index of this version ({error}): index the data set again"
            ) from error

    @functools.cached_property
    def _numbers(self) -> NDArray[np.uint64]:
        return sample_numbers(text(name) for name in self.names)

    @functools.cached_property
    def _digest(self) -> str:
        import xxhash

        digest = xxhash.xxh3_128()
        digest.update(b"\0".join(bytes(name) for name in self.names))
        for column in (self.hashes, self.heights, self.widths, self.targets):
            digest.update(column.tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def _by_name(self) -> tuple[NDArray[np.int64], NDArray[np.bytes_]]:
        order = np.argsort(self.names, kind="stable")
        return order, self.names[order]

    def _find_by_hash(self, hashes: NDArray[np.bytes_], names: NDArray[np.bytes_]) -> NDArray[np.int64]:
        own = _bytes_view(self.hashes)
        order = np.argsort(own, kind="stable")
        places = np.searchsorted(own[order], hashes)
        places[places == len(own)] = 0
        rows: NDArray[np.int64] = order[places]
        missing = np.flatnonzero(own[rows] != hashes)
        if len(missing):
            first = int(missing[0])
            raise UnknownSample(
                f"no sample {text(names[first])!r} here, and none that holds the same image"
                + (f", nor {len(missing) - 1} more" if len(missing) > 1 else "")
            )
        return rows


def _as_hashes(hashes: ArrayLike) -> NDArray[np.bytes_]:
    return _bytes_view(np.ascontiguousarray(hashes).reshape(-1))


def _bytes_view(hashes: NDArray[np.generic]) -> NDArray[np.bytes_]:
    """Hashes as byte strings, which can be sorted and compared; zeros at their ends compare alike."""
    return np.ascontiguousarray(hashes).view(f"S{HASH_BYTES}")


def index_dataset(
    path: Location | SampleReader,
    *,
    progress: Callable[[int], object] | None = None,
    known: SampleIndex | None = None,
    threads: int = 8,
) -> SampleIndex:
    """Read every image of a data set once, on several threads; ``progress`` is told how many more are done.

    Images that cannot be understood stay in, with height and width 0. ``known``: an earlier index of the same data set;
    samples whose stamps did not change are taken from it unread. Raises BadDataSet.
    """
    reader = path if isinstance(path, SampleReader) else open_samples(path)
    check_unique(reader.names, reader.where)
    num = len(reader)
    hashes = np.zeros((num, HASH_BYTES), np.uint8)
    sizes, stamps = np.zeros((num, 2), np.uint32), np.zeros(num, np.uint64)
    old = _rows_by_stamp(known)

    def look(first: int) -> int:
        import xxhash

        rows = range(first, min(first + _ROWS_AT_ONCE, num))
        for row in rows:
            stamps[row] = stamp = reader.stamp(row)
            before = old.get((int(stamp), reader.name(row)))
            if before is not None and known is not None:
                hashes[row] = np.frombuffer(known.hashes[before].tobytes(), np.uint8)
                sizes[row] = known.heights[before], known.widths[before]
                continue
            try:
                data = reader.read(row)
                hashes[row] = np.frombuffer(xxhash.xxh3_128_digest(data), np.uint8)
                sizes[row] = image_size(data, reader.name(row))
            except UnreadableImage as fault:
                log.warning("%s", fault)
        return len(rows)

    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="index") as pool:
        looks = [pool.submit(look, first) for first in range(0, num, _ROWS_AT_ONCE)]
        try:
            for done in looks:
                count = done.result()
                if progress is not None:
                    progress(count)
        finally:
            for waiting in looks:
                waiting.cancel()
    return SampleIndex(
        names=reader.names,
        hashes=hashes.view(f"V{HASH_BYTES}").reshape(-1),
        heights=sizes[:, 0].copy(),
        widths=sizes[:, 1].copy(),
        targets=reader.targets,
        stamps=stamps,
    )


def _rows_by_stamp(known: SampleIndex | None) -> dict[tuple[int, str], int]:
    if known is None or known.stamps is None:
        return {}
    return {
        (stamp, known.name(row)): row for row, stamp in enumerate(known.stamps.tolist()) if stamp and known.heights[row]
    }
