"""gRPC's end at the server: StreamLabels as hand-framed byte messages by generic handlers. Only delivers.

A protobuf ``bytes`` field around the pixels would cost 30 to 70 % of the speed; wire.py has the framing. Each stream
has a reader task and a writer, so that neither direction waits for the other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc

from teacherfarm.protos.faults import MalformedMessage, Overloaded
from teacherfarm.protos.messages import SliceFault
from teacherfarm.protos.wire import (
    HEADER_BYTES,
    MESSAGE_OVERHEAD_BYTES,
    Buffer,
    encode_header,
    join,
    split,
)
from teacherfarm.teacher_server.frontends.conversation import Conversation, Send
from teacherfarm.teacher_server.frontends.tls import ServerTls

log = logging.getLogger(__name__)

SERVICE = "teacherfarm.v1.TeacherFarm"
HELLO_WITHIN_S = 15.0
HANDSHAKE_WITHIN_S = 15.0
"""For what comes before Hello: the handshakes of TLS and HTTP/2."""
SWEEP_INTERVAL_S = 5.0
STRANGER_RETRY_AFTER_S = 1.0
CLOSE_GRACE_S = 2.0
SEND_HIGH_WATER = 4096
"""Well above the messages of any window: credit is the bound, and only a peer that takes nothing reaches this."""
Outgoing = asyncio.Queue[tuple[bytes, Buffer] | None]
"""Headers and payloads, joined only when they leave: what several streams wait to be sent may be one copy."""


class GrpcFrontend(grpc.GenericRpcHandler):
    """Serves conversations on ``address`` ("127.0.0.1:0" binds a free port), which is real after :meth:`start`.

    ``most_strangers``: streams that have not said Hello. ``idle_session_s``: how long a student may say nothing, not
    even a ping. ``tls``: None serves in the clear.
    """

    def __init__(
        self,
        address: str,
        converse: Callable[[Send], Conversation],
        *,
        payload_bytes: int,
        most_sessions: int,
        most_strangers: int = 128,
        idle_session_s: float = 60.0,
        tls: ServerTls | None = None,
    ) -> None:
        self.address = address
        self._converse = converse
        self._payload_bytes = payload_bytes
        self._most_sessions = most_sessions
        self._most_strangers = most_strangers
        self._idle_session_s = idle_session_s
        self._tls = tls
        self._sweeper: asyncio.Task[None] | None = None
        self._outgoing: dict[Conversation, Outgoing] = {}
        self._server: grpc.aio.Server | None = None

    def __repr__(self) -> str:
        return f"<GrpcFrontend {self.url}, {len(self._outgoing)} stream(s)>"

    @property
    def url(self) -> str:
        """What students may be given."""
        return f"{'grpc' if self._tls is None else 'grpcs'}://{self.address}"

    async def start(self) -> None:
        """Bind; raises OSError with the address when it is taken."""
        message_bytes = self._payload_bytes + HEADER_BYTES + MESSAGE_OVERHEAD_BYTES
        server = self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", message_bytes),
                ("grpc.max_send_message_length", -1),
                # Otherwise two servers bind one port without an error and share its connections.
                ("grpc.so_reuseport", 0),
                # Students' keepalive pings are welcome while a stream is quiet.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                # Finds students that vanished without closing their connection.
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 30_000),
                # Connections that never come to a stream, or keep none.
                ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_WITHIN_S * 1000)),
                ("grpc.max_connection_idle_ms", int(self._idle_session_s * 1000)),
            ],
            maximum_concurrent_rpcs=self._most_sessions,
        )
        server.add_generic_rpc_handlers((self,))
        try:
            if self._tls is None:
                port = server.add_insecure_port(self.address)
            else:
                port = server.add_secure_port(self.address, self._tls.credentials())
        except RuntimeError as error:
            raise OSError(
                f"cannot listen for gRPC on {self.address}: the address is taken or not this machine's"
            ) from error
        await server.start()
        self.address = f"{self.address.rpartition(':')[0]}:{port}"
        self._sweeper = asyncio.create_task(self._sweep(), name="grpc sweeper")

    def reload(self) -> None:
        """Read the certificate again, for handshakes from now on. Raises ValueError and keeps the former one."""
        if self._tls is not None:
            self._tls.reload()
            log.info("read the certificate of %s again: %r", self.url, self._tls)

    def go_away(self) -> None:
        """Tell every student that the server drains."""
        for conversation in list(self._outgoing):
            conversation.go_away()

    def check_stay(self) -> None:
        """The projects changed: end the sessions that would not be opened any more."""
        for conversation, outgoing in list(self._outgoing.items()):
            conversation.check_stay()
            if conversation.finished:
                # The writer ends the stream once it has sent why.
                outgoing.put_nowait(None)

    async def close(self) -> None:
        """Close every session and the port; what was sent gets a moment to leave."""
        if self._server is None:
            return
        server, self._server = self._server, None
        if self._sweeper is not None:
            self._sweeper.cancel()
        for outgoing in self._outgoing.values():
            outgoing.put_nowait(None)
        await server.stop(CLOSE_GRACE_S)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a method, bytes in and bytes out."""
        match handler_call_details.method.removeprefix(f"/{SERVICE}/"):
            case "StreamLabels":
                return grpc.stream_stream_rpc_method_handler(self._stream_labels)
            case "ListTeachers" | "GetTeacher":
                return grpc.unary_unary_rpc_method_handler(self._answer_once)
            case _:
                return None

    async def _stream_labels(self, _: Any, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        outgoing: Outgoing = asyncio.Queue()
        strangers = sum(not conversation.greeted for conversation in self._outgoing)
        if strangers >= self._most_strangers:
            fault = Overloaded(
                f"{strangers} others have not said Hello yet, all that this server waits for",
                retry_after_s=STRANGER_RETRY_AFTER_S,
            )
            await context.write(join(encode_header(SliceFault(fault=fault)), b""))
            return

        def send(header: bytes, payload: Buffer) -> None:
            if outgoing.qsize() < SEND_HIGH_WATER:
                outgoing.put_nowait((header, payload))
            else:
                # The peer takes nothing. Its session ends now; its stream, once it has taken what is on the way.
                conversation.close()
                while not outgoing.empty():
                    outgoing.get_nowait()
                reader.cancel()

        conversation = self._converse(send)
        self._outgoing[conversation] = outgoing
        reader = asyncio.create_task(_read(context, conversation, outgoing), name="grpc reader")
        try:
            while (message := await outgoing.get()) is not None:
                await context.write(join(*message))
        finally:
            reader.cancel()
            conversation.close()
            del self._outgoing[conversation]

    async def _sweep(self) -> None:
        """End the sessions of students that say nothing: they ping while they live."""
        while True:
            await asyncio.sleep(min(SWEEP_INTERVAL_S, self._idle_session_s / 4))
            now_s = time.monotonic()
            for conversation, outgoing in list(self._outgoing.items()):
                if conversation.greeted and now_s - conversation.last_heard_s > self._idle_session_s:
                    log.info("%r ends: silent for %g s", conversation, self._idle_session_s)
                    conversation.close()
                    outgoing.put_nowait(None)

    async def _answer_once(self, message: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        answers: list[bytes] = []
        conversation = self._converse(lambda header, payload: answers.append(join(header, payload)))
        _feed(conversation, message)
        conversation.close()
        return answers[0] if answers else b""


async def _read(
    context: grpc.aio.ServicerContext[bytes, bytes],
    conversation: Conversation,
    outgoing: Outgoing,
) -> None:
    try:
        async with asyncio.timeout(HELLO_WITHIN_S):
            while not conversation.greeted and not conversation.finished:
                message = await _next_message(context)
                if message is None:
                    return
                _feed(conversation, message)
        # A refused student may wait for the end of the stream before it says anything more.
        while not conversation.finished and (message := await _next_message(context)) is not None:
            _feed(conversation, message)
    except TimeoutError:
        log.info("a stream ended: no Hello within %g s", HELLO_WITHIN_S)
    except grpc.aio.UsageError as error:
        log.info("a stream ended: %s", error)
    finally:
        # The writer ends once it has sent what was there before.
        outgoing.put_nowait(None)


async def _next_message(context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes | None:
    message: Any = await context.read()
    return None if message is grpc.aio.EOF else message


def _feed(conversation: Conversation, message: bytes) -> None:
    try:
        header, payload = split(message)
    except MalformedMessage as fault:
        conversation.refuse(fault)
    else:
        conversation.receive(header, payload)
