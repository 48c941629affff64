"""Whose slice by reference is cut next: only so many at once, and between projects by weight alone, as teachers are
shared. Knows no images.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol


class Tenant(Protocol):
    """A project; compared by identity."""

    @property
    def weight(self) -> float: ...


class CuttingTurns:
    """``most``: turns at once, of all tenants. For one event loop."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: dict[Tenant, deque[tuple[asyncio.Future[None], int]]] = {}
        self._clocks: dict[Tenant, float] = {}
        self._now = 0.0

    def __repr__(self) -> str:
        return f"<CuttingTurns {self._free} free, {sum(map(len, self._waiting.values()))} slice(s) waiting>"

    @asynccontextmanager
    async def turn(self, tenant: Tenant, num_crops: int) -> AsyncIterator[None]:
        """Wait for a turn, and hold it. Cancelled meanwhile, it goes to the next."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append((granted, num_crops))
        # Who was away saves nothing up.
        self._clocks[tenant] = max(self._clocks.get(tenant, 0.0), self._now)
        self._grant()
        try:
            await granted
            yield
        finally:
            if granted.done() and not granted.cancelled():
                self._free += 1
            self._grant()

    def _grant(self) -> None:
        while self._free and self._waiting:
            tenant = min(self._waiting, key=self._clocks.__getitem__)
            queue = self._waiting[tenant]
            granted, num_crops = queue.popleft()
            if not queue:
                del self._waiting[tenant]
            if granted.cancelled():
                continue
            self._free -= 1
            self._now = self._clocks[tenant]
            self._clocks[tenant] += num_crops / tenant.weight
            granted.set_result(None)
        # Those that nobody waits for any more matter only while they are ahead.
        for tenant in [one for one, clock in self._clocks.items() if one not in self._waiting and clock <= self._now]:
            del self._clocks[tenant]
