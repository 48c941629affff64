"""Every kind of label store, the real ones: memory, LMDB on this disk, a Redis server of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from teacherfarm.label_store.label_store import LabelStore, StoreScope
from teacherfarm.label_store.lmdb_store import LmdbStore
from teacherfarm.label_store.memory_store import MemoryStore
from teacherfarm.label_store.read_through import ReadThrough
from teacherfarm.label_store.redis_store import RedisStore
from tests.redis_server import RedisServer

KINDS = ("memory", "lmdb", "redis", "memory over lmdb", "memory over redis")
MEMORY_BYTES = 1 << 20
# What a store finds is tested here, not how soon: the machine may be busy.
PATIENT_S = 20.0
SCOPE = StoreScope(project="p", artifact_digest="ab" * 32, record=("labels",), record_bytes=20, crops="raw")


@asynccontextmanager
async def running_store(kind: str, folder: Path) -> AsyncIterator[LabelStore]:
    """A store of one kind, started, with nothing in it."""
    over = kind.startswith("memory over")
    if kind.endswith("redis"):
        with RedisServer(folder) as redis:
            async with _started(RedisStore(redis.url, most_age_s=3600, timeout_s=PATIENT_S), over) as store:
                yield store
        return
    below = MemoryStore(MEMORY_BYTES) if kind == "memory" else lmdb_store(folder / "labels")
    async with _started(below, over) as store:
        yield store


def lmdb_store(folder: Path, **options: float) -> LmdbStore:
    """One that commits at once."""
    values = {"most_bytes": 64 << 20, "most_age_s": 3600.0, "commit_every_s": 0.001} | options
    return LmdbStore(folder, **values)


async def written(store: LabelStore, num_labels: int) -> None:
    """Wait until every layer has kept so many, or lost them."""
    await reached(lambda: all(layer.written + layer.dropped >= num_labels for layer in store.stats()))


async def reached(condition: Callable[[], object]) -> None:
    """Wait for another thread or process; the test's own time bounds it."""
    while not condition():
        await asyncio.sleep(0.005)


@asynccontextmanager
async def _started(below: LabelStore, over: bool) -> AsyncIterator[LabelStore]:
    store = ReadThrough(MemoryStore(MEMORY_BYTES), below) if over else below
    await store.start()
    try:
        yield store
    finally:
        await store.close()
