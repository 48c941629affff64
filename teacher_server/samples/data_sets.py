"""The data sets that a server cuts crops from: indexed at its start, and opened by name for sessions by reference."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.crops.sample_index import SampleIndex, index_dataset
from teacherfarm.crops.sample_readers import open_samples
from teacherfarm.protos.crop import CropFormat
from teacherfarm.protos.faults import (
    BadDataSet,
    BadReference,
    GoingAway,
    NotReady,
    UnknownDataSet,
    WrongCropSize,
    WrongNumberType,
)
from teacherfarm.protos.messages import SampleView
from teacherfarm.teacher_server.samples.cutting_turns import CuttingTurns, Tenant
from teacherfarm.teacher_server.samples.referenced_crops import CropCutter
from teacherfarm.teacher_server.samples.served_samples import ServedSamples

log = logging.getLogger(__name__)

PROGRESS_S = 10.0
NOT_READY_S = 1.0


class DataSets:
    """``places``: each data set's path by name. ``cache``: a folder for indexes, so that a restart reads only what
    changed. ``threads``: images decoded side by side, of all sessions.
    """

    def __init__(self, places: Mapping[str, str] | None = None, *, cache: Path = Path(), threads: int = 1) -> None:
        self._places = dict(places or {})
        self._cache = cache
        self._threads = threads
        self._open: dict[str, ServedSamples] = {}
        self._closed = False
        self._turns = CuttingTurns(2 * threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="cut", initializer=_one_thread_each)

    def __repr__(self) -> str:
        return f"<DataSets {', '.join(map(repr, self._open.values())) or 'none open'}>"

    def __len__(self) -> int:
        return len(self._places)

    async def start(self) -> None:
        """Index what changed since the last start. Raises BadDataSet."""
        for name, place in self._places.items():
            self._open[name] = await asyncio.get_running_loop().run_in_executor(None, self._index, name, place)

    def close(self) -> None:
        """Cut nothing more, and index nothing more."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def cutter(self, view: SampleView, crop_format: CropFormat, tenant: Tenant) -> CropCutter:
        """What cuts the crops of a session of the project ``tenant``.

        Raises UnknownDataSet, NotReady while it is indexed, or what else is wrong.
        """
        samples = self._open.get(view.dataset)
        if samples is None:
            if view.dataset in self._places:
                raise NotReady(f"data set {view.dataset!r} is still being indexed", retry_after_s=NOT_READY_S)
            known = f"it has: {', '.join(self._places)}" if self._places else "it has none"
            raise UnknownDataSet(
                f"this server has no data set {view.dataset!r} to cut crops from ({known}): start it with --dataset "
                f"{view.dataset or 'NAME'}=PATH, or send pixels"
            )
        if crop_format.number_type != "uint8" or crop_format.channels != 3:
            raise WrongNumberType(f"crops by reference are uint8 RGB, this teacher takes {crop_format.describe()}")
        rendering = view.rendering
        if (rendering.height, rendering.width) != (crop_format.height, crop_format.width):
            raise WrongCropSize(
                f"this teacher takes {crop_format.describe()}, crops were to be cut at {rendering.height} x "
                f"{rendering.width}"
            )
        if rendering.interpolation == "area" and not rendering.antialias:
            raise BadReference("interpolation 'area' always averages: ask for it with antialias")
        return CropCutter(samples, rendering, _plan(view.plan), self._pool, self._turns, tenant)

    def _index(self, name: str, place: str) -> ServedSamples:
        import xxhash

        started_s = told_s = time.monotonic()
        reader = open_samples(place)
        file = self._cache / f"{xxhash.xxh3_64_hexdigest(f'{name} {Path(place).absolute()}'.encode())}.npz"
        try:
            known = SampleIndex.load(file)
        except (OSError, BadDataSet):
            known = None
        done = 0

        def progress(count: int) -> None:
            nonlocal done, told_s
            done += count
            if self._closed:
                raise GoingAway(f"data set {name!r} was not indexed: the server ends")
            if time.monotonic() - told_s > PROGRESS_S:
                told_s = time.monotonic()
                log.info("data set %s: indexed %d of %d samples", name, done, len(reader))

        index = index_dataset(reader, progress=progress, known=known)
        log.info(
            "data set %s: %d samples of %s, %d unreadable, indexed in %.1f s",
            name,
            len(index),
            reader.where,
            len(index.unreadable()),
            time.monotonic() - started_s,
        )
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            index.save(file)
        except OSError as error:
            log.warning(
                "data set %s: its index cannot be kept in %s (%s); the next start reads it all again", name, file, error
            )
        return ServedSamples(name, reader, index)


def _plan(text: str) -> CropPlan | None:
    if not text:
        return None
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"a crop plan is an object, got {type(values).__name__}")
        return CropPlan.from_dict(values)
    except (ValueError, RecursionError, OverflowError) as error:
        raise BadReference(f"Hello's crop plan cannot be used: {error}") from error


def _one_thread_each() -> None:
    """Threads that cut are the parallelism: OpenCV's own would only get in each other's way."""
    import cv2

    cv2.setNumThreads(0)
