"""gRPC's end at the student: one bidirectional stream of hand-framed byte messages, one session. Only delivers."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import grpc

from teacherfarm.protos.faults import HandshakeFailed, SessionLost
from teacherfarm.protos.wire import (
    HEADER_BYTES,
    MESSAGE_OVERHEAD_BYTES,
    Buffer,
    join,
    split,
)
from teacherfarm.student.settings import TlsFiles
from teacherfarm.student.transports.tls import channel_credentials, speaks_tls, why_no_handshake

# Set by teacherfarm/__init__.py, unless grpc was there before it or the environment asks for the handlers.
_FORK_HANDLERS_OFF = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower() in ("0", "false", "no", "off")

METHOD = "/teacherfarm.v1.TeacherFarm/StreamLabels"
KEEPALIVE_S = 30.0


class GrpcTransport:
    """A session over one HTTP/2 channel. ``payload_bytes``: most bytes accepted in one payload. ``tls``: None is in the
    clear.
    """

    def __init__(self, place: str, *, payload_bytes: int, close_s: float, tls: TlsFiles | None = None) -> None:
        self._place = place
        self._tls = tls
        self._url = f"{'grpc' if tls is None else 'grpcs'}://{place}"
        self._heard = False
        self._message_bytes = payload_bytes + HEADER_BYTES + MESSAGE_OVERHEAD_BYTES
        self._close_s = close_s
        self._channel: grpc.aio.Channel | None = None
        self._stream: grpc.aio.StreamStreamCall[bytes, bytes] | None = None
        self._outgoing: asyncio.Queue[tuple[bytes, Buffer] | None] = asyncio.Queue()
        self._writer: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<GrpcTransport {self._url} {'open' if self._stream else 'closed'}>"

    async def open(self) -> None:
        require_fork_safety()
        options = [
            ("grpc.max_receive_message_length", self._message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1000)),
            ("grpc.keepalive_timeout_ms", int(KEEPALIVE_S * 1000)),
            # One channel is one session: no other session's broken connection may be taken over.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
        ]
        if self._tls is None:
            self._channel = grpc.aio.insecure_channel(self._place, options=options)
        else:
            self._channel = grpc.aio.secure_channel(self._place, channel_credentials(self._tls), options=options)
        self._stream = self._channel.stream_stream(METHOD)()
        self._writer = asyncio.create_task(self._write(self._stream), name="grpc writer")

    def send(self, header: bytes, payload: Buffer = b"") -> None:
        self._outgoing.put_nowait((header, payload))

    async def receive(self) -> tuple[Buffer, Buffer]:
        if self._stream is None:
            raise SessionLost(f"{self._url}: closed")
        try:
            message: Any = await self._stream.read()
        except grpc.aio.AioRpcError as error:
            if not self._heard and (why := await self._why_no_handshake(error.details() or "")):
                raise HandshakeFailed(f"{self._url}: {why}") from error
            raise SessionLost(f"{self._url}: {error.code().name.lower()}: {error.details()}") from error
        except grpc.aio.UsageError as error:
            raise SessionLost(f"{self._url}: {error}") from error
        if message is grpc.aio.EOF:
            raise SessionLost(f"{self._url}: the server ended the stream")
        self._heard = True
        return split(message)

    async def close(self) -> None:
        writer, self._writer = self._writer, None
        stream, self._stream = self._stream, None
        channel, self._channel = self._channel, None
        if writer is not None and stream is not None:
            self._outgoing.put_nowait(None)
            # grpc tells of what ends after the loop to another loop, which has an error then: so let the server end it.
            ended = asyncio.ensure_future(_end(writer, stream))
            await asyncio.wait({ended}, timeout=self._close_s)
            ended.cancel()
            writer.cancel()
        if stream is not None:
            stream.cancel()
        if channel is not None:
            await channel.close()

    async def _why_no_handshake(self, details: str) -> str | None:
        if self._tls is not None:
            return await why_no_handshake(self._place, self._tls)
        # What a server that speaks TLS does to somebody who does not.
        if "Socket closed" in details and await speaks_tls(self._place):
            return "the farm speaks TLS: use grpcs://, with ?ca=FILE where its authority is no public one"
        return None

    async def _write(self, stream: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        try:
            while (message := await self._outgoing.get()) is not None:
                await stream.write(join(*message))
            await stream.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The reader sees the same end of the stream and reports it.
            return


async def _end(writer: asyncio.Task[None], stream: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
    await asyncio.wait({writer})
    await stream.code()


def require_fork_safety() -> None:
    """Raise RuntimeError where grpc's fork handlers are on: imported before teacherfarm, or asked for."""
    if not _FORK_HANDLERS_OFF:
        raise RuntimeError(
            "grpc's fork handlers are on: DataLoader workers forked while a stream is open would crash. Set "
            "GRPC_ENABLE_FORK_SUPPORT=0 in the environment, or import teacherfarm before grpc, or use a zmq:// address"
        )
