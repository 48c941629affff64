"""The seam between the client and a wire: one transport is one session's connection. It only delivers."""

from __future__ import annotations

from typing import Protocol

from teacherfarm.protos.wire import Buffer


class Transport(Protocol):
    """One connection. Used from one event loop; never opened twice."""

    async def open(self) -> None:
        """Connect. Raises SessionLost when that fails at once; a transport may also fail only in :meth:`receive`."""
        ...

    def send(self, header: bytes, payload: Buffer = b"") -> None:
        """Queue a message without waiting; order is kept. ``payload`` must not change until it was answered."""
        ...

    async def receive(self) -> tuple[Buffer, Buffer]:
        """The next message's header and payload. Raises SessionLost once the connection is dead."""
        ...

    async def close(self) -> None:
        """Give what was sent a moment to leave, then free everything. Safe to call twice and before open."""
        ...
