"""Which recorded sample is which of a data set's, and the index of a data set that is to be recorded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.crop_plan import sample_number
from teacherfarm.crops.sample_index import HASH_BYTES, SampleIndex, index_dataset
from teacherfarm.crops.sample_names import name_array
from teacherfarm.label_store.label_directory import LabelDirectory
from teacherfarm.protos.faults import BadReference, SampleChanged, UnknownSample, UnreadableImage
from teacherfarm.protos.references import CropReferences
from teacherfarm.student.image_sources import ImageSource, SampleImages, SourceImage

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedImages:
    """Which recorded sample is which of a data set's images, and what their labels are labels of.

    ``rows``: their places in the index of the labels, -1 where there is none. ``hashes``: V16, what each must hold,
    zeros where unknown. ``renamed``: of images that were recorded under another name, that name's number, by which the
    crop plan went.
    """

    rows: NDArray[np.int64]
    hashes: NDArray[np.void]
    renamed: Mapping[int, int]

    @classmethod
    def of(cls, index: SampleIndex, source: ImageSource) -> Self:
        """Reads only images of unknown names."""
        rows = rows_by_name(index, source)
        return cls(rows=rows, hashes=hashes_of(index, rows), renamed=numbers_of_renamed(index, source, rows))

    def beside(self, recording: RecordedImages) -> RecordedImages:
        """These, in a run that records as well: a crop must be the recording's, so labels of others do not count."""
        both = (self.rows >= 0) & (recording.rows >= 0)
        lost = both & (_as_bytes(self.hashes) != _as_bytes(recording.hashes))
        for place in self.renamed.keys() | recording.renamed.keys():
            lost[place] |= both[place] and self.renamed.get(place) != recording.renamed.get(place)
        known = recording.rows >= 0
        own = {place: number for place, number in self.renamed.items() if not known[place]}
        return RecordedImages(
            rows=np.where(lost, -1, self.rows),
            hashes=np.where(known, recording.hashes, self.hashes),
            renamed=own | dict(recording.renamed),
        )


def rows_by_name(index: SampleIndex, source: ImageSource) -> NDArray[np.int64]:
    """The recorded row of each of a data set's images: by name, and where the name is unknown by content; else -1.

    Reads only images of unknown names; that the others hold what was recorded is seen as they are read
    (``CropDataset(hashes=)``).
    """
    names = names_of(source)
    if len(names) == len(index) and np.array_equal(names, index.names):
        return np.arange(len(index))
    order = np.argsort(index.names, kind="stable")
    places = np.searchsorted(index.names[order], names)
    places[places == len(order)] = 0
    rows: NDArray[np.int64] = order[places]
    unknown = np.flatnonzero(index.names[rows] != names)
    for place in unknown.tolist():
        rows[place] = _row_by_content(index, source, place)
    if lost := [source.name(place) for place in unknown.tolist() if rows[place] < 0]:
        named = ", ".join(map(repr, lost[:5])) + (", ..." if len(lost) > 5 else "")
        _log.warning("%d of %d images were never recorded, under any name: %s", len(lost), len(names), named)
    return rows


def rows_at(rows: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of samples; -1 for images that could not be read (negative samples)."""
    return np.where(samples >= 0, rows[samples], -1)


def hashes_of(index: SampleIndex, rows: NDArray[np.int64]) -> NDArray[np.void]:
    """The recorded content hashes of a data set's images; zeros where there is no record."""
    hashes = np.zeros(len(rows), f"V{HASH_BYTES}")
    hashes[rows >= 0] = np.ascontiguousarray(index.hashes).view(f"V{HASH_BYTES}")[rows[rows >= 0]]
    return hashes


def numbers_of_renamed(index: SampleIndex, source: ImageSource, rows: NDArray[np.int64]) -> dict[int, int]:
    """The recorded names' numbers of images that have another name by now."""
    known = np.flatnonzero(rows >= 0)
    places = known[index.names[rows[known]] != names_of(source)[known]]
    return {place: sample_number(index.name(int(rows[place]))) for place in places.tolist()}


def refuse_changed(name: str, image: SourceImage, recorded: np.bytes_) -> None:
    """Raise SampleChanged where an image's content is not that of ``recorded`` (of :func:`hashes_of`, as S16)."""
    if not recorded:
        return
    now, before = image.digest().rpartition(":")[2], bytes(recorded).ljust(HASH_BYTES, b"\0").hex()
    if now != before:
        raise SampleChanged(
            f"image {name} changed since its labels were recorded: it hashes to {now} and did to {before}; restore it, "
            "or record its labels anew into another folder"
        )


def names_of(source: ImageSource) -> NDArray[np.bytes_]:
    """Every image's name."""
    if isinstance(source, SampleImages):
        return source.samples.names
    return name_array([source.name(place) for place in range(len(source))])


def index_of(
    source: ImageSource, directory: str | Path, *, progress: Callable[[int], None] | None = None
) -> SampleIndex:
    """The index that labels in ``directory`` are recorded with; a new directory's data set is read through for it."""
    kept = LabelDirectory(directory)
    if kept.exists():
        return kept.read_samples(kept.read().manifest)
    if isinstance(source, SampleImages):
        return index_dataset(source.samples, progress=progress)
    count = len(source)
    hashes = np.zeros((count, HASH_BYTES), np.uint8)
    sizes = np.zeros((2, count), np.uint32)
    for place in range(count):
        try:
            image = source.load(place)
            hashes[place] = content_hash(image.digest())
            sizes[:, place] = image.size(source.name(place))
        except UnreadableImage as fault:
            _log.warning("%s", fault)
        if progress is not None:
            progress(1)
    return SampleIndex(
        names=names_of(source),
        hashes=hashes.view(f"V{HASH_BYTES}").reshape(-1),
        heights=sizes[0],
        widths=sizes[1],
        targets=np.array([source.target(place) for place in range(count)], np.int64),
    )


def content_hash(digest: str) -> NDArray[np.uint8]:
    """The 16 bytes of an image's digest (``SourceImage.digest``)."""
    return np.frombuffer(bytes.fromhex(digest.rpartition(":")[2]), np.uint8)


def _as_bytes(hashes: NDArray[np.void]) -> NDArray[np.bytes_]:
    return np.ascontiguousarray(hashes).view(f"S{HASH_BYTES}")


def _row_by_content(index: SampleIndex, source: ImageSource, place: int) -> int:
    try:
        hashed = content_hash(source.load(place).digest())
        return int(index.find([b""], hashed.view(f"V{HASH_BYTES}"))[0])
    except (UnreadableImage, UnknownSample):
        return -1


def refuse_mixed(crops: Any) -> None:
    """Raises BadReference for crops mixed by reference: their labels belong to no single sample and view."""
    if isinstance(crops, CropReferences) and crops.mixing is not None:
        raise BadReference(
            "labels of mixed crops belong to no single sample, so they are neither recorded nor replayed: stream them, "
            "or mix the recorded labels of plain crops"
        )
