"""The client's core: sessions, window, deadlines, and answers matched by batch id. Asynchronous; knows no torch.

Exactly one answer per crop batch, whatever dies in between: slices that a dead session left unanswered are sent again
on the next one, the first answer of a row wins, and nothing is ever resent because it is slow.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import socket as host
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.allocator import keep_large_buffers
from teacherfarm.protos.crop import Codec, CropBatch, pixel_keys
from teacherfarm.protos.faults import (
    MalformedMessage,
    SessionLost,
    Starved,
    TeacherFarmFault,
    UnexpectedMessage,
)
from teacherfarm.protos.soft_label import LabelSpec, SoftLabels
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.protos.wire import (
    Buffer,
    GoAway,
    Goodbye,
    Hello,
    Ping,
    Pong,
    Slice,
    SliceFault,
    SliceLabels,
    decode_header,
    encode_header,
)
from teacherfarm.student.accounts import ClientStats, Room
from teacherfarm.student.batch import Delivery, PendingBatch
from teacherfarm.student.handshake import shake_hands
from teacherfarm.student.ledger import Ledger, PendingSlice
from teacherfarm.student.retry import Backoff
from teacherfarm.student.settings import WINDOW_CROPS, Address, OnStarved, Timeouts, parse_addresses, preference
from teacherfarm.student.transports.connect import open_transport
from teacherfarm.student.transports.transport import Transport

log = logging.getLogger(__name__)

PING_INTERVAL_S = 5.0
STARVATION_CHECK_S = 0.1
OpenTransport = Callable[[Address, Timeouts, str], Transport]
"""A transport for one session with an address, and the teacher's name for those that have no server to tell it to."""


