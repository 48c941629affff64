"""What every label store promises, whatever it keeps labels in."""

import asyncio
from dataclasses import replace

import pytest

from tests.label_stores import KINDS, SCOPE, running_store, written
from tests.on_loop import on_loop

every_store = pytest.mark.parametrize("kind", KINDS)

KEYS = [bytes([n]) * 16 for n in range(200)]
RECORDS = [bytes([n]) * 20 for n in range(200)]


@every_store
@on_loop
async def test_what_was_put_is_found_and_nothing_else(kind, tmp_path):
    async with running_store(kind, tmp_path) as store:
        assert await store.get(SCOPE, KEYS[:3]) == [None] * 3
        store.put(SCOPE, KEYS[:100], RECORDS[:100])
        await written(store, 100)
        assert await store.get(SCOPE, KEYS[90:110]) == [*RECORDS[90:100], *[None] * 10]
        assert [(layer.written, layer.dropped, layer.damaged, layer.why) for layer in store.stats()] == [
            (100, 0, 0, "")
        ] * len(store.stats())


@every_store
@on_loop
async def test_the_last_record_of_a_key_counts(kind, tmp_path):
    async with running_store(kind, tmp_path) as store:
        store.put(SCOPE, KEYS[:2], RECORDS[:2])
        await written(store, 2)
        store.put(SCOPE, [KEYS[0], KEYS[0]], [RECORDS[5], RECORDS[6]])
        await written(store, 4)
        assert await store.get(SCOPE, KEYS[:2]) == [RECORDS[6], RECORDS[1]]


@every_store
@pytest.mark.parametrize(
    "other", [{"project": "q"}, {"project": ""}, {"artifact_digest": "cd" * 32}, {"record": ("x",)}, {"crops": "jpeg"}]
)
@on_loop
async def test_scopes_never_meet(kind, other, tmp_path):
    async with running_store(kind, tmp_path) as store:
        store.put(SCOPE, KEYS[:1], RECORDS[:1])
        await written(store, 1)
        assert await store.get(replace(SCOPE, **other), KEYS[:1]) == [None]
        assert await store.get(replace(SCOPE, teacher="another name"), KEYS[:1]) == RECORDS[:1]


@every_store
@on_loop
async def test_keys_of_any_bytes_and_records_of_several_sizes(kind, tmp_path):
    wide = replace(SCOPE, record=("embedding",), record_bytes=5000, crops="BLAKE3")
    keys = [b"\x00" * 32, b"*" * 32, b"[a-z]?\\" + b"\xff" * 25]
    async with running_store(kind, tmp_path) as store:
        store.put(wide, keys, [bytes([n]) * 5000 for n in range(3)])
        store.put(SCOPE, KEYS, RECORDS)
        await written(store, 203)
        assert await store.get(wide, keys) == [bytes([n]) * 5000 for n in range(3)]
        assert await store.get(SCOPE, KEYS) == RECORDS


@every_store
@on_loop
async def test_many_may_ask_at_once(kind, tmp_path):
    async with running_store(kind, tmp_path) as store:
        store.put(SCOPE, KEYS, RECORDS)
        await written(store, 200)
        answers = await asyncio.gather(*(store.get(SCOPE, KEYS[n : n + 6]) for n in range(150)))
        assert answers == [RECORDS[n : n + 6] for n in range(150)]


@every_store
@on_loop
async def test_closing_writes_what_is_queued(kind, tmp_path):
    async with running_store(kind, tmp_path) as store:
        store.put(SCOPE, KEYS, RECORDS)
        await store.close()
        assert [(layer.written, layer.dropped) for layer in store.stats()] == [(200, 0)] * len(store.stats())
