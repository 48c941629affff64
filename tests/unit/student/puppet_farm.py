"""A farm of which a test pulls every string: it sees each message of the client and says each answer by
itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from teacherfarm.protos.faults import SessionLost, TeacherFarmFault
from teacherfarm.protos.messages import Hello, Ping, Slice, SliceFault, SliceLabels, Value, Welcome
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.protos.wire import decode_header, encode_header
from teacherfarm.student.settings import Address, Timeouts
from tests.unit.teacher_server.scripted import CARD, answer


class PuppetSession:
    """One session. ``slices``: those received and not yet answered, in order, with their pixels."""

    def __init__(self, farm: PuppetFarm, address: Address) -> None:
        self.farm = farm
        self.address = address
        self.hello: Hello | None = None
        self.slices: list[tuple[Slice, np.ndarray]] = []
        self.messages: list[Value] = []
        self.opened = self.closed = False
        self._outgoing: asyncio.Queue[tuple[bytes, bytes] | Exception] = asyncio.Queue()

    @property
    def sent_crops(self) -> int:
        return sum(slice_.num_crops for slice_, _ in self.slices)

    def say(self, value: Value, payload: Any = b"") -> None:
        self._outgoing.put_nowait((encode_header(value), bytes(payload)))

    def die(self) -> None:
        self._outgoing.put_nowait(SessionLost("the puppet died"))

    def answer(self, number: int = 0, *, window_crops: int = 0, keys_wanted: bool = False) -> None:
        """Answer the slice of this number among the unanswered."""
        slice_, pixels = self.slices.pop(number)
        spec = self.hello.spec.resolve(self.farm.card)
        records = spec.pack(answer(pixels, spec.graph_outputs(self.farm.card)), self.farm.card)
        self.say(
            SliceLabels(
                batch_id=slice_.batch_id,
                first_row=slice_.first_row,
                num_crops=slice_.num_crops,
                window_crops=window_crops,
                keys_wanted=keys_wanted,
            ),
            records.tobytes(),
        )

    def answer_all(self) -> None:
        while self.slices:
            self.answer()

    def refuse(self, fault: TeacherFarmFault, number: int = 0) -> None:
        slice_, _ = self.slices.pop(number)
        place = {"batch_id": slice_.batch_id, "first_row": slice_.first_row, "num_crops": slice_.num_crops}
        self.say(SliceFault(fault=fault, **place))

    # What the client calls

    async def open(self) -> None:
        self.opened = True
        if self.farm.unreachable:
            raise SessionLost("nobody there")

    def send(self, header: bytes, payload: Any = b"") -> None:
        value = decode_header(header)
        self.messages.append(value)
        if isinstance(value, Hello):
            self.hello = value
            self.farm.greet(self)
        elif isinstance(value, Slice) and not self.closed:
            pixels = np.frombuffer(payload, np.uint8).reshape(value.num_crops, *self.farm.card.crop_format.shape)
            self.slices.append((value, pixels.copy()))
        elif isinstance(value, Ping):
            pass

    async def receive(self) -> tuple[bytes, bytes]:
        said = await self._outgoing.get()
        if isinstance(said, Exception):
            raise said
        return said

    async def close(self) -> None:
        self.closed = True


class PuppetFarm:
    """Give ``farm.open`` as ``open_transport``. ``greet`` may be replaced; it says Welcome by itself."""

    def __init__(self, card: TeacherCard = CARD, *, window_crops: int = 8, slice_crops: int = 4) -> None:
        self.card = card
        self.artifact_digest = "artifact"
        self.window_crops = window_crops
        self.slice_crops = slice_crops
        self.unreachable = False
        self.sessions: list[PuppetSession] = []
        self.greet: Callable[[PuppetSession], None] = self.welcome

    @property
    def session(self) -> PuppetSession:
        """The latest."""
        return self.sessions[-1]

    def open(self, address: Address, timeouts: Timeouts, teacher: str) -> PuppetSession:
        self.sessions.append(PuppetSession(self, address))
        return self.session

    def welcome(self, session: PuppetSession) -> None:
        session.say(
            Welcome(
                session_id="puppet",
                window_crops=self.window_crops,
                slice_crops=self.slice_crops,
                artifact_digest=self.artifact_digest,
            ),
            self.card.to_json().encode(),
        )
