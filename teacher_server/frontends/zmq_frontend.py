"""ZeroMQ's end at the server: one ROUTER socket, one conversation per connected DEALER. Only delivers.

The socket's descriptor is edge-triggered: after every receive and every send the events are looked at again. Sending
never blocks; a peer whose queue is full beyond its window does not read, and its session ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

import zmq
from zmq.utils.monitor import recv_monitor_message

from teacherfarm.protos.faults import MalformedMessage, Overloaded, Unauthenticated
from teacherfarm.protos.local_link import stop_pacing
from teacherfarm.protos.messages import Pong, SliceFault
from teacherfarm.protos.read_turns import ReadTurns
from teacherfarm.protos.wire import HEADER_BYTES, Buffer, encode_header
from teacherfarm.teacher_server.frontends.conversation import Conversation, Send
from teacherfarm.teacher_server.frontends.curve import ServerCurve

log = logging.getLogger(__name__)

# As plain numbers: arithmetic with pyzmq's flag classes takes longer than sending a frame.
NOBLOCK = int(zmq.NOBLOCK)
MORE_FOLLOWS = int(zmq.NOBLOCK | zmq.SNDMORE)
READABLE = int(zmq.POLLIN)
RECEIVE_HIGH_WATER = 64
SEND_HIGH_WATER = 4096
"""Well above the messages of any window: credit is the bound, and only a peer that takes nothing reaches this."""
HEARTBEAT_INTERVAL_S = 5.0
HEARTBEAT_TIMEOUT_S = 15.0
HELLO_WITHIN_S = 15.0
HANDSHAKE_WITHIN_S = 15.0
"""For what comes before Hello: the handshakes of ZMTP and CURVE."""
SESSION_RETRY_AFTER_S = 5.0
STRANGER_RETRY_AFTER_S = 1.0
SWEEP_INTERVAL_S = 5.0


def listen(socket: zmq.Socket[bytes], address: str) -> str:
    """Bind a socket and return its real address; a loopback address gets connections that are not paced."""
    with socket.get_monitor_socket(zmq.EVENT_LISTENING) as monitor:
        try:
            socket.bind(f"tcp://{address}")
            # It is told of by the time that bind returns.
            stop_pacing(int(recv_monitor_message(monitor, zmq.NOBLOCK)["value"]))
        finally:
            socket.disable_monitor()
    return socket.getsockopt_string(zmq.LAST_ENDPOINT).removeprefix("tcp://")


class ZmqFrontend:
    """Serves conversations on ``address`` ("127.0.0.1:0" binds a free port), which is real after :meth:`start`.

    ``most_strangers``: peers that have not said Hello. ``idle_session_s``: how long a student may say nothing, not even
    a ping. ``curve``: None serves in the clear.
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
        curve: ServerCurve | None = None,
    ) -> None:
        self.address = address
        self._converse = converse
        self._payload_bytes = payload_bytes
        self._most_sessions = most_sessions
        self._most_strangers = most_strangers
        self._idle_session_s = idle_session_s
        self._curve = curve
        self._curve_keys: WeakKeyDictionary[Conversation, str] = WeakKeyDictionary()
        self._peers: dict[bytes, Conversation] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._turns: ReadTurns | None = None

    def __repr__(self) -> str:
        return f"<ZmqFrontend {self.url}, {len(self._peers)} peer(s)>"

    @property
    def url(self) -> str:
        """What students may be given."""
        key = "" if self._curve is None else f"?server_key={self._curve.public_key}"
        return f"zmq://{self.address}{key}"

    async def start(self) -> None:
        """Bind; raises OSError with the address when it is taken."""
        self._context = zmq.Context(io_threads=1)
        socket = self._socket = self._context.socket(zmq.ROUTER)
        socket.linger = 0
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.RCVHWM, RECEIVE_HIGH_WATER)
        socket.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER)
        socket.setsockopt(zmq.MAXMSGSIZE, self._payload_bytes + HEADER_BYTES)
        socket.setsockopt(zmq.HEARTBEAT_IVL, int(HEARTBEAT_INTERVAL_S * 1000))
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(HEARTBEAT_TIMEOUT_S * 1000))
        socket.setsockopt(zmq.HANDSHAKE_IVL, int(HANDSHAKE_WITHIN_S * 1000))
        if self._curve is not None:
            self._curve.protect(socket, self._context)
        try:
            self.address = listen(socket, self.address)
        except zmq.ZMQError as error:
            raise OSError(f"cannot listen for ZeroMQ on {self.address}: {error}") from error
        self._turns = ReadTurns(socket.fileno(), self._take)
        self._sweeper = asyncio.create_task(self._sweep(), name="zmq sweeper")

    def go_away(self) -> None:
        """Tell every student that the server drains."""
        for conversation in list(self._peers.values()):
            conversation.go_away()

    def check_stay(self) -> None:
        """The projects changed: end the sessions that would not be opened any more."""
        for peer, conversation in list(self._peers.items()):
            conversation.check_stay()
            if conversation.finished:
                self._peers.pop(peer, None)

    def reload(self) -> None:
        """Read the allow-list again and end the sessions of those who are off it. Raises ValueError and keeps the
        former one.
        """
        if self._curve is None:
            return
        self._curve.reload()
        log.info("read the allow-list of %s again: %r", self.url, self._curve)
        for peer, conversation in list(self._peers.items()):
            if not self._curve.allows(self._curve_keys[conversation]):
                log.warning("%r ends: its CURVE key was taken off the allow-list", conversation)
                fault = Unauthenticated("this student's CURVE key was taken off the farm's allow-list")
                self._send(peer, encode_header(SliceFault(fault=fault)), b"")
                self._peers.pop(peer, None)
                conversation.close()

    async def close(self) -> None:
        """Close every session and the socket; what was sent gets a moment to leave."""
        if self._socket is None or self._context is None:
            return
        if self._sweeper is not None:
            self._sweeper.cancel()
        for conversation in list(self._peers.values()):
            conversation.close()
        self._peers.clear()
        socket, self._socket = self._socket, None
        if self._turns is not None:
            self._turns.close()
        socket.close(linger=1000)
        if self._curve is not None:
            self._curve.close()
        await asyncio.get_running_loop().run_in_executor(None, self._context.term)

    def _take(self, most: int) -> int:
        """Receive what is there, at most so many messages; how many."""
        num_messages = 0
        while self._socket is not None and num_messages < most:
            try:
                peer = self._socket.recv(NOBLOCK)
            except zmq.Again:
                break
            frames = [self._socket.recv(NOBLOCK, copy=False)]
            while frames[-1].more:
                frames.append(self._socket.recv(NOBLOCK, copy=False))
            self._receive(peer, frames)
            num_messages += 1
        return num_messages

    def _receive(self, peer: bytes, frames: list[zmq.Frame]) -> None:
        conversation = self._peers.get(peer)
        if conversation is None:
            conversation = self._meet(peer, frames[0])
            if conversation is None:
                return
        if len(frames) == 2:
            conversation.receive(frames[0].bytes, frames[1].buffer)
        else:
            conversation.refuse(MalformedMessage(f"a message has two frames (header, payload), not {len(frames)}"))
        if conversation.finished:
            self._peers.pop(peer, None)

    def _meet(self, peer: bytes, frame: zmq.Frame) -> Conversation | None:
        """A conversation with a peer that was silent so far; None where there is no room, or no permission any more."""
        key = "" if self._curve is None else str(frame.get("User-Id"))
        if self._curve is not None and not self._curve.allows(key):
            return None
        strangers = sum(not conversation.greeted for conversation in self._peers.values())
        if len(self._peers) >= self._most_sessions:
            full, retry_after_s = (
                f"{len(self._peers)} sessions are open, all that this server takes",
                SESSION_RETRY_AFTER_S,
            )
        elif strangers >= self._most_strangers:
            full = f"{strangers} others have not said Hello yet, all that this server waits for"
            retry_after_s = STRANGER_RETRY_AFTER_S
        else:
            conversation = self._peers[peer] = self._converse(lambda header, payload: self._send(peer, header, payload))
            self._curve_keys[conversation] = key
            return conversation
        fault = Overloaded(full, retry_after_s=retry_after_s)
        self._send(peer, encode_header(SliceFault(fault=fault)), b"")
        return None

    def _send(self, peer: bytes, header: bytes, payload: Buffer) -> None:
        if self._socket is None:
            return
        try:
            self._socket.send(peer, MORE_FOLLOWS)
            self._socket.send(header, MORE_FOLLOWS)
            self._socket.send(payload, NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            # EAGAIN: the peer does not read; EHOSTUNREACH: it is gone. Either way the session is over, and its student
            # resends on the next one.
            log.info("dropped a peer: %s", error)
            conversation = self._peers.pop(peer, None)
            if conversation is not None:
                conversation.close()
        turns = self._turns
        if turns is not None and not turns.pending and int(self._socket.getsockopt(zmq.EVENTS)) & READABLE:
            turns.soon()

    async def _sweep(self) -> None:
        """Forget peers that left without a word: ROUTER does not tell."""
        while True:
            await asyncio.sleep(min(SWEEP_INTERVAL_S, self._idle_session_s / 4))
            now_s = time.monotonic()
            for peer, conversation in list(self._peers.items()):
                allowed_s = self._idle_session_s if conversation.greeted else HELLO_WITHIN_S
                if now_s - conversation.last_heard_s > allowed_s:
                    self._peers.pop(peer, None)
                    conversation.close()
                elif conversation.greeted and now_s - conversation.last_heard_s > SWEEP_INTERVAL_S:
                    # ROUTER tells of a peer that is gone only when something is sent to it.
                    self._send(peer, encode_header(Pong()), b"")
