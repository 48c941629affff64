"""Labels in a real Redis: they expire, Redis may refuse them, go, hang and come back; nobody waits for it."""

import asyncio
import logging
import time

import pytest

from teacherfarm.label_store.redis_store import RedisStore, shown
from tests.label_stores import SCOPE, reached, written
from tests.on_loop import on_loop
from tests.redis_server import RedisServer

KEYS = [bytes([n]) * 16 for n in range(100)]
RECORDS = [bytes([n]) * 20 for n in range(100)]


@pytest.fixture
def redis(tmp_path):
    with RedisServer(tmp_path) as server:
        yield server


@on_loop
async def test_labels_expire(redis):
    store = RedisStore(redis.url, most_age_s=1)
    await store.start()
    store.put(SCOPE, KEYS[:1], RECORDS[:1])
    await written(store, 1)
    assert 0 < await store._client.pttl(b"tf1:" + SCOPE.id + KEYS[0]) <= 1000
    await store.close()


@on_loop
async def test_gone_it_answers_at_once_with_nothing_and_comes_back_by_itself(redis, caplog):
    caplog.set_level(logging.WARNING)
    store = RedisStore(redis.url, most_age_s=60)
    await store.start()
    store.put(SCOPE, KEYS[:1], RECORDS[:1])
    await written(store, 1)
    for end, again in ((redis.freeze, redis.thaw), (redis.kill, redis.start)):
        end()
        began_s = time.monotonic()
        # All that ask at the moment it goes wait for the time-out together, everybody later not at all.
        assert await asyncio.gather(*(store.get(SCOPE, KEYS[:3]) for _ in range(20))) == [[None] * 3] * 20
        assert time.monotonic() - began_s < 1.0
        assert at_once(store.get(SCOPE, KEYS[:3])) == [None] * 3
        store.put(SCOPE, KEYS[1:3], RECORDS[1:3])
        assert "gone" in store.stats()[0].why
        again()
        await reached(lambda: not store.stats()[0].why)
        store.put(SCOPE, KEYS[:1], RECORDS[:1])
        await reached(lambda: not len(store._queue))
        while await store.get(SCOPE, KEYS[:1]) != RECORDS[:1]:
            await asyncio.sleep(0.005)
    assert store.stats()[0].dropped == 4
    await store.close()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"] * 2


def at_once(asked):
    """What a coroutine returns that waits for nothing at all."""
    with pytest.raises(StopIteration) as returned:
        asked.send(None)
    return returned.value.value


@on_loop
async def test_a_server_that_stood_still_itself_does_not_take_redis_for_gone(redis, caplog):
    store = RedisStore(redis.url, most_age_s=60, timeout_s=0.25)
    await store.start()
    store.put(SCOPE, KEYS[:1], RECORDS[:1])
    await written(store, 1)
    # More than it has connections.
    asked = [asyncio.create_task(store.get(SCOPE, KEYS[:1])) for _ in range(20)]
    while len(store._requests) < 20:
        await asyncio.sleep(0)
    # Until some are sent and the others wait for a connection.
    for _ in range(3):
        await asyncio.sleep(0)
    time.sleep(0.5)
    assert await asyncio.gather(*asked) == [RECORDS[:1]] * 20
    assert not caplog.records
    await store.close()


@on_loop
async def test_what_a_full_redis_refuses_is_dropped_and_told_once(tmp_path, caplog):
    with RedisServer(tmp_path, "--maxmemory", "100kb", "--maxmemory-policy", "noeviction") as redis:
        store = RedisStore(redis.url, most_age_s=60)
        await store.start()
        for _ in range(3):
            store.put(SCOPE, KEYS, RECORDS)
            await reached(lambda: not len(store._queue))
        await written(store, 300)
        stats = store.stats()[0]
        assert stats.dropped > 0
        # Reading goes on.
        assert stats.why == ""
        assert caplog.text.count("refuses") == 1
        await store.close()


@pytest.mark.parametrize("url", ["redis://", "http://h:1", "redis://h:port/0", "redis:/h", "redis://h:1/zero"])
def test_what_is_no_address(url):
    with pytest.raises(ValueError, match="address of Redis"):
        RedisStore(url, most_age_s=60)


def test_a_password_is_never_shown():
    assert shown("redis://user:secret@host:7/2") == "redis://host:7/2"
    assert shown("rediss://:secret@host") == "rediss://host:6379/0"
    assert "secret" not in repr(RedisStore("redis://:secret@host:1/0", most_age_s=60))