class AsyncTeacherClient:
    """A student's connection to one teacher, for one event loop: ``async with AsyncTeacherClient(...) as teacher``.

    ``address``: one or several, separated by commas. ``teacher``: its name; may be empty where only one is served.
    ``digest``: the teacher digest (8 first digits or more) to insist on; otherwise the first session's is pinned.
    ``spec``: what to ask for. ``window``: most crops submitted and not yet collected (bounds this side's memory).
    ``on_starved``: what to do when a batch got no labels for ``timeouts.answer_s``: "wait" on (and log), "raise"
    Starved, or "skip" (labels with weight 0 for the crops without answer). ``codec``: "raw", or "jpeg" (quality 95, a
    seventh of the bytes) where the link is slow; labels then are those of the decoded crops.
    """

    def __init__(
        self,
        address: str,
        teacher: str = "",
        *,
        api_key: str = "",
        digest: str = "",
        spec: LabelSpec | None = None,
        window: int | None = None,
        timeouts: Timeouts | None = None,
        on_starved: OnStarved = "wait",
        codec: Codec = "raw",
        open_transport: OpenTransport = open_transport,
    ) -> None:
        if codec not in ("raw", "jpeg"):
            raise ValueError(f"codec is 'raw' or 'jpeg', got {codec!r}")
        if on_starved not in ("wait", "raise", "skip"):
            raise ValueError(f"on_starved is 'wait', 'raise' or 'skip', got {on_starved!r}")
        self.timeouts = timeouts or Timeouts()
        self.room = Room(WINDOW_CROPS if window is None else window)
        self.stats = ClientStats()
        self._addresses = preference(parse_addresses(address), teacher)
        self._teacher = teacher
        self._api_key = api_key
        self._asked_spec = spec or LabelSpec()
        self._on_starved = on_starved
        self._codec = codec
        self._open_transport = open_transport
        self._expected_teacher = digest
        self._expected_artifact = ""
        self._card: TeacherCard | None = None
        self._spec = self._asked_spec
        self._record_dtype: np.dtype[np.void] | None = None
        self._ids = itertools.count(1)
        self._ledger = Ledger()
        self._taken_crops = 0
        self._transport: Transport | None = None
        self._going_away = False
        self._window_crops = 0
        self._slice_crops = 0
        self._fatal: BaseException | None = None
        self._connected: asyncio.Future[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._encoding: set[asyncio.Task[None]] = set()
        self._room_changed = asyncio.Event()
        self._backoff = Backoff(random.random())
        self._first_failure_s = 0.0

    def __repr__(self) -> str:
        state = "failed" if self._fatal else "connected" if self._transport else "not connected"
        return (
            f"<AsyncTeacherClient {self._teacher or '(only teacher)'} {state}, {len(self._ledger)} batches pending, "
            f"{self._ledger.sent_crops} of {self._window_crops} crops in flight, {self.stats.sessions} session(s)>"
        )

    @property
    def card(self) -> TeacherCard:
        """The teacher's card, once connected."""
        if self._card is None:
            raise RuntimeError("not connected yet: await connect() first")
        return self._card

    @property
    def spec(self) -> LabelSpec:
        """The label spec with its outputs spelled out, once connected."""
        return self._spec

    @property
    def num_pending(self) -> int:
        """Batches without a complete answer."""
        return len(self._ledger)

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Open the first session; raises what the server refused it with, or SessionLost after ``connect_s``."""
        if self._connected is None:
            keep_large_buffers()
            loop = asyncio.get_running_loop()
            self._connected = loop.create_future()
            self._tasks = [
                loop.create_task(self._keep_sessions(), name="teacher client sessions"),
                loop.create_task(self._watch(), name="teacher client watch"),
            ]
        await asyncio.shield(self._connected)

    async def label(self, crops: NDArray[Any], *, keys: bytes = b"", priority: int = 0) -> SoftLabels:
        """Soft labels of crops [N, H, W, C], in order; waits for room and for the answer."""
        return await (await self.submit(crops, keys=keys, priority=priority))

    async def submit(self, crops: NDArray[Any], *, keys: bytes = b"", priority: int = 0) -> asyncio.Future[SoftLabels]:
        """Ask and do not wait for the answer, only for room in the window. ``crops`` must not change until answered."""
        await self.connect()
        self.card.crop_format.check(crops)
        while not self.room.take(len(crops)):
            self._room_changed.clear()
            await self._room_changed.wait()
        answer: asyncio.Future[SoftLabels] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self.collected(len(crops)))
        self.enqueue(CropBatch(pixels=crops, keys=keys, priority=priority), answer)
        return answer

    def collected(self, num_crops: int) -> None:
        """So many crops' labels were collected: there is room for as many more."""
        self.room.give_back(num_crops)
        self._room_changed.set()

    def enqueue(self, crops: CropBatch, delivery: Delivery) -> None:
        """Take a checked batch for which there was room; ``delivery`` gets labels or a fault, exactly once."""
        self.stats.crops_asked += len(crops)
        pixels = np.ascontiguousarray(crops.pixels)
        batch = PendingBatch(
            next(self._ids),
            pixels,
            crops.keys or pixel_keys(pixels),
            crops.priority,
            delivery,
            asyncio.get_running_loop().time(),
        )
        if self._fatal is not None:
            self._fail(batch, self._fatal)
            return
        self._ledger.open(batch)
        if self._codec == "raw":
            self._queue(batch)
        else:
            task = asyncio.get_running_loop().create_task(self._encode_and_queue(batch))
            self._encoding.add(task)
            task.add_done_callback(self._encoding.discard)

    async def _encode_and_queue(self, batch: PendingBatch) -> None:
        crop_format = replace(self.card.crop_format, codec=self._codec)
        try:
            await asyncio.get_running_loop().run_in_executor(None, batch.encode, crop_format)
        except Exception as error:
            self._fail(batch, error)
        else:
            self._queue(batch)

    def _queue(self, batch: PendingBatch) -> None:
        self._ledger.queue(batch)
        self._pump()

    async def close(self) -> None:
        """End the session. Batches still pending get SessionLost."""
        if self._transport is not None:
            self._transport.send(encode_header(Goodbye()))
        tasks = [*self._tasks, *self._encoding]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks = []
        self._give_up(SessionLost("the client was closed"))

    # Sessions

    async def _keep_sessions(self) -> None:
        """One session after the other, until closed or refused for good."""
        try:
            for address in itertools.cycle(self._addresses):
                try:
                    await self._open_session(address)
                    self._backoff.succeeded()
                    self._set_connected()
                    await self._receive_all()
                except TeacherFarmFault as fault:
                    if fault.retry == "never":
                        raise
                    log.info("session with %s over: %s", address, fault)
                    delay_s = self._backoff.failed(fault)
                    if self._card is None:
                        self._give_up_connecting_after(fault)
                finally:
                    self.stats.crops_resent += self._ledger.session_died()
                    await self._drop_transport()
                await asyncio.sleep(delay_s)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._give_up(error)
            if not isinstance(error, TeacherFarmFault | RuntimeError | ValueError):
                raise

    async def _open_session(self, address: Address) -> None:
        self._transport = self._open_transport(address, self.timeouts, self._teacher)
        hello = Hello(
            teacher=self._teacher,
            spec=self._asked_spec,
            codec=self._codec,
            api_key=self._api_key,
            expected_teacher_digest=self._expected_teacher,
            expected_artifact_digest=self._expected_artifact,
            student=host.gethostname(),
        )
        welcome, card = await shake_hands(self._transport, hello, within_s=self.timeouts.connect_s)
        self._expected_teacher, self._expected_artifact = card.teacher_digest, welcome.artifact_digest
        self._card, self._spec = card, self._asked_spec.resolve(card)
        self._record_dtype = self._spec.record_dtype(card)
        self._window_crops, self._slice_crops = welcome.window_crops, max(1, welcome.slice_crops)
        self._going_away, self._taken_crops = False, 0
        self.stats.sessions += 1
        self._pump()

    def _give_up_connecting_after(self, fault: TeacherFarmFault) -> None:
        """Before the first Welcome a wrong address is likelier than a bad moment: stop after ``connect_s``."""
        now_s = asyncio.get_running_loop().time()
        self._first_failure_s = self._first_failure_s or now_s
        if now_s - self._first_failure_s > self.timeouts.connect_s:
            places = ", ".join(map(str, self._addresses))
            raise type(fault)(f"no session with {places} within {self.timeouts.connect_s:g} s: {fault.message}")

    def _set_connected(self) -> None:
        if self._connected is not None and not self._connected.done():
            self._connected.set_result(None)

    async def _drop_transport(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    # Sending

    def _pump(self) -> None:
        """Send what fits the window."""
        transport = self._transport
        while transport is not None and self._slice_crops and not self._going_away:
            slice_ = self._ledger.next_to_send(window_crops=self._window_crops, slice_crops=self._slice_crops)
            if slice_ is None:
                return
            batch, first, num_crops = slice_.batch, slice_.first, slice_.num_crops
            header = Slice(
                batch_id=batch.id,
                first_row=first,
                num_crops=num_crops,
                taken_crops=self._taken_crops,
                keys=batch.keys(first, num_crops),
                crop_bytes=batch.crop_bytes(first, num_crops),
                priority=batch.priority,
            )
            payload = batch.payload(first, num_crops)
            self.stats.bytes_sent += len(payload)
            transport.send(encode_header(header), payload)

    # Receiving

    async def _receive_all(self) -> None:
        assert self._transport is not None
        transport = self._transport
        while self._ledger.awaits_answers or not self._going_away:
            header, payload = await transport.receive()
            match decode_header(header):
                case SliceLabels() as labels:
                    self._receive_labels(labels, payload)
                case SliceFault() as fault:
                    self._receive_fault(fault)
                case Pong(window_crops=window_crops):
                    self._window_crops = window_crops or self._window_crops
                case GoAway(reason=reason):
                    log.info("the server goes away: %s", reason)
                    self._going_away = True
                case other:
                    raise UnexpectedMessage(f"the server sent {type(other).__name__} in the middle of a session")
            self._pump()
        raise SessionLost("the server is draining")

    def _receive_labels(self, labels: SliceLabels, payload: Buffer) -> None:
        assert self._record_dtype is not None
        self.stats.bytes_received += len(payload)
        self._window_crops = labels.window_crops or self._window_crops
        slice_ = self._ledger.answered(labels.batch_id, labels.first_row)
        if slice_ is None:
            self.stats.late_answers += 1
            return
        batch, num_crops = slice_.batch, slice_.num_crops
        self._taken_crops += num_crops
        if labels.num_crops != num_crops or len(payload) != num_crops * self._record_dtype.itemsize:
            raise MalformedMessage(
                f"{num_crops} labels of {self._record_dtype.itemsize} bytes were due, got {labels.num_crops} in "
                f"{len(payload)} bytes"
            )
        if batch.given_up:
            self.stats.late_answers += 1
            self._ledger.close(batch)
            return
        batch.fill(labels.first_row, np.frombuffer(payload, self._record_dtype))
        if not batch.missing_crops:
            self._ledger.close(batch)
            self.stats.crops_answered += len(batch.pixels)
            batch.deliver(self._spec, self.card)

    def _receive_fault(self, answer: SliceFault) -> None:
        fault = answer.fault
        if not answer.num_crops:
            raise fault
        self._window_crops = answer.window_crops or self._window_crops
        slice_ = self._ledger.answered(answer.batch_id, answer.first_row)
        if slice_ is None:
            return
        if fault.retry == "never":
            self._fail(slice_.batch, fault)
        elif isinstance(fault, SessionLost):
            self._going_away = True
            self._ledger.send_again(slice_)
        else:
            asyncio.get_running_loop().call_later(max(fault.retry_after_s, 0.01), self._send_again, slice_)

    def _send_again(self, slice_: PendingSlice) -> None:
        self._ledger.send_again(slice_)
        self._pump()

    # Deadlines and ends

    async def _watch(self) -> None:
        """Act on starvation, and tell the server now and then that this student lives."""
        loop = asyncio.get_running_loop()
        pinged_s = warned_s = loop.time()
        while True:
            await asyncio.sleep(STARVATION_CHECK_S)
            now_s = loop.time()
            if now_s - pinged_s > PING_INTERVAL_S and self._transport is not None and self._slice_crops:
                pinged_s = now_s
                self._transport.send(encode_header(Ping(taken_crops=self._taken_crops)))
            starved = self._ledger.asked_before(now_s - self.timeouts.answer_s)
            if starved and self._on_starved == "wait":
                if now_s - warned_s > self.timeouts.answer_s:
                    warned_s = now_s
                    log.warning("no labels for %.0f s, still waiting: %r", now_s - starved[0].asked_s, self)
                continue
            for batch in starved:
                self._starve(batch, now_s)

    def _starve(self, batch: PendingBatch, now_s: float) -> None:
        self._ledger.close(batch)
        self.stats.crops_starved += batch.missing_crops
        self.stats.crops_answered += len(batch.pixels) - batch.missing_crops
        if self._on_starved == "skip" and self._card is not None:
            batch.deliver(self._spec, self._card)
        else:
            waited_s = now_s - batch.asked_s
            batch.fail(
                Starved(
                    f"{batch.missing_crops} of {len(batch.pixels)} crops got no labels for {waited_s:.1f} s from "
                    f"{', '.join(map(str, self._addresses))}. Is the farm up, and large enough? "
                    "on_starved='skip' goes on without them, 'wait' waits"
                )
            )

    def _fail(self, batch: PendingBatch, fault: BaseException) -> None:
        self._ledger.close(batch)
        self.stats.crops_failed += len(batch.pixels)
        batch.fail(fault)

    def _give_up(self, error: BaseException) -> None:
        if self._fatal is None:
            self._fatal = error
        for batch in self._ledger.close_all():
            self._fail(batch, error)
        if self._connected is not None and not self._connected.done():
            self._connected.set_exception(error)
            # Whoever awaits connect() gets it; nobody need.
            self._connected.exception()
