"""A farm in memory for users' own tests: scripted answers, sessions that can be told to die; no server, no model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from teacherfarm.protos.faults import SessionLost
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.protos.wire import Buffer
from teacherfarm.student.settings import Address, Timeouts
from teacherfarm.student.transports.answering import AnsweringTransport
from teacherfarm.student.transports.transport import Transport

Script = Callable[[NDArray[Any], Sequence[str]], Mapping[str, NDArray[Any]]]


class LoopbackFarm:
    """Give ``farm.open`` as ``open_transport`` to a client; its address is then only a name.

    ``script(pixels, outputs)`` returns the graph's outputs for crops [N, H, W, C] and may raise. ``delay_s`` passes
    before each answer. ``head``: the classifier's file. :meth:`kill_sessions` does what a server's death does.
    """

    def __init__(
        self, card: TeacherCard, script: Script, *, slice_crops: int = 8, delay_s: float = 0.0, head: bytes = b""
    ) -> None:
        self.card = card
        self.delay_s = delay_s
        self.crops_seen = 0
        self._script = script
        self._slice_crops = slice_crops
        self._head = head
        self._sessions: list[_LoopbackTransport] = []

    def open(self, address: Address, timeouts: Timeouts, teacher: str) -> Transport:
        """A new session."""
        session = _LoopbackTransport(
            AnsweringTransport(
                self.card,
                self._run,
                artifact_digest="loopback",
                slice_crops=self._slice_crops,
                read_head=lambda first, most: (self._head[first : first + most], len(self._head)),
            )
        )
        self._sessions.append(session)
        return session

    def kill_sessions(self) -> None:
        """Every open session dies without a word, answers under way with it. Call it on the client's event loop."""
        sessions, self._sessions = self._sessions, []
        for session in sessions:
            session.die()

    async def _run(self, pixels: NDArray[Any], outputs: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        self.crops_seen += len(pixels)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        return self._script(pixels, outputs)


class _LoopbackTransport:
    def __init__(self, session: AnsweringTransport) -> None:
        self._session = session
        self._dead = asyncio.Event()

    def die(self) -> None:
        self._dead.set()

    async def open(self) -> None:
        await self._session.open()

    def send(self, header: bytes, payload: Buffer = b"") -> None:
        if not self._dead.is_set():
            self._session.send(header, payload)

    async def receive(self) -> tuple[Buffer, Buffer]:
        answer = asyncio.ensure_future(self._session.receive())
        death = asyncio.ensure_future(self._dead.wait())
        try:
            await asyncio.wait({answer, death}, return_when=asyncio.FIRST_COMPLETED)
            if self._dead.is_set():
                raise SessionLost("the loopback farm killed this session")
            return answer.result()
        finally:
            answer.cancel()
            death.cancel()

    async def close(self) -> None:
        await self._session.close()
