"""ZeroMQ's end at the student: one DEALER socket, one session. Only delivers.

Automatic reconnection is off: a socket that reconnects by itself would deliver slices before Hello. A dead peer is
found by the socket's monitor (at once where the kernel tells) and by heartbeats (where nothing tells).
"""

from __future__ import annotations

import asyncio
from collections import deque

import zmq
from zmq.utils.monitor import parse_monitor_message

from teacherfarm.protos.faults import HandshakeFailed, SessionLost
from teacherfarm.protos.local_link import stop_pacing
from teacherfarm.protos.read_turns import ReadTurns
from teacherfarm.protos.wire import Buffer
from teacherfarm.student.settings import CurveKeys
from teacherfarm.student.transports.curve import BOX_BYTES, protect, why_no_handshake

HEARTBEAT_INTERVAL_S = 5.0
HEARTBEAT_TIMEOUT_S = 15.0
"""Short time-outs with large messages on slow links cut sessions that are alive; not below 10 s."""
# As plain numbers: arithmetic with pyzmq's flag classes takes longer than sending a frame.
NOBLOCK = int(zmq.NOBLOCK)
MORE_FOLLOWS = int(zmq.NOBLOCK | zmq.SNDMORE)
READABLE = int(zmq.POLLIN)
DEAD = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
DEAD |= zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH


class ZmqTransport:
    """A session over ``tcp://place``. ``payload_bytes``: most bytes accepted in one frame. ``curve``: None is in the
    clear.
    """

    def __init__(self, place: str, *, payload_bytes: int, close_s: float, curve: CurveKeys | None = None) -> None:
        self._place = place
        self._curve = curve
        self._payload_bytes = payload_bytes
        self._close_s = close_s
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._received: deque[tuple[Buffer, Buffer]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._lost: SessionLost | None = None
        self._ended_by = 0
        self._turns: ReadTurns | None = None

    def __repr__(self) -> str:
        return f"<ZmqTransport zmq://{self._place} {'lost' if self._lost else 'open' if self._socket else 'closed'}>"

    async def open(self) -> None:
        self._context = zmq.Context(io_threads=1)
        socket = self._socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        # Credit bounds what is queued; a high-water mark inside the window would drop or block.
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        socket.setsockopt(zmq.MAXMSGSIZE, self._payload_bytes + (0 if self._curve is None else BOX_BYTES))
        socket.setsockopt(zmq.HEARTBEAT_IVL, int(HEARTBEAT_INTERVAL_S * 1000))
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(HEARTBEAT_TIMEOUT_S * 1000))
        if self._curve is not None:
            protect(socket, self._curve)
        self._monitor = socket.get_monitor_socket(DEAD | zmq.EVENT_CONNECTED)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._monitor.fileno(), self._look_at_monitor)
        # A socket's descriptor announces nothing before somebody has looked and found nothing.
        self._look_at_monitor()
        try:
            socket.connect(f"tcp://{self._place}")
        except zmq.ZMQError as error:
            raise SessionLost(f"cannot connect to zmq://{self._place}: {error}") from error
        self._turns = ReadTurns(socket.fileno(), self._take)

    def send(self, header: bytes, payload: Buffer = b"") -> None:
        if self._lost is not None or self._socket is None or self._turns is None:
            return
        try:
            self._socket.send(header, MORE_FOLLOWS)
            self._socket.send(payload, NOBLOCK, copy=False)
            # The descriptor is edge-triggered: sending may have consumed the edge of an arriving message.
            if not self._turns.pending and int(self._socket.getsockopt(zmq.EVENTS)) & READABLE:
                self._turns.soon()
        except zmq.ZMQError as error:
            # A refused handshake leaves nobody to send to; the monitor knows more.
            self._look_at_monitor()
            self._lose(f"sending failed: {error}")

    async def receive(self) -> tuple[Buffer, Buffer]:
        while not self._received:
            if self._lost is not None:
                # What arrived before the end counts, as far as ZeroMQ still has it.
                if self._turns is not None:
                    self._turns.turn()
                if self._received:
                    break
                if why := await why_no_handshake(self._place, self._ended_by, self._curve):
                    raise HandshakeFailed(f"zmq://{self._place}: {why}") from self._lost
                raise self._lost
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._received.popleft()

    async def close(self) -> None:
        socket, self._socket = self._socket, None
        monitor, self._monitor = self._monitor, None
        context, self._context = self._context, None
        loop = asyncio.get_running_loop()
        if monitor is not None and socket is not None:
            loop.remove_reader(monitor.fileno())
            socket.disable_monitor()
            monitor.close(linger=0)
        if self._turns is not None:
            self._turns.close()
        if socket is not None:
            socket.close(linger=0 if self._lost else int(self._close_s * 1000))
        self._lose("closed")
        if context is not None:
            await loop.run_in_executor(None, context.term)

    def _take(self, most: int) -> int:
        if self._socket is None:
            return 0
        num_messages = 0
        while num_messages < most:
            try:
                frames = [self._socket.recv(NOBLOCK, copy=False)]
            except zmq.Again:
                break
            while frames[-1].more:
                frames.append(self._socket.recv(NOBLOCK, copy=False))
            if len(frames) != 2:
                self._lose(f"a message of {len(frames)} frames instead of 2: not a teacherfarm server?")
                break
            self._received.append((frames[0].bytes, frames[1].buffer))
            num_messages += 1
        if self._received:
            self._wake()
        return num_messages

    def _look_at_monitor(self) -> None:
        while self._monitor is not None:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            if event["event"] == zmq.EVENT_CONNECTED:
                stop_pacing(int(event["value"]))
                continue
            if self._lost is None:
                self._ended_by = int(event["event"])
            # A farm does not answer who speaks to it with another farm's key.
            is_mute = self._curve is not None and event["event"] == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            hint = ": is server_key= the key of this farm?" if is_mute else ""
            self._lose(f"the connection ended ({str(zmq.Event(event['event']).name).lower()}){hint}")

    def _lose(self, why: str) -> None:
        if self._lost is None:
            self._lost = SessionLost(f"zmq://{self._place}: {why}")
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
