"""Labels in Redis, shared by the gateways of a farm. Redis may go at any time: then there are no kept labels until it
is back, and nobody waits for it.

Names: ``tf1:`` + scope id + crop key; values: sealed records that expire. The hash ``tf1:scopes`` says what the ids
mean, for people. What Redis lost or evicted is asked again: nothing here is promised to be kept.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Sequence
from typing import Any
from urllib.parse import urlsplit

import redis.asyncio as redis
from redis.exceptions import RedisError

from teacherfarm.label_store.label_store import LayerStats, StoreScope, seal, unseal
from teacherfarm.label_store.write_queue import WriteQueue

log = logging.getLogger(__name__)

PREFIX = b"tf1:"
SCOPES = "tf1:scopes"
QUEUE_BYTES = 64 << 20
WRITE_BYTES = 1 << 20
WRITE_EVERY_S = 0.02
TIMEOUT_S = 0.25
CONNECT_S = 2.0
CONNECTIONS = 8
# In how many parts the patience with Redis is spent: this process standing still costs one of them at most.
PATIENCE_PARTS = 5
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
TOLD_AGAIN_S = 60.0
LOST = (RedisError, OSError, TimeoutError)


class RedisStore:
    """``url``: redis://[:PASSWORD@]HOST:PORT/DB, or rediss:// by TLS. ``timeout_s``: what takes longer is asked of the
    teacher. Raises ValueError for what is no such address.
    """

    def __init__(
        self,
        url: str,
        *,
        most_age_s: float,
        timeout_s: float = TIMEOUT_S,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self._shown = shown(url)
        self._expire_s = max(1, math.ceil(most_age_s))
        self._timeout_s = timeout_s
        self._queue = WriteQueue(queue_bytes)
        self._wake = asyncio.Event()
        self._client = make_client(url, timeout_s=timeout_s)
        self._tasks: list[asyncio.Task[None]] = []
        self._requests: set[asyncio.Future[Any]] = set()
        self._lost = asyncio.Event()
        self._why = "not connected yet"
        self._refused_s = -math.inf
        self._known: set[bytes] = set()
        self._written = self._dropped = self._damaged = 0
        self._closing = False

    def __repr__(self) -> str:
        return f"<RedisStore {self._shown}{f', {self._why}' if self._why else ''}>"

    async def start(self) -> None:
        """Connect, and go on without where that fails: it is tried again."""
        try:
            await self._connect()
        except LOST as error:
            self._lose(error)
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._write_for_ever(), name="label store writer"),
            loop.create_task(self._come_back_for_ever(), name="label store watch"),
        ]

    async def get(self, scope: StoreScope, keys: Sequence[bytes]) -> list[bytes | None]:
        """The record of each key; none at all while Redis is gone or slow."""
        if self._why:
            return [None] * len(keys)
        scope_id = scope.id
        try:
            values = await self._in_time(self._client.mget([PREFIX + scope_id + key for key in keys]))
        except LOST as error:
            self._lose(error)
            return [None] * len(keys)
        found: list[bytes | None] = []
        for key, value in zip(keys, values, strict=True):
            record = None if value is None else unseal(scope_id, key, value, scope.record_bytes)
            if record is None and value is not None:
                self._damaged += 1
                log.warning("label store: a damaged label in %s is asked again", self._shown)
            found.append(record)
        return found

    def put(self, scope: StoreScope, keys: Sequence[bytes], records: Sequence[bytes]) -> None:
        """Queue these for Redis."""
        if self._why or not self._queue.put(scope, keys, records):
            self._dropped += len(keys)
        else:
            self._wake.set()

    def stats(self) -> tuple[LayerStats, ...]:
        """This one layer; only Redis itself knows how much it keeps."""
        return (
            LayerStats(
                layer="redis",
                kept_labels=-1,
                kept_bytes=-1,
                written=self._written,
                dropped=self._dropped,
                damaged=self._damaged,
                why=f"{self._shown}: {self._why}" if self._why else "",
            ),
        )

    async def close(self) -> None:
        """Write what is queued, while Redis takes it, and hang up."""
        self._closing = True
        if self._tasks:
            writer, watch = self._tasks
            self._tasks = []
            watch.cancel()
            self._wake.set()
            await asyncio.gather(writer, watch, return_exceptions=True)
        await asyncio.gather(*self._requests, return_exceptions=True)
        await self._client.aclose(close_connection_pool=True)

    async def _in_time(self, asked: Awaitable[Any]) -> Any:
        """What Redis answers. Raises TimeoutError at once: a cancelled request may take seconds to hang up."""
        request = asyncio.ensure_future(asked)
        self._requests.add(request)
        request.add_done_callback(self._forget)
        try:
            for _ in range(PATIENCE_PARTS):
                done, _ = await asyncio.wait({request}, timeout=self._timeout_s / PATIENCE_PARTS)
                if done:
                    return request.result()
        finally:
            request.cancel()
        raise TimeoutError

    def _forget(self, request: asyncio.Future[Any]) -> None:
        self._requests.discard(request)
        if not request.cancelled():
            # Whoever asked has gone where it is not told.
            request.exception()

    async def _connect(self) -> None:
        async with asyncio.timeout(CONNECT_S):
            # Those of its last life would be found dead one by one.
            await self._client.connection_pool.disconnect(inuse_connections=False)
            await self._client.ping()
        self._known.clear()
        self._why = ""

    def _lose(self, error: BaseException) -> None:
        """From now on nobody asks Redis, until it answers again."""
        if not self._why or not self._lost.is_set():
            log.error(
                "label store: %s is gone (%s): answers go on without kept labels, and it is tried again",
                self._shown,
                _words(error),
            )
        self._why = f"gone: {_words(error)}"
        self._lost.set()

    async def _come_back_for_ever(self) -> None:
        while True:
            await self._lost.wait()
            since_s, pause_s = time.monotonic(), SHORTEST_PAUSE_S
            while self._why:
                await asyncio.sleep(pause_s)
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
                try:
                    await self._connect()
                except LOST as error:
                    self._why = f"gone: {_words(error)}"
            self._lost.clear()
            log.warning("label store: %s is back after %.0f s", self._shown, time.monotonic() - since_s)

    async def _write_for_ever(self) -> None:
        while not self._closing or len(self._queue):
            await self._wake.wait()
            # What comes meanwhile travels together.
            await asyncio.sleep(0 if self._closing else WRITE_EVERY_S)
            self._wake.clear()
            while len(self._queue):
                groups, num_labels = self._queue.take(WRITE_BYTES)
                if self._why:
                    self._dropped += num_labels
                    continue
                try:
                    async with asyncio.timeout(max(CONNECT_S, self._timeout_s)):
                        self._count(await self._pipeline(groups).execute(raise_on_error=False), num_labels)
                except LOST as error:
                    self._dropped += num_labels
                    self._lose(error)

    def _pipeline(self, groups: dict[StoreScope, list[tuple[bytes, bytes]]]) -> Any:
        pipeline = self._client.pipeline(transaction=False)
        for scope, rows in groups.items():
            # Again in each write: Redis may evict it like anything else.
            pipeline.hset(SCOPES, scope.id.hex(), scope.to_json().decode())
            for key, record in rows:
                pipeline.set(PREFIX + scope.id + key, seal(scope.id, key, record), ex=self._expire_s)
        return pipeline

    def _count(self, answers: Sequence[object], num_labels: int) -> None:
        refused = [answer for answer in answers if isinstance(answer, Exception)]
        dropped = min(num_labels, len(refused))
        self._dropped += dropped
        self._written += num_labels - dropped
        if refused and time.monotonic() - self._refused_s > TOLD_AGAIN_S:
            self._refused_s = time.monotonic()
            log.error("label store: %s refuses %d label(s): %s", self._shown, dropped, _words(refused[0]))


def make_client(url: str, *, timeout_s: float) -> Any:
    """A client with short patience and no retries of its own. ValueError for what is no address."""
    shown(url)
    try:
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            # Who asks, and who writes, has a limit of its own.
            timeout=None,
            socket_timeout=max(CONNECT_S, timeout_s),
            socket_connect_timeout=CONNECT_S,
        )
        return redis.Redis(connection_pool=pool)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{shown(url)} is no address of Redis: expected redis://HOST:PORT/0") from error


def shown(url: str) -> str:
    """An address of Redis without its password, for logs. ValueError for what is none."""
    expected = "expected redis://HOST:PORT/0 (by TLS rediss://)"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 6379
    except ValueError as error:
        raise ValueError(f"no address of Redis: {expected}") from error
    database = parts.path.strip("/") or "0"
    if parts.scheme not in ("redis", "rediss") or not host or not database.isdigit():
        raise ValueError(f"no address of Redis: {expected}")
    return f"{parts.scheme}://{host}:{port}/{database}"


def _words(error: object) -> str:
    return str(error) or type(error).__name__
