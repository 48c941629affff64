"""One session's messages, whatever wire carries them: Hello, slices and their answers, pings, goodbye.

Front-ends feed it decoded messages and deliver what it sends; it knows the wire's values but no socket.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.crop_codec import decode_crops
from teacherfarm.protos.crop import CropBatch
from teacherfarm.protos.faults import (
    BadMessage,
    BadReference,
    GoingAway,
    Overloaded,
    ServerFault,
    SessionLost,
    TeacherFarmFault,
    UnexpectedMessage,
)
from teacherfarm.protos.messages import (
    GetTeacher,
    GoAway,
    Goodbye,
    Hello,
    ListTeachers,
    Ping,
    Pong,
    RefusedCrop,
    Slice,
    SliceFault,
    SliceLabels,
    Teacher,
    TeacherList,
    Value,
)
from teacherfarm.protos.wire import Buffer, decode_header, encode_header
from teacherfarm.teacher_server.gateway import Gateway
from teacherfarm.teacher_server.metrics import Metrics
from teacherfarm.teacher_server.session import Session
from teacherfarm.teacher_server.slice_crops import SentCrops, SliceCrops

log = logging.getLogger(__name__)

MOST_INQUIRIES = 64
MOMENT_S = 0.001
"""Answers that come faster than this leave together: a message costs both ends as much as its labels do."""

Send = Callable[[bytes, Buffer], None]
"""Delivers a header and a payload in order, without waiting; what cannot be delivered is dropped with the session."""


@dataclass(frozen=True, slots=True)
class _Answered:
    """A slice's labels before they leave, and which of its crops got none."""

    slice: Slice
    records: NDArray[np.void]
    refused: Mapping[int, TeacherFarmFault]


