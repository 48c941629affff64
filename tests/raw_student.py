"""Students that speak the wire by hand, and may break its rules: a DEALER socket, and a stream of bytes over gRPC."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import grpc
import zmq

from teacherfarm.protos.messages import Hello, Slice, Value
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.protos.wire import (
    Buffer,
    decode_header,
    encode_header,
    join,
    split,
)

METHOD = "/teacherfarm.v1.TeacherFarm/"
RECEIVE_S = 20.0
LONGEST_STREAM_S = 60.0


class Silence(Exception):
    """Nothing came in the time allowed, or the server ended the session."""


class RawZmq:
    """One DEALER socket. ``send_frames`` sends anything."""

    def __init__(self, address: str, *, receive_high_water: int = 0) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.setsockopt(zmq.SNDHWM, 64)
        if receive_high_water:
            self._socket.setsockopt(zmq.RCVHWM, receive_high_water)
            self._socket.setsockopt(zmq.RCVBUF, 4096)
        self._socket.connect(address.replace("zmq://", "tcp://"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._context.term()

    def send(self, header: bytes, payload: Buffer = b"", *, timeout_s: float = RECEIVE_S) -> bool:
        """Send a message; False where the server takes no more."""
        return self.send_frames([header, bytes(payload)], timeout_s=timeout_s)

    def send_frames(self, frames: list[bytes], *, timeout_s: float = RECEIVE_S) -> bool:
        """Send a message of any number of frames."""
        if not self._socket.poll(int(timeout_s * 1000), zmq.POLLOUT):
            return False
        self._socket.send_multipart(frames)
        return True

    def send_bytes(self, message: bytes) -> bool:
        """Send bytes in place of a header."""
        return self.send_frames([message, b""])

    def receive(self, timeout_s: float = RECEIVE_S) -> tuple[Value, bytes]:
        """The next message."""
        if not self._socket.poll(int(timeout_s * 1000), zmq.POLLIN):
            raise Silence(f"nothing within {timeout_s} s")
        header, payload = self._socket.recv_multipart()
        return decode_header(header), payload


class RawGrpc:
    """One stream. ``send_bytes`` sends anything. Nothing is read from the network before :meth:`receive`."""

    def __init__(self, address: str) -> None:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        # Of its own, so that every student of a test has its own connection.
        options.append(("grpc.use_local_subchannel_pool", 1))
        self._channel = grpc.insecure_channel(address.removeprefix("grpc://"), options=options)
        self._outgoing: queue.Queue[bytes | None] = queue.Queue(maxsize=64)
        self._stream = self._channel.stream_stream(METHOD + "StreamLabels")(self._messages(), timeout=LONGEST_STREAM_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.cancel()
        self._channel.close()
        while not self._outgoing.empty():
            self._outgoing.get_nowait()
        self._outgoing.put(None)

    def send(self, header: bytes, payload: Buffer = b"", *, timeout_s: float = RECEIVE_S) -> bool:
        """Send a message; False where the server takes no more."""
        return self.send_bytes(join(header, payload), timeout_s=timeout_s)

    def send_bytes(self, message: bytes, *, timeout_s: float = RECEIVE_S) -> bool:
        """Send bytes in place of a framed message."""
        try:
            self._outgoing.put(message, timeout=timeout_s)
        except queue.Full:
            return False
        return True

    def receive(self) -> tuple[Value, bytes]:
        """The next message."""
        try:
            header, payload = split(next(self._stream))
        except (StopIteration, grpc.RpcError) as error:
            raise Silence(f"the stream ended: {error!r}") from error
        return decode_header(header), bytes(payload)

    def _messages(self) -> Iterator[bytes]:
        while (message := self._outgoing.get()) is not None:
            yield message


def raw_student(address: str, *, deaf: bool = False) -> RawZmq | RawGrpc:
    """A raw student of the address' wire. ``deaf``: what it does not receive stays with the server."""
    if address.startswith("zmq://"):
        return RawZmq(address, receive_high_water=int(deaf))
    return RawGrpc(address)  # gRPC takes nothing that nobody reads, beyond its flow control's window


def hello(**changes: object) -> bytes:
    """A header that opens a session with the farm's only teacher."""
    return encode_header(Hello(teacher="", spec=LabelSpec(), **changes))  # type: ignore[arg-type]


def slice_header(batch_id: int, num_crops: int, **changes: object) -> bytes:
    """The header of one slice."""
    return encode_header(Slice(batch_id=batch_id, first_row=0, num_crops=num_crops, **changes))  # type: ignore[arg-type]
