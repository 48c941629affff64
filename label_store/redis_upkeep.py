"""Looking after a label store in Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis
from redis.exceptions import RedisError

from teacherfarm.label_store.label_store import CHECKSUM_BYTES, SCOPE_ID_BYTES, StoreScope, unseal
from teacherfarm.label_store.redis_store import PREFIX, SCOPES, shown
from teacherfarm.label_store.store_upkeep import Chosen, Progress, ScopeSummary, Verdict, describe
from teacherfarm.protos.faults import LabelStoreFault

TIMEOUT_S = 10.0
STEP = 1000


class RedisUpkeep:
    """The labels in one of Redis's databases; whatever else is there is left alone. Raises LabelStoreFault."""

    def __init__(self, url: str) -> None:
        self._shown = shown(url)
        self._client: Any = redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
        try:
            described: Any = self._client.hgetall(SCOPES)
        except RedisError as error:
            self._client.close()
            raise LabelStoreFault(f"{self._shown} does not answer: {error}") from error
        self._scopes = {bytes.fromhex(name.decode()): StoreScope.from_json(text) for name, text in described.items()}

    def __len__(self) -> int:
        return int(self._client.dbsize())

    def disk_bytes(self) -> int:
        """What Redis uses, for everything."""
        return int(self._client.info("memory")["used_memory"])

    def summaries(self, progress: Progress) -> list[ScopeSummary]:
        """What there is, the largest first."""
        counts: dict[StoreScope | None, list[int]] = {}
        for names in self._steps(PREFIX):
            for name in names:
                scope = self._scopes.get(_scope_id(name))
                of_scope = counts.setdefault(scope, [0, 0])
                of_scope[0] += 1
                of_scope[1] += scope.record_bytes + CHECKSUM_BYTES if scope is not None else 0
            progress(len(names))
        found = [ScopeSummary(scope=scope, labels=labels, bytes=size) for scope, (labels, size) in counts.items()]
        return sorted(found, key=lambda summary: -summary.bytes)

    def verify(self, progress: Progress) -> Verdict:
        """Check every label against its checksum; those of scopes that Redis forgot cannot be used, nor checked."""
        verdict = Verdict()
        for names in self._steps(PREFIX):
            for name, value in zip(names, self._client.mget(names), strict=True):
                scope = self._scopes.get(_scope_id(name))
                if scope is None or value is None:
                    continue
                verdict.checked += 1
                key = name[len(PREFIX) + SCOPE_ID_BYTES :]
                if unseal(scope.id, key, value, scope.record_bytes) is None:
                    verdict.damaged.append(f"key {key.hex()} of {describe(scope)}")
            progress(len(names))
        return verdict

    def evict(self, chosen: Chosen | None, older_than_s: float, progress: Progress) -> int:
        """Take labels out. Age is Redis's own business: ValueError."""
        if older_than_s:
            raise ValueError("labels in Redis expire by themselves: serve --store-max-days says when")
        removed = 0
        prefixes = (
            [PREFIX] if chosen is None else [PREFIX + one for one, scope in self._scopes.items() if chosen(scope)]
        )
        for prefix in prefixes:
            for names in self._steps(prefix):
                removed += int(self._client.unlink(*names))
                progress(len(names))
        return removed

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def _steps(self, prefix: bytes) -> Iterator[list[Any]]:
        pattern = b"".join(b"\\" + bytes([byte]) if byte in b"*?[]^-\\" else bytes([byte]) for byte in prefix) + b"*"
        cursor = 0
        while True:
            try:
                cursor, names = self._client.scan(cursor, match=pattern, count=STEP)
            except RedisError as error:
                raise LabelStoreFault(f"{self._shown} stopped answering: {error}") from error
            # The hash of scopes is one of those that begin like this.
            if names := [name for name in names if len(name) > len(PREFIX) + SCOPE_ID_BYTES]:
                yield names
            if not cursor:
                return


def _scope_id(name: bytes) -> bytes:
    return name[len(PREFIX) : len(PREFIX) + SCOPE_ID_BYTES]
