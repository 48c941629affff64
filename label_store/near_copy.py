"""Recorded labels in other places: copied near before they are read, and published, by whatever fsspec reaches.

Only sealed shards travel. A shard never changes under its name, so that what is there need not be copied again; the
manifest is read first and written last. Every block is checked where it arrives.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from teacherfarm.label_store.label_directory import (
    MANIFEST_FILE,
    SAMPLES_FILE,
    SHARDS,
    UNFINISHED_SUFFIX,
    Content,
    LabelDirectory,
    ShardFiles,
    put_in_place,
    write_whole,
)
from teacherfarm.label_store.shards import Shard, read_table
from teacherfarm.protos.faults import BadRecording, DamagedLabels
from teacherfarm.protos.teacher_card import CARD_FILE

_CHUNK_BYTES = 8 << 20

log = logging.getLogger(__name__)

Progress = Callable[[int], object]
"""Told how many more bytes were copied."""


def local_folder(location: str) -> Path | None:
    """The folder that a path or a file:// URL means; None for any other URL."""
    if "://" not in location:
        return Path(location)
    return Path(location.removeprefix("file://")) if location.startswith("file://") else None


def bring_near(location: str, *, near: str | None = None, progress: Progress | None = None) -> Path:
    """The folder where the labels of ``location`` can be mapped: itself, or a copy in ``near``.

    Processes that ask at once share one copy: the first one copies. A copy that was interrupted goes on.
    """
    folder = local_folder(location)
    if folder is not None:
        return folder
    location = location.rstrip("/")
    root = Path(near) if near is not None else default_near(location)
    (root / SHARDS).mkdir(parents=True, exist_ok=True)
    files = _file_system(location)
    with open(root / "copying.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        manifest = _fetch(files, location, MANIFEST_FILE)
        content = Content.from_bytes(manifest, f"{location}/{MANIFEST_FILE}")
        directory = LabelDirectory(root)
        for shard in content.shards:
            _bring_shard(files, location, root, shard, content, progress)
        if not _has_samples(directory, content):
            write_whole(directory.samples_path, _fetch(files, location, SAMPLES_FILE))
            directory.read_samples(content.manifest)
        if not directory.exists() or directory.manifest_path.read_bytes() != manifest:
            write_whole(directory.manifest_path, manifest)
    return root


def bytes_to_copy(location: str) -> int:
    """What copying a place's labels near would take, at most; 0 for a folder."""
    if local_folder(location) is not None:
        return 0
    manifest = _fetch(_file_system(location), location.rstrip("/"), MANIFEST_FILE)
    return shard_bytes(Content.from_bytes(manifest, f"{location}/{MANIFEST_FILE}"))


def shard_bytes(content: Content) -> int:
    """Bytes of all shards' labels."""
    return sum(content.geometry.shard_size(shard.number) for shard in content.shards) * content.geometry.label_bytes


def publish(root: str | Path, location: str, *, progress: Progress | None = None) -> None:
    """Copy sealed labels to ``location``; what is there already is not copied again. Readers see all or nothing of it.

    Raises BadRecording when the place cannot be written.
    """
    directory = LabelDirectory(root)
    content = directory.read()
    directory.read_samples(content.manifest)
    location = location.rstrip("/")
    files = _file_system(location)
    try:
        files.makedirs(f"{location}/{SHARDS}", exist_ok=True)
        for shard in content.shards:
            for name in (shard.labels_file, shard.table_file):
                _send(files, directory.root / name, f"{location}/{name}", progress, again=False)
        if (directory.root / CARD_FILE).exists():
            _send(files, directory.root / CARD_FILE, f"{location}/{CARD_FILE}", None, again=True)
        _send(files, directory.samples_path, f"{location}/{SAMPLES_FILE}", None, again=True)
        folder = local_folder(location)
        if folder is not None:
            write_whole(folder / MANIFEST_FILE, content.to_bytes())
        else:  # where one object is put at once
            files.pipe_file(f"{location}/{MANIFEST_FILE}", content.to_bytes())
    except Exception as error:  # whatever this file system raises
        raise BadRecording(f"{location} cannot be written: {error}") from error


def default_near(location: str) -> Path:
    """Below the user's cache, by the URL."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "teacherfarm" / "labels" / hashlib.sha256(location.encode()).hexdigest()[:16]


def _file_system(location: str) -> Any:
    import fsspec  # type: ignore[import-untyped]

    try:
        return fsspec.core.url_to_fs(location)[0]
    except (ImportError, ValueError) as error:
        raise BadRecording(f"{location} cannot be reached: {error}") from error


def _fetch(files: Any, location: str, name: str) -> bytes:
    try:
        content: bytes = files.cat_file(f"{location}/{name}")
    except FileNotFoundError:
        raise ValueError(f"no recorded labels at {location}: expected {location}/{name}") from None
    except Exception as error:  # whatever this file system raises
        raise BadRecording(f"{location}/{name} cannot be fetched: {error}") from error
    return content


def _has_samples(directory: LabelDirectory, content: Content) -> bool:
    try:
        directory.read_samples(content.manifest)
    except DamagedLabels:
        return False
    return True


def _bring_shard(
    files: Any, location: str, root: Path, shard: ShardFiles, content: Content, progress: Progress | None
) -> None:
    try:
        read_table(root, shard, content.geometry)
    except ValueError:
        write_whole(root / shard.table_file, _fetch(files, location, shard.table_file))
    near = root / shard.labels_file
    size = content.geometry.shard_size(shard.number) * content.geometry.label_bytes
    if near.exists() and near.stat().st_size == size:
        return
    unfinished = near.with_name(near.name + UNFINISHED_SUFFIX)
    for attempt in ("first", "second"):
        _copy_file(files, f"{location}/{shard.labels_file}", unfinished, size, progress)
        damaged = _damaged_blocks(root, shard, unfinished, content)
        if not damaged:
            break
        log.warning("%s/%s: %d blocks arrived damaged, at the %s try", location, shard.labels_file, damaged, attempt)
        if attempt == "first":
            unfinished.unlink()
    put_in_place(unfinished, near)


def _damaged_blocks(root: Path, shard: ShardFiles, labels: Path, content: Content) -> int:
    import dataclasses

    there = dataclasses.replace(shard, labels_file=f"{SHARDS}/{labels.name}")
    checked = Shard(root, there, content.geometry, lambda file, number, block: None)
    checked.check_blocks(0, content.geometry.shard_blocks(shard.number))
    return len(checked.damaged_blocks())


def _copy_file(files: Any, remote: str, near: Path, size: int, progress: Progress | None) -> None:
    """Copy, or go on copying where the place can be read from the middle."""
    done = near.stat().st_size if near.exists() else 0
    try:
        if 0 < done < size:
            try:
                _append_from(files, remote, near, done, progress)
                return
            except Exception as error:  # no ranges there; each file system says it in its own way
                log.info("%s cannot be read from the middle (%s): copied from its start", remote, error)
        if done != size:
            files.get_file(remote, os.fspath(near), callback=_callback(progress))
    except Exception as error:
        raise BadRecording(f"{remote} cannot be fetched: {error}") from error


def _append_from(files: Any, remote: str, near: Path, done: int, progress: Progress | None) -> None:
    with files.open(remote, "rb") as source, open(near, "ab") as target:
        source.seek(done)
        while chunk := source.read(_CHUNK_BYTES):
            target.write(chunk)
            if progress is not None:
                progress(len(chunk))


def _send(files: Any, path: Path, remote: str, progress: Progress | None, *, again: bool) -> None:
    size = path.stat().st_size
    if not again and files.exists(remote) and files.size(remote) == size:
        return
    files.put_file(os.fspath(path), remote, callback=_callback(progress))


def _callback(progress: Progress | None) -> Any:
    """fsspec's way of telling how far it is."""
    from fsspec.callbacks import Callback, NoOpCallback  # type: ignore[import-untyped]

    if progress is None:
        return NoOpCallback()
    told = 0

    def tell(_: int, value: int, **__: object) -> None:
        nonlocal told
        progress(value - told)
        told = value

    return Callback(hooks={"progress": tell})
