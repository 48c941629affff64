"""A TCP link that loses connections, delays bytes and cuts messages in two, at moments drawn from a seed."""

from __future__ import annotations

import asyncio
import random
import threading
from types import TracebackType
from typing import Self


class HostileLink:
    """Forwards to ``place`` (HOST:PORT) from ``self.place``. Every connection dies after at most ``most_bytes``.

    Bytes come in pieces, some of them up to ``most_delay_s`` late; the last piece of a dying connection is cut short.
    """

    def __init__(self, place: str, *, seed: object, most_bytes: int, most_delay_s: float) -> None:
        self.num_connections = 0
        self.num_cut = 0
        self.place = ""
        self._host, _, port = place.rpartition(":")
        self._port = int(port)
        self._random = random.Random(f"{seed}")
        self._most_bytes = most_bytes
        self._most_delay_s = most_delay_s
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._listening.set()
        await self._stopping.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        # At least a handshake and a few messages go through, so that the student gets on.
        left = [self._random.randrange(20_000, self._most_bytes)]
        pumps = [
            asyncio.ensure_future(self._pump(reader, far_writer, left)),
            asyncio.ensure_future(self._pump(far_reader, writer, left)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in (writer, far_writer):
                # Some ends see a reset, some an orderly end.
                if self._random.random() < 0.5:
                    end.transport.abort()
                else:
                    end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[int]) -> None:
        while piece := await reader.read(self._random.randrange(1, 20_000)):
            if self._random.random() < 0.1:
                await asyncio.sleep(self._random.random() * self._most_delay_s)
            if len(piece) > left[0]:
                writer.write(piece[: left[0]])
                await writer.drain()
                self.num_cut += 1
                return
            left[0] -= len(piece)
            writer.write(piece)
            await writer.drain()
