"""`teacherfarm labels stats | verify | evict` on real stores, beside a store that is open."""

import asyncio
import os
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from teacherfarm import cli
from teacherfarm.label_store.lmdb_segment import segment_paths
from teacherfarm.label_store.redis_store import RedisStore
from tests.label_stores import PATIENT_S, SCOPE, lmdb_store, written
from tests.on_loop import on_loop
from tests.redis_server import RedisServer

KEYS = [bytes([n]) * 16 for n in range(100)]
RECORDS = [bytes([n]) * 20 for n in range(100)]
SCOPE = replace(SCOPE, teacher="tiny", teacher_digest="5c" * 32)
OTHER = replace(SCOPE, project="other", artifact_digest="cd" * 32, teacher_digest="6d" * 32)
SHARED = replace(SCOPE, project="", crops="BLAKE3")


@asynccontextmanager
async def filled(kind, folder):
    """A store that is open: 60 labels of project p, 30 of another, 10 shared; and its place."""
    if kind == "redis":
        with RedisServer(folder) as redis:
            store = RedisStore(redis.url, most_age_s=3600, timeout_s=PATIENT_S)
            async with _filled(store):
                yield store, redis.url
    else:
        store = lmdb_store(folder / "labels")
        async with _filled(store):
            yield store, f"lmdb:{folder / 'labels'}"


@asynccontextmanager
async def _filled(store):
    await store.start()
    for scope, rows in ((SCOPE, slice(60)), (OTHER, slice(60, 90)), (SHARED, slice(90, 100))):
        store.put(scope, KEYS[rows], RECORDS[rows])
    await written(store, 100)
    yield
    await store.close()


async def labels(*arguments):
    """Exit status and output, of a process of its own: LMDB must not be opened twice in one."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "teacherfarm.cli", "labels", *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


async def left(store):
    """How many of each scope are found."""
    rows = ((SCOPE, slice(60)), (OTHER, slice(60, 90)), (SHARED, slice(90, 100)))
    return [sum(r is not None for r in await store.get(scope, KEYS[part])) for scope, part in rows]


both = pytest.mark.parametrize("kind", ["lmdb", "redis"])


@both
@on_loop
async def test_stats(kind, tmp_path):
    async with filled(kind, tmp_path) as (_, place):
        status, out = await labels("stats", place)
        assert status == 0
        total, *lines = out.splitlines()
        assert total.startswith("100 labels, ")
        assert [line.split()[0] for line in lines] == ["60", "30", "10"]
        assert lines[0].endswith("project p, tiny abababababab, labels")
        assert "project other" in lines[1]
        assert "shared by projects" in lines[2]


@both
@on_loop
async def test_all_is_whole(kind, tmp_path):
    async with filled(kind, tmp_path) as (_, place):
        assert await labels("verify", place) == (0, "100 labels checked, none damaged\n")


@on_loop
async def test_a_flipped_bit_on_disk_is_named_and_never_used(tmp_path):
    async with filled("lmdb", tmp_path) as (store, place):
        [path] = segment_paths(store.folder)
        flip(path, RECORDS[7])
        found = await store.get(SCOPE, KEYS[:10])
        assert found == [*RECORDS[:7], None, *RECORDS[8:10]]
        assert store.stats()[0].damaged == 1
        status, out = await labels("verify", place)
        assert status == 1
        assert f"key {KEYS[7].hex()} of project p, tiny" in out
        assert "100 labels checked, 1 damaged; they read as absent, and are asked again" in out
        # Asked again, it is kept again.
        store.put(SCOPE, KEYS[7:8], RECORDS[7:8])
        await written(store, 101)
        assert await store.get(SCOPE, KEYS[:10]) == RECORDS[:10]
        assert (await labels("verify", place))[0] == 0


@on_loop
async def test_a_record_torn_in_redis_is_named_and_never_used(tmp_path):
    async with filled("redis", tmp_path) as (store, place):
        await store._client.setrange(b"tf1:" + SCOPE.id + KEYS[7], 3, b"x")
        await store._client.set(b"tf1:" + SCOPE.id + KEYS[8], RECORDS[8])
        assert await store.get(SCOPE, KEYS[:10]) == [*RECORDS[:7], None, None, RECORDS[9]]
        assert store.stats()[0].damaged == 2
        status, out = await labels("verify", place)
        assert status == 1
        assert "100 labels checked, 2 damaged" in out


@both
@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["--project", "p"], [0, 30, 10]),
        (["--shared"], [60, 30, 0]),
        (["--teacher", "cdcdcdcd"], [60, 0, 10]),
        (["--teacher", "5c5c5c5c"], [0, 30, 0]),
        (["--teacher", "5c5c5c5c", "--project", "other"], [60, 30, 10]),
        (["--all"], [0, 0, 0]),
    ],
)
@on_loop
async def test_evict(kind, conditions, expected, tmp_path):
    async with filled(kind, tmp_path) as (store, place):
        assert await labels("evict", place, *conditions) == (0, f"{100 - sum(expected)} labels taken out\n")
        if kind == "lmdb" and conditions == ["--all"]:
            store._drop_old()
        assert await left(store) == expected
        # The server goes on keeping labels.
        store.put(SCOPE, KEYS[:60], RECORDS[:60])
        await written(store, 160)
        assert (await left(store))[0] == 60


@on_loop
async def test_evict_by_age_takes_whole_files_and_the_oldest(tmp_path):
    async with filled("lmdb", tmp_path) as (store, place):
        store._begin_segment()
        store.put(OTHER, KEYS[:5], RECORDS[:5])
        await written(store, 105)
        old, new = segment_paths(store.folder)
        os.utime(old, (time.time() - 90_000,) * 2)
        assert await labels("evict", place, "--older-than", "2d") == (0, "0 labels taken out\n")
        assert await labels("evict", place, "--older-than", "1d") == (0, "100 labels taken out\n")
        assert segment_paths(store.folder) == [new]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lmdb:{}"], "which labels"),
        (["lmdb:{}", "--all", "--project", "p"], "which labels"),
        (["lmdb:{}", "--older-than", "yesterday"], "12h, 7d or 4w; got 'yesterday'"),
        (["lmdb:{}", "--teacher", "cd"], "8 first digits"),
        (["{}/nothing", "--all"], "is no label store"),
        (["lmdb:{}/nothing", "--all"], "is no label store: expected the DIR"),
        (["redis://", "--all"], "no address of Redis"),
        (["redis://127.0.0.1:1/0", "--all"], "does not answer"),
    ],
)
def test_mistakes(arguments, words, tmp_path, capsys):
    (tmp_path / "writer.lock").touch()
    assert cli.main(["labels", "evict", *(text.format(tmp_path) for text in arguments)]) != 0
    assert words in capsys.readouterr().err


def flip(path, record):
    """One bit of where a record lies in a file."""
    content = bytearray(path.read_bytes())
    places = [place for place in range(len(content)) if content.startswith(record, place)]
    assert places
    with path.open("r+b") as file:
        for place in places:
            file.seek(place + 3)
            file.write(bytes([content[place + 3] ^ 1]))