class Conversation:
    """One session. ``finished`` tells the front-end to close once what was sent is delivered."""

    def __init__(self, gateway: Gateway, metrics: Metrics, *, wire: str, send: Send) -> None:
        self._gateway = gateway
        self._metrics = metrics
        self._wire = wire
        self._send = send
        self._session: Session | None = None
        self._slices: set[asyncio.Task[None]] = set()
        self._answered_s = 0.0
        self._answered: list[_Answered] = []
        self._received = metrics.received.labels(wire)
        self._sent = metrics.sent.labels(wire)
        self._num_inquiries = 0
        self._head_bytes = 0
        self.finished = False
        self.last_heard_s = time.monotonic()

    def __repr__(self) -> str:
        session = self._session
        who = f"{session.id} for {session.lane.card.name}" if session else "before Hello"
        return f"<Conversation {who} over {self._wire}, {len(self._slices)} slice(s) under way>"

    @property
    def greeted(self) -> bool:
        """Whether Hello was answered with Welcome."""
        return self._session is not None

    def receive(self, header: Buffer, payload: Buffer) -> None:
        """Take one message. Never raises: faults go to the student; ``finished`` is set where they end the session."""
        self.last_heard_s = time.monotonic()
        try:
            self._dispatch(decode_header(header), payload)
        except BadMessage as fault:
            self._end(fault)
        except TeacherFarmFault as fault:
            # Before Hello was accepted there is no session to go on with.
            if self._session is None:
                self._end(fault)
            else:
                self._say(SliceFault(fault=fault))
        except Exception:
            log.exception("%r: undeclared error on a message", self)
            self._end(ServerFault("an internal error of the server; its log has the details"))

    def refuse(self, fault: BadMessage) -> None:
        """End the session over a message that the front-end could not even take apart."""
        self._end(fault)

    def go_away(self) -> None:
        """Tell the student that the server drains."""
        if self._session is not None:
            self._say(GoAway(reason="the server is shutting down"))

    def check_stay(self) -> None:
        """The projects changed: end the session where it would not be opened any more."""
        if self._session is not None:
            try:
                self._gateway.check_stay(self._session)
            except TeacherFarmFault as fault:
                self._end(fault)

    def close(self) -> None:
        """The connection is gone or will be: withdraw what is under way."""
        self.finished = True
        for task in list(self._slices):
            task.cancel()
        session, self._session = self._session, None
        if session is not None:
            self._gateway.close_session(session)
            self._metrics.sessions.labels(self._wire).dec()
            log.info("session %s closed (%s)", session.id, self._wire)

    def _dispatch(self, value: Value, payload: Buffer) -> None:
        match value:
            case Slice():
                self._receive_slice(value, payload)
            case Ping():
                session = self._greeted(value)
                session.credit.took(value.taken_crops)
                load = self._gateway.note_ping(session, value.report)
                self._say(Pong(window_crops=session.credit.window_crops, load=load))
            case Hello():
                self._receive_hello(value)
            case Goodbye():
                self.close()
            case ListTeachers():
                self._count_inquiry()
                self._say(TeacherList(teachers=tuple(self._gateway.teachers_of(value.api_key))))
            case GetTeacher():
                self._show_teacher(value)
            case _:
                raise UnexpectedMessage(f"a student does not send {type(value).__name__}")

    def _show_teacher(self, asked: GetTeacher) -> None:
        if not asked.head:
            self._count_inquiry()
        lane = self._gateway.teacher(asked.name, asked.api_key)
        digest = self._gateway.artifact_digest(lane)
        if not asked.head:
            self._say(Teacher(name=lane.card.name, artifact_digest=digest), lane.card.to_json().encode())
            return
        piece, size = self._gateway.read_head(lane, asked.head_from)
        # Needs no credit: pieces are views of one copy, and once through is what a student needs.
        self._head_bytes += len(piece)
        if not piece or self._head_bytes > size:
            raise Overloaded("one connection is told one classifier, once: open another")
        self._sent.inc(len(piece))
        self._say(Teacher(name=lane.card.name, artifact_digest=digest, head_bytes=size), piece)

    def _count_inquiry(self) -> None:
        """Answers to inquiries need no credit, so their number must have an end."""
        self._num_inquiries += 1
        if self._num_inquiries > MOST_INQUIRIES:
            raise Overloaded(f"{MOST_INQUIRIES} inquiries on one connection are enough: open another")

    def _receive_hello(self, hello: Hello) -> None:
        if self._session is not None:
            raise UnexpectedMessage("Hello twice on one session: open another connection for another session")
        session = self._session = self._gateway.open_session(hello)
        self._metrics.sessions.labels(self._wire).inc()
        log.info(
            "session %s: %s of project %s asks %s of %s",
            session.id,
            hello.student,
            session.project.name,
            session.spec,
            session.lane.card.name,
        )
        self._say(session.welcome, session.lane.card.to_json().encode())

    def _greeted(self, value: Value) -> Session:
        if self._session is None:
            raise SessionLost(
                f"{type(value).__name__} without a session: it was closed after long silence, or never opened by Hello"
            )
        return self._session

    def _receive_slice(self, slice_: Slice, payload: Buffer) -> None:
        session = self._greeted(slice_)
        self._received.inc(len(payload))
        session.credit.took(slice_.taken_crops)
        if self._gateway.draining:
            self._answer_fault(session, slice_, GoingAway("this server is draining"))
            return
        self._slices.add(asyncio.get_running_loop().create_task(self._label(session, slice_, payload)))

    async def _label(self, session: Session, slice_: Slice, payload: Buffer) -> None:
        try:
            crops: SliceCrops | None = None

            async def decode() -> SliceCrops:
                nonlocal crops
                crops = await _decode(session, slice_, payload)
                return crops

            records = await self._gateway.label(session, slice_.num_crops, decode)
        except TeacherFarmFault as fault:
            self._answer_fault(session, slice_, fault)
        except Exception:
            log.exception("session %s: undeclared error on a slice", session.id)
            internal = ServerFault(f"an internal error of the server, logged there under session {session.id}")
            self._answer_fault(session, slice_, internal)
        else:
            self._answer(slice_, records, crops.refused if crops is not None else {})
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._slices.discard(task)

    def _answer(self, slice_: Slice, records: NDArray[np.void], refused: Mapping[int, TeacherFarmFault]) -> None:
        """Send it at once, or with what else is answered within a moment of the last message."""
        for fault in refused.values():
            self._metrics.faults.labels(type(fault).__name__).inc()
        if not self._answered:
            loop = asyncio.get_running_loop()
            loop.call_at(self._answered_s + MOMENT_S, self._send_answered)
        self._answered.append(_Answered(slice_, records, refused))

    def _send_answered(self) -> None:
        """Slices that follow each other in a batch are answered in one message: for both ends as dear as one slice."""
        answered, self._answered = self._answered, []
        self._answered_s = asyncio.get_running_loop().time()
        session = self._session
        if session is None:
            return
        most_crops = max(1, self._gateway.payload_bytes // session.record_dtype.itemsize)
        place = 0
        while place < len(answered):
            first, num_crops = answered[place].slice, 0
            parts: list[NDArray[np.void]] = []
            refused: list[RefusedCrop] = []
            while place < len(answered):
                slice_, records = answered[place].slice, answered[place].records
                follows = slice_.batch_id == first.batch_id and slice_.first_row == first.first_row + num_crops
                if parts and (not follows or num_crops + slice_.num_crops > most_crops):
                    break
                # A thousand refusals fill a header.
                if refused and answered[place].refused:
                    break
                refused += [
                    RefusedCrop(row=num_crops + row, fault=fault) for row, fault in answered[place].refused.items()
                ]
                parts.append(records)
                num_crops += slice_.num_crops
                place += 1
            labels = SliceLabels(
                batch_id=first.batch_id,
                first_row=first.first_row,
                num_crops=num_crops,
                window_crops=session.credit.window_crops,
                keys_wanted=session.keys_wanted,
                refused=tuple(refused),
            )
            joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
            payload = memoryview(joined.view(np.uint8))  # type: ignore[arg-type]
            self._sent.inc(len(payload))
            self._send(encode_header(labels), payload)

    def _answer_fault(self, session: Session, slice_: Slice, fault: TeacherFarmFault) -> None:
        self._metrics.faults.labels(type(fault).__name__).inc()
        self._say(
            SliceFault(
                fault=fault,
                batch_id=slice_.batch_id,
                first_row=slice_.first_row,
                num_crops=slice_.num_crops,
                window_crops=session.credit.window_crops,
            )
        )

    def _end(self, fault: TeacherFarmFault) -> None:
        self._metrics.faults.labels(type(fault).__name__).inc()
        log.warning("%r ends: %s: %s", self, type(fault).__name__, fault)
        self._say(SliceFault(fault=fault))
        self.close()

    def _say(self, value: Value, payload: Buffer = b"") -> None:
        self._send(encode_header(value), payload)


async def _decode(session: Session, slice_: Slice, payload: Buffer) -> SliceCrops:
    crop_format = session.crop_format
    if slice_.place != "pixels":
        if session.cutter is None:
            raise BadReference("crops by reference on a session whose Hello named no data set")
        return await session.cutter.find(payload, slice_.num_crops, slice_.place, slice_.mixing, slice_.priority)
    if crop_format.codec == "jpeg":
        # JPEG images take a millisecond each.
        decode = partial(decode_crops, payload, slice_.num_crops, crop_format, slice_.crop_bytes)
        pixels = await asyncio.get_running_loop().run_in_executor(None, decode)
    else:
        pixels = decode_crops(payload, slice_.num_crops, crop_format)
    return SentCrops(CropBatch(pixels=pixels, keys=slice_.keys, priority=slice_.priority))
