"""Reads a data set's recorded labels by sample and view, from mapped shards and from what is not sealed yet.

What is damaged reads as absent, is told by name, and is counted; so it is asked again and never used. Asks no teacher.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.sample_index import SampleIndex
from teacherfarm.label_store.block_table import Geometry
from teacherfarm.label_store.label_directory import Content, LabelDirectory
from teacherfarm.label_store.label_recorder import LabelRecorder
from teacherfarm.label_store.manifest import BOX_FIELD, Manifest, TeacherIdentity
from teacherfarm.label_store.presence import Positions, Presence
from teacherfarm.label_store.sample_matching import match_samples
from teacherfarm.label_store.shard_space import ShardSpace
from teacherfarm.label_store.shards import NOTHING, WHOLE, Shard
from teacherfarm.label_store.unsealed_labels import UnsealedLabels, known_labels, sealed_labels
from teacherfarm.protos.soft_label import SoftLabels

__all__ = ["Damage", "LabelRecorder", "Manifest", "RecordedLabels", "TeacherIdentity"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Labels that are not what was written: in ``file``, from one (view, sample) to another, in view-major order."""

    file: str
    block: int | None
    first: tuple[int, str]
    last: tuple[int, str]
    num_labels: int

    def __str__(self) -> str:
        block = "all of it" if self.block is None else f"block {self.block}"
        return (
            f"{self.file}, {block}: {self.num_labels} labels, from view {self.first[0]} of {self.first[1]!r} to view "
            f"{self.last[0]} of {self.last[1]!r}"
        )


