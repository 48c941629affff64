"""The files of a directory of recorded labels: their names, the manifest's file, the lock, and writes in one step.

    manifest.json     what the labels are, and which shards are valid; replaced in one step
    samples.npz       the index of samples
    journals/         one file for each writer, until its labels are sealed
    shards/           labels view by view (.labels) and their tables of blocks (.table)
    lock              held while the directory is made or sealed

Knows nothing of records.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from teacherfarm.label_store.block_table import Geometry
from teacherfarm.label_store.manifest import MANIFEST_VERSION, Manifest
from teacherfarm.protos.faults import DamagedLabels
from teacherfarm.protos.teacher_card import from_json_value

if TYPE_CHECKING:
    from teacherfarm.crops.sample_index import SampleIndex

MANIFEST_FILE = "manifest.json"
SAMPLES_FILE = "samples.npz"
LOCK_FILE = "lock"
JOURNALS, SHARDS = "journals", "shards"
JOURNAL_SUFFIX, LABELS_SUFFIX, TABLE_SUFFIX, UNFINISHED_SUFFIX = ".journal", ".labels", ".table", ".part"


@dataclass(frozen=True, kw_only=True)
class ShardFiles:
    """A valid shard: names below the directory, and XXH3-128 of the table, which has the blocks' checksums."""

    number: int
    labels_file: str
    table_file: str
    table_digest: str
    num_labels: int


@dataclass(frozen=True, kw_only=True)
class Content:
    """What the manifest's file says."""

    manifest: Manifest
    geometry: Geometry
    shards: tuple[ShardFiles, ...] = ()

    def __post_init__(self) -> None:
        numbers = [shard.number for shard in self.shards]
        if numbers != sorted(set(numbers)) or (
            numbers and not 0 <= numbers[0] <= numbers[-1] < self.geometry.num_shards
        ):
            raise ValueError(f"shards are numbered in order below {self.geometry.num_shards}, got {numbers}")
        if self.geometry.label_bytes != self.manifest.stored_dtype.itemsize:
            raise ValueError(f"{self.geometry} is not one of records of {self.manifest.stored_dtype.itemsize} bytes")

    def to_bytes(self) -> bytes:
        """JSON, the checksum of all the rest in its first line."""
        values: dict[str, object] = {
            "version": MANIFEST_VERSION,
            "labels": self.manifest.to_dict(),
            "geometry": dataclasses.asdict(self.geometry),
            "shards": [dataclasses.asdict(shard) for shard in self.shards],
        }
        return _json({"checksum": _digest(_json(values)), **values})

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> Content:
        """Raises DamagedLabels when a bit of it changed, ValueError when another version wrote it."""
        try:
            values = json.loads(content)
            checksum = values.pop("checksum")
            intact = checksum == _digest(_json(values)) and _json({"checksum": checksum, **values}) == content
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            intact = False
        if not intact:
            raise DamagedLabels(f"{name} is not what was written (its checksum differs): fetch or restore it again")
        if values.get("version") != MANIFEST_VERSION:
            raise ValueError(f"{name} has version {values.get('version')!r}, this teacherfarm reads {MANIFEST_VERSION}")
        return cls(
            manifest=Manifest.from_dict(values["labels"]),
            geometry=from_json_value(Geometry, values["geometry"], "geometry"),
            shards=from_json_value(tuple[ShardFiles, ...], values["shards"], "shards"),
        )


class LabelDirectory:
    """Paths below ``root``, and what is done to them as a whole."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.manifest_path = self.root / MANIFEST_FILE
        self.samples_path = self.root / SAMPLES_FILE

    def __str__(self) -> str:
        return os.fspath(self.root)

    def exists(self) -> bool:
        return self.manifest_path.exists()

    def create(self, manifest: Manifest, index: SampleIndex) -> None:
        """Make what is missing: an empty data set's labels. What another process made meanwhile is left alone."""
        for folder in (JOURNALS, SHARDS):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        with self.lock():
            if self.exists():
                return
            geometry = Geometry.of(
                num_samples=len(index.names), views=manifest.views, label_bytes=manifest.stored_dtype.itemsize
            )
            # Its name keeps the ending: numpy adds one to any other.
            beside = self.root / f"{secrets.token_hex(4)}{UNFINISHED_SUFFIX}.npz"
            index.save(beside)
            put_in_place(beside, self.samples_path)
            self.write(Content(manifest=manifest, geometry=geometry))

    def read(self) -> Content:
        """Raises ValueError when no labels are recorded here, DamagedLabels when the file is not what was written."""
        try:
            return Content.from_bytes(self.manifest_path.read_bytes(), os.fspath(self.manifest_path))
        except FileNotFoundError:
            raise ValueError(
                f"no recorded labels in {self}: expected {self.manifest_path}, which `teacherfarm label` and "
                "`teacherfarm distill --record DIR` write"
            ) from None

    def write(self, content: Content) -> None:
        """Replace the manifest in one step, and durably."""
        write_whole(self.manifest_path, content.to_bytes())

    def read_samples(self, manifest: Manifest) -> SampleIndex:
        """The index of samples; raises DamagedLabels where it is not the one that the labels were recorded with."""
        from teacherfarm.crops.sample_index import SampleIndex

        try:
            index = SampleIndex.load(self.samples_path)
            digest = index.digest()
        except Exception as error:  # whatever a damaged file makes numpy and zipfile raise
            raise DamagedLabels(f"{self.samples_path} cannot be read: {error}") from error
        if digest != manifest.samples:
            raise DamagedLabels(
                f"{self.samples_path} is not the index that these labels were recorded with: its digest is {digest}, "
                f"the manifest's {manifest.samples}"
            )
        return index

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Alone in making or sealing this directory, among all processes."""
        with open(self.root / LOCK_FILE, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def journals(self) -> list[Path]:
        """Journals whose writer began, by name."""
        return sorted((self.root / JOURNALS).glob(f"*{JOURNAL_SUFFIX}"))

    def new_shard(self, number: int) -> Path:
        """A name for a shard's files, without their ending, that was never used."""
        return self.root / SHARDS / f"{number:05}-{secrets.token_hex(4)}"

    def remove_leftovers(self, content: Content) -> None:
        """Remove what a killed process left, and shards that are replaced; under :meth:`lock` alone."""
        valid = {name for shard in content.shards for name in (shard.labels_file, shard.table_file)}
        for path in (self.root / SHARDS).iterdir():
            if f"{SHARDS}/{path.name}" not in valid:
                path.unlink()
        for path in self.root.glob(f"*{UNFINISHED_SUFFIX}*"):
            path.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that, whatever happens, it is the old one or the new one."""
    beside = path.with_name(f"{secrets.token_hex(4)}{UNFINISHED_SUFFIX}")
    try:
        with open(beside, "wb") as file:
            file.write(content)
        put_in_place(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def put_in_place(beside: Path, path: Path) -> None:
    """Rename a finished file, durably."""
    with open(beside, "rb") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _json(values: object) -> bytes:
    return json.dumps(values, indent=1).encode() + b"\n"


def _digest(content: bytes) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(content)
