"""Bare loops over ZeroMQ and gRPC that move the same bytes as teacherfarm and do nothing else: what a wire can do here.

The allocator settings of teacherfarm and, over ZeroMQ, its connections without pacing; the server in a process of its
own: started as a program, this is it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import zmq
from zmq.utils.monitor import recv_monitor_message

from bench.pipeline import Pixels
from teacherfarm.protos.allocator import keep_large_buffers
from teacherfarm.protos.local_link import stop_pacing
from teacherfarm.teacher_server.frontends.zmq_frontend import listen

METHOD = "/bench.Echo/Stream"
LABEL_BYTES = 2000
"""A dense label of 1000 classes in float16."""
MESSAGE_BYTES = 1 << 20


def messages(batch: Pixels) -> list[memoryview]:
    """A batch in messages of at most 1 MiB of whole crops."""
    crop_bytes = batch[0].nbytes
    step = MESSAGE_BYTES // crop_bytes
    flat = batch.reshape(-1).view(np.uint8).data
    return [flat[start * crop_bytes : (start + step) * crop_bytes] for start in range(0, len(batch), step)]


class BareZmq:
    """A DEALER and its loop."""

    def __init__(self, address: str, crop_bytes: int, batches: Iterator[Pixels], *, in_flight: int) -> None:
        self._crop_bytes = crop_bytes
        self._in_flight = in_flight
        self._messages = itertools.chain.from_iterable(map(messages, batches))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        with self._socket.get_monitor_socket(zmq.EVENT_CONNECTED) as monitor:
            self._socket.connect(address.replace("zmq://", "tcp://"))
            stop_pacing(int(recv_monitor_message(monitor)["value"]))
            self._socket.disable_monitor()

    async def run_slice(self, seconds: float) -> float:
        """Crops/s between the first answer and the last; blocks the event loop, as nothing else is to run."""
        waiting: deque[int] = deque()
        num_crops = 0
        started_s = stopped_s = 0.0
        while not started_s or stopped_s - started_s < seconds:
            while len(waiting) < self._in_flight:
                message = next(self._messages)
                self._socket.send(message, copy=False)
                waiting.append(len(message) // self._crop_bytes)
            num_crops += self._receive(waiting)
            stopped_s = time.perf_counter()
            if not started_s:
                started_s, num_crops = stopped_s, 0
        rate = num_crops / (stopped_s - started_s)
        while waiting:
            self._receive(waiting)
        return rate

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()

    def _receive(self, waiting: deque[int]) -> int:
        answer = self._socket.recv(copy=False)
        size = waiting.popleft()
        if len(answer) != size * LABEL_BYTES:
            raise RuntimeError(f"the echo of {size} crops has {len(answer)} bytes")
        return size


class BareGrpc:
    """A bidirectional stream of bytes and its loop."""

    def __init__(self, address: str, crop_bytes: int, batches: Iterator[Pixels], *, in_flight: int) -> None:
        self._crop_bytes = crop_bytes
        self._in_flight = in_flight
        self._messages = itertools.chain.from_iterable(map(messages, batches))
        self._channel = grpc.aio.insecure_channel(
            address.partition("://")[2],
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )
        self._stream: grpc.aio.StreamStreamCall[bytes, bytes] = self._channel.stream_stream(METHOD)()

    async def run_slice(self, seconds: float) -> float:
        """Crops/s between the first answer and the last; a writer task beside the reader."""
        waiting: deque[int] = deque()
        room = asyncio.Semaphore(self._in_flight)
        stopping = asyncio.Event()
        writer = asyncio.create_task(self._write(waiting, room, stopping))
        num_crops = 0
        started_s = stopped_s = 0.0
        while not started_s or stopped_s - started_s < seconds:
            num_crops += await self._receive(waiting)
            room.release()
            stopped_s = time.perf_counter()
            if not started_s:
                started_s, num_crops = stopped_s, 0
        rate = num_crops / (stopped_s - started_s)
        stopping.set()
        room.release()
        await writer
        while waiting:
            await self._receive(waiting)
        return rate

    async def close(self) -> None:
        await self._stream.done_writing()
        await self._channel.close()

    async def _write(self, waiting: deque[int], room: asyncio.Semaphore, stopping: asyncio.Event) -> None:
        while await room.acquire() and not stopping.is_set():
            message = next(self._messages)
            waiting.append(len(message) // self._crop_bytes)
            await self._stream.write(b"".join((b"\x12", message)))

    async def _receive(self, waiting: deque[int]) -> int:
        answer: Any = await self._stream.read()
        size = waiting.popleft()
        if answer is grpc.aio.EOF or len(answer) != size * LABEL_BYTES:
            raise RuntimeError(f"the echo of {size} crops is {answer!r:.40}")
        return size


def answer_zmq(socket: zmq.Socket[bytes], crop_bytes: int) -> None:
    """Answer every message with as many zeros as its labels would take, for ever."""
    zeros = bytes(LABEL_BYTES * MESSAGE_BYTES // crop_bytes)
    while True:
        peer, message = socket.recv_multipart(copy=False)
        socket.send_multipart((peer, zeros[: len(message) // crop_bytes * LABEL_BYTES]), copy=False)


class BareStream(grpc.GenericRpcHandler):
    """The echo of :class:`BareGrpc`."""

    def __init__(self, crop_bytes: int, *, writer: bool) -> None:
        self._crop_bytes = crop_bytes
        self._writer = writer
        self._zeros = bytes(LABEL_BYTES * MESSAGE_BYTES // crop_bytes)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return grpc.stream_stream_rpc_method_handler(self._beside if self._writer else self._in_turn)

    async def _in_turn(self, _: Any, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        async for message in _messages(context):
            await context.write(self._answer(message))

    async def _beside(self, _: Any, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(context, answers))
        while (answer := await answers.get()) is not None:
            await context.write(answer)
        await reader

    async def _read(
        self, context: grpc.aio.ServicerContext[bytes, bytes], answers: asyncio.Queue[bytes | None]
    ) -> None:
        async for message in _messages(context):
            answers.put_nowait(self._answer(message))
        answers.put_nowait(None)

    def _answer(self, message: bytes) -> bytes:
        return self._zeros[: len(message) // self._crop_bytes * LABEL_BYTES]


async def _messages(context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
    while True:
        message: Any = await context.read()
        if message is grpc.aio.EOF:
            return
        yield message


async def answer_grpc(handlers: dict[str, BareStream], announce: str) -> None:
    """Serve the handlers, each on a free port, for ever."""
    servers, addresses = [], []
    for scheme, handler in handlers.items():
        server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        )
        server.add_generic_rpc_handlers((handler,))
        addresses.append(f"{scheme}://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
    print("ready", announce, *addresses, flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Answer on both wires until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m bench.wire_reference", description=__doc__)
    parser.add_argument("--crop-bytes", type=int, required=True)
    options = parser.parse_args()
    keep_large_buffers()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    address = f"zmq://{listen(socket, '127.0.0.1:0')}"
    threading.Thread(target=answer_zmq, args=(socket, options.crop_bytes), daemon=True).start()
    handlers = {
        "grpc": BareStream(options.crop_bytes, writer=False),
        "grpcwriter": BareStream(options.crop_bytes, writer=True),
    }
    asyncio.run(answer_grpc(handlers, address))


if __name__ == "__main__":
    main()