class RecordedLabels:
    """A reader. ``rows`` are places in ``index``, the samples that were recorded; see :meth:`rows_of` for a data set's.

    What a writer adds later is seen when the labels are opened again.
    """

    def __init__(self, directory: LabelDirectory) -> None:
        self.directory = directory
        unsealed = UnsealedLabels(directory.journals())
        content = _valid_content(directory)
        self.manifest: Manifest = content.manifest
        self.index: SampleIndex = directory.read_samples(content.manifest)
        self.content = content
        self.damaged: list[Damage] = []
        self._geometry: Geometry = content.geometry
        self._unsealed = unsealed
        self._shards: list[Shard | None] = [None] * content.geometry.num_shards
        self._map_shards()
        unsealed.scan(content.manifest, content.geometry.num_labels)
        self._num_unsealed = 0
        if len(unsealed):
            new = ~sealed_labels(directory, content).has(unsealed.places)
            self._num_unsealed = int(new.sum())
            log.info("%s: %d labels are not sealed: `teacherfarm labels seal`", directory, self._num_unsealed)

    @classmethod
    def open(
        cls,
        location: str | os.PathLike[str],
        *,
        near: str | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> RecordedLabels:
        """Recorded labels in a folder, or at any URL that fsspec reaches.

        Those elsewhere are copied to the folder ``near`` first (by default below the user's cache), checked; processes
        that open the same ones share one copy. ``progress`` is told how many more bytes came. Raises ValueError when
        there are none, DamagedLabels when the manifest or the index of samples is not what was written.
        """
        from teacherfarm.label_store.near_copy import bring_near

        return cls(LabelDirectory(bring_near(os.fspath(location), near=near, progress=progress)))

    def __len__(self) -> int:
        """Labels that were written: sealed, or in journals."""
        return self.num_sealed + self._num_unsealed

    def __repr__(self) -> str:
        return (
            f"<RecordedLabels {self.directory}: {len(self)} of {self._geometry.num_labels} labels, {len(self.index)} "
            f"samples x {self.manifest.views} views, by {self.manifest.teacher.name}>"
        )

    def __reduce__(self) -> tuple[type[RecordedLabels], tuple[LabelDirectory]]:
        # For DataLoader workers: each maps the same files.
        return RecordedLabels, (self.directory,)

    @property
    def num_sealed(self) -> int:
        return sum(files.num_labels for files in self.content.shards)

    @property
    def num_journals(self) -> int:
        """Journals that are not sealed."""
        return self._unsealed.num_journals

    @property
    def damaged_journals(self) -> list[str]:
        """What was found damaged in them, in words."""
        return list(self._unsealed.damaged)

    def check(self, wanted: Manifest) -> None:
        """Raise LabelsMismatch naming the first field in which these are not the labels that are wanted.

        Fewer views than recorded may be wanted. An empty ``wanted.samples`` leaves the samples to :meth:`rows_of`.
        """
        if wanted.views < self.manifest.views:
            wanted = dataclasses.replace(wanted, views=self.manifest.views)
        self.manifest.refuse_other(wanted, str(self.directory))

    def rows_of(self, samples: SampleIndex) -> NDArray[np.int64]:
        """The row of each of another index's samples, in whatever container or order; -1 where none can serve.

        A sample goes by its name and hash; one of a name that is not here by its hash alone. One whose image differs is
        named in a warning and gets -1, so that it is asked live; the others are replayed.
        """
        return match_samples(self.index, samples)

    def read(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """Records [N] of some samples' views, and which of them are there; those that are not are zeros.

        A row of -1 (see :meth:`rows_of`) and a view past those recorded are absent.
        """
        stored, present = self._stored(np.asarray(rows), np.asarray(views))
        if not self.manifest.has_boxes:
            return stored.view(self.manifest.record_dtype).reshape(-1), present
        size = self.manifest.record_dtype.itemsize
        return np.ascontiguousarray(stored[:, :size]).view(self.manifest.record_dtype).reshape(-1), present

    def boxes(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.void] | None:
        """Boxes (``crop_plan.BOX``) [N] of the crops, zeros where absent; None where a plan gives them."""
        if not self.manifest.has_boxes:
            return None
        stored, _ = self._stored(np.asarray(rows), np.asarray(views))
        return np.ascontiguousarray(stored.view(self.manifest.stored_dtype).reshape(-1)[BOX_FIELD])

    def soft_labels(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> SoftLabels:
        """Soft labels [N], of weight 0 where absent."""
        records, present = self.read(rows, views)
        teacher = self.manifest.teacher
        return SoftLabels(
            records=records,
            spec=self.manifest.spec,
            num_classes=teacher.num_classes,
            activation=teacher.activation,
            weight=present.astype(np.float32),
            channel_axes=teacher.channel_axes,
            fixed_temperature=teacher.fixed_temperature,
        )

    def present(self) -> Presence:
        """Which labels were written, by place (view * samples + row); their blocks are not checked for that."""
        return known_labels(self.directory, self.content, self._unsealed)

    def verify(self, *, progress: Callable[[int], object] | None = None) -> list[Damage]:
        """Check every block; ``progress`` is told how many more labels were. What is damaged, journals apart."""
        for shard in self._shards:
            if shard is None:
                continue
            for block in range(self._geometry.shard_blocks(shard.files.number)):
                shard.check_blocks(block, block + 1)
                if progress is not None:
                    progress(self._geometry.block_size(shard.files.number, block))
        return list(self.damaged)

    def _map_shards(self) -> None:
        geometry = self._geometry
        self._space = ShardSpace.reserve(geometry)
        self._trust = np.full(-(-geometry.num_labels // geometry.block_labels), NOTHING, np.uint8)
        for files in self.content.shards:
            first = files.number * geometry.shard_labels // geometry.block_labels
            trust = self._trust[first : first + geometry.shard_blocks(files.number)]
            self._shards[files.number] = Shard(
                self.directory.root, files, geometry, self._found_damaged, space=self._space, trust=trust
            )

    def _stored(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        if rows.ndim != 1 or rows.shape != views.shape:
            raise ValueError(f"rows and views are equally long, got {list(rows.shape)} and {list(views.shape)}")
        geometry = self._geometry
        known = None
        if len(rows):
            if rows.min() < -1 or rows.max() >= geometry.num_samples or views.min() < 0:
                raise ValueError(
                    f"rows lie in 0..{geometry.num_samples - 1} (-1: unknown) and views from 0, got rows "
                    f"{rows.min()}..{rows.max()} and views {views.min()}..{views.max()}"
                )
            if rows.min() < 0 or views.max() >= geometry.views:
                known = np.flatnonzero((rows >= 0) & (views < geometry.views))
        places = views.astype(np.int64, copy=False) * geometry.num_samples + rows
        if known is None:
            return self._at(places)
        out = np.zeros((len(rows), geometry.label_bytes), np.uint8)
        present = np.zeros(len(rows), np.bool_)
        out[known], present[known] = self._at(places[known])
        return out, present

    def _at(self, places: Positions) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        out = np.zeros((len(places), self._geometry.label_bytes), np.uint8)
        if self._space is not None and (self._trust[places // self._geometry.block_labels] == WHOLE).all():
            # "clip" writes straight to `out`: all of them are there.
            np.take(self._space.labels, places, axis=0, out=out, mode="clip")
            return out, np.ones(len(places), np.bool_)
        present = np.zeros(len(places), np.bool_)
        numbers = places // self._geometry.shard_labels
        for number in np.unique(numbers).tolist():
            shard = self._shards[number]
            if shard is not None:
                rows = np.flatnonzero(numbers == number)
                part = np.zeros((len(rows), out.shape[1]), np.uint8)
                present[rows] = shard.take(places[rows] - number * self._geometry.shard_labels, part)
                out[rows] = part
        if len(self._unsealed) and not present.all():
            missing = np.flatnonzero(~present)
            part = np.zeros((len(missing), out.shape[1]), np.uint8)
            present[missing] = self._unsealed.take(places[missing], part)
            out[missing] = part
        return out, present

    def _found_damaged(self, file: str, number: int, block: int) -> None:
        geometry = self._geometry
        start = number * geometry.shard_labels
        size = geometry.shard_size(number)
        if block >= 0:
            start, size = start + block * geometry.block_labels, geometry.block_size(number, block)
        ends = [divmod(place, geometry.num_samples) for place in (start, start + size - 1)]
        first, last = ((view, self.index.name(row)) for view, row in ends)
        damage = Damage(
            file=str(self.directory.root / file),
            block=None if block < 0 else block,
            first=first,
            last=last,
            num_labels=size,
        )
        self.damaged.append(damage)
        log.warning("damaged recorded labels are not used, and will be asked again: %s", damage)


def _valid_content(directory: LabelDirectory) -> Content:
    """The manifest's content, read again where a sealing replaced the shards that it names meanwhile."""
    content = directory.read()
    while any(not (directory.root / files.labels_file).exists() for files in content.shards):
        again = directory.read()
        if again == content:
            break
        content = again
    return content
