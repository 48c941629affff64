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
from teacherfarm.protos.classifier_head import ClassifierHead, require_head
from teacherfarm.protos.crop import Codec, CropBatch
from teacherfarm.protos.faults import (
    BadReference,
    SessionLost,
    Starved,
    TeacherFarmFault,
)
from teacherfarm.protos.messages import Hello
from teacherfarm.protos.references import CropReferences
from teacherfarm.protos.soft_label import LabelSpec, SoftLabels
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.accounts import ClientStats, Room
from teacherfarm.student.batch import Delivery, Part, PendingBatch
from teacherfarm.student.by_reference import ByReference, as_references
from teacherfarm.student.handshake import shake_hands
from teacherfarm.student.ledger import Ledger, PendingSlice
from teacherfarm.student.refused_crops import RefusedCrops
from teacherfarm.student.retry import Backoff
from teacherfarm.student.session import Session
from teacherfarm.student.settings import (
    WINDOW_CROPS,
    Address,
    OnStarved,
    Timeouts,
    check_digest,
    choose_api_key,
    parse_addresses,
    preference,
)
from teacherfarm.student.teacher_head import Ask, fetch_head
from teacherfarm.student.transports.connect import open_transport
from teacherfarm.student.transports.transport import Transport
from teacherfarm.student.waits import Reporter

log = logging.getLogger(__name__)

PING_INTERVAL_S = 2.0
STARVATION_CHECK_S = 0.1
SESSION_CHECK_S = 0.05
OpenTransport = Callable[[Address, Timeouts, str], Transport]
"""A transport for one session with an address, and the teacher's name for those that have no server to tell it to."""


class AsyncTeacherClient:
    """A student's connection to one teacher, for one event loop: ``async with AsyncTeacherClient(...) as teacher``.

    ``address``: one or several, separated by commas. ``teacher``: its name; may be empty where only one is served.
    ``api_key``: what the farm's owner gave out (default: the environment's TEACHERFARM_API_KEY).
    ``digest``: the teacher digest (8 first digits or more) to insist on; otherwise the first session's is pinned.
    ``spec``: what to ask for. ``window``: most crops asked and not yet answered (with the blocking client: not yet
    collected). ``on_starved``: what to do when a batch got no labels for ``timeouts.answer_s``: "wait" on (and log),
    "raise" Starved, or "skip" (labels with weight 0 for the crops without answer). ``codec``: "raw", or "jpeg" (quality
    95, a seventh of the bytes) where the link is slow; labels then are those of the decoded crops. ``by_reference``:
    the server has the images, too, and is told which crops to cut (20 bytes each).
    """

    def __init__(
        self,
        address: str,
        teacher: str = "",
        *,
        api_key: str | None = None,
        digest: str = "",
        spec: LabelSpec | None = None,
        window: int | None = None,
        timeouts: Timeouts | None = None,
        on_starved: OnStarved = "wait",
        codec: Codec = "raw",
        by_reference: ByReference | None = None,
        open_transport: OpenTransport = open_transport,
    ) -> None:
        if codec not in ("raw", "jpeg"):
            raise ValueError(f"codec is 'raw' or 'jpeg', got {codec!r}")
        if by_reference is not None and codec != "raw":
            raise ValueError("by_reference sends the few crops that it must send raw: leave codec out")
        if on_starved not in ("wait", "raise", "skip"):
            raise ValueError(f"on_starved is 'wait', 'raise' or 'skip', got {on_starved!r}")
        self.timeouts = timeouts or Timeouts()
        self.room = Room(WINDOW_CROPS if window is None else window)
        self.stats = ClientStats()
        self.reporter: Reporter | None = None
        """Reports how long its user waited; set by whoever can tell."""
        self._addresses = preference(parse_addresses(address), teacher)
        self._teacher = teacher
        self._api_key = choose_api_key(api_key)
        self._asked_spec = spec or LabelSpec()
        self._on_starved = on_starved
        self._codec = codec
        self.by_reference = by_reference
        self._ids = itertools.count(1)
        self._refused = RefusedCrops(
            by_reference, ids=self._ids, complete=self._complete, fail=self._fail, send=self._send_part
        )
        self._open_transport = open_transport
        self._expected_teacher = check_digest(digest)
        self._expected_artifact = ""
        self._card: TeacherCard | None = None
        self._spec = self._asked_spec
        self._ledger = Ledger()
        self._session: Session | None = None
        self._fatal: BaseException | None = None
        self._connected: asyncio.Future[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._encoding: set[asyncio.Task[None]] = set()
        self._room_changed = asyncio.Event()
        self._backoff = Backoff(random.random())
        self._connecting_since_s = 0.0
        self._head: ClassifierHead | None = None
        self._head_content = bytearray()
        self._head_turn = asyncio.Lock()

    def __repr__(self) -> str:
        state = "failed" if self._fatal else "connected" if self._session else "not connected"
        return (
            f"<AsyncTeacherClient {self._teacher or '(only teacher)'} {state}, {len(self._ledger)} batches "
            f"pending, {self._ledger.sent_crops} crops in flight, {self.stats.sessions} session(s)>"
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
            if self._fatal is not None:
                raise self._fatal
            keep_large_buffers()
            loop = asyncio.get_running_loop()
            self._connected = loop.create_future()
            self._connecting_since_s = loop.time()
            self._tasks = [
                loop.create_task(self._keep_sessions(), name="teacher client sessions"),
                loop.create_task(self._watch(), name="teacher client watch"),
            ]
        await asyncio.shield(self._connected)

    async def head(self) -> ClassifierHead:
        """The teacher's linear classifier, asked for once and kept. Raises NoHead where it cannot be had, Starved where
        it did not come within ``timeouts.answer_s``.
        """
        await self.connect()
        require_head(self.card)
        async with self._head_turn:
            if self._head is None:
                try:
                    async with asyncio.timeout(self.timeouts.answer_s):
                        self._head = await fetch_head(self._await_session, self.card, self._api_key, self._head_content)
                except TimeoutError as error:
                    places = ", ".join(map(str, self._addresses))
                    waited = f"within {self.timeouts.answer_s:g} s from {places}"
                    raise Starved(f"no classifier of {self.card.name!r} {waited}. Is the farm up?") from error
        return self._head

    async def _await_session(self) -> Ask:
        while self._session is None:
            if self._fatal is not None:
                raise self._fatal
            await asyncio.sleep(SESSION_CHECK_S)
        return self._session.ask

    async def label(self, crops: NDArray[Any] | CropReferences, *, keys: bytes = b"", priority: int = 0) -> SoftLabels:
        """Soft labels of crops [N, H, W, C], in order; waits for room and for the answer."""
        return await (await self.submit(crops, keys=keys, priority=priority))

    async def submit(
        self, crops: NDArray[Any] | CropReferences, *, keys: bytes = b"", priority: int = 0
    ) -> asyncio.Future[SoftLabels]:
        """Ask and do not wait for the answer, only for room in the window. ``crops`` must not change until answered."""
        await self.connect()
        batch = self.checked(crops, keys, priority)
        while not self.room.take(len(batch)):
            self._room_changed.clear()
            await self._room_changed.wait()
        answer: asyncio.Future[SoftLabels] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self.collected(len(batch)))
        self.enqueue(batch, answer)
        return answer

    def checked(self, crops: Any, keys: bytes, priority: int) -> CropBatch | CropReferences:
        """Pixels or references as a batch. Raises what they would be refused for. Needs the first session."""
        references = as_references(crops)
        if references is not None:
            if self.by_reference is None:
                raise BadReference("crops by reference need TeacherClient(..., by_reference=ByReference(...))")
            self.by_reference.check(references)
            return replace(references, priority=priority)
        self.card.crop_format.check(crops)
        return CropBatch(pixels=crops, keys=keys, priority=priority)

    def collected(self, num_crops: int) -> None:
        """So many crops' labels were collected: there is room for as many more."""
        self.room.give_back(num_crops)
        self._room_changed.set()

    def enqueue(self, crops: CropBatch | CropReferences, delivery: Delivery) -> None:
        """Take a checked batch for which there was room; ``delivery`` gets labels or a fault, exactly once."""
        self.stats.crops_asked += len(crops)
        by_reference = isinstance(crops, CropReferences)
        batch = PendingBatch(
            next(self._ids),
            crops if isinstance(crops, CropReferences) else np.ascontiguousarray(crops.pixels),
            b"" if isinstance(crops, CropReferences) else crops.keys,
            crops.priority,
            delivery,
            asyncio.get_running_loop().time(),
        )
        if self._fatal is not None:
            self._fail(batch, self._fatal)
            return
        self._ledger.open(batch)
        try:
            if self._codec == "raw" or by_reference:
                self._queue(batch)
            else:
                task = asyncio.get_running_loop().create_task(self._encode_and_queue(batch))
                self._encoding.add(task)
                task.add_done_callback(self._encoding.discard)
        except Exception as error:
            # On the blocking client's loop nobody else would hear of it.
            self._fail(batch, error)
            raise

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
        if self._session is not None:
            self._session.pump()

    def _send_again(self, slice_: PendingSlice) -> None:
        self._ledger.send_again(slice_)
        if self._session is not None:
            self._session.pump()

    def _complete(self, batch: PendingBatch) -> None:
        """All answers are there."""
        self._ledger.close(batch)
        if not isinstance(batch, Part):
            self.stats.crops_answered += len(batch.crops)
        batch.deliver(self._spec, self.card)

    def _send_part(self, part: PendingBatch) -> None:
        self._ledger.open(part)
        self._queue(part)

    async def close(self) -> None:
        """End the session. Batches still pending get SessionLost."""
        if self._session is not None:
            self._session.say_goodbye()
        tasks = [*self._tasks, *self._encoding, *self._refused.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks = []
        self._give_up(SessionLost("the client was closed"))

    # Sessions

    async def _keep_sessions(self) -> None:
        """One session after the other, until closed or refused for good."""
        try:
            refusals = 0
            for address in itertools.cycle(self._addresses):
                transport = self._open_transport(address, self.timeouts, self._teacher)
                try:
                    self._session = await self._greet(transport)
                    refusals = 0
                    self._backoff.succeeded()
                    self._set_connected()
                    await self._session.run()
                except TeacherFarmFault as fault:
                    if fault.retry == "never":
                        # One of several alternatives may be wrong, or not up to date, while another is restarted.
                        refusals += 1
                        if self._session is not None or refusals >= len(self._addresses):
                            raise
                    else:
                        refusals = 0
                    log.info("session with %s over: %s", address, fault)
                    delay_s = self._backoff.failed(fault)
                    if self._card is None:
                        self._give_up_connecting_after(fault)
                finally:
                    if self._session is not None:
                        self._session.end()
                    self._session = None
                    self.stats.crops_resent += self._ledger.session_died()
                    await transport.close()
                await asyncio.sleep(delay_s)
        except asyncio.CancelledError:
            raise
        except (TeacherFarmFault, RuntimeError, ValueError) as error:
            # Refused for good, or told so by a transport: whoever asks for labels gets it.
            self._give_up(error)
        except Exception as error:
            log.exception("undeclared error of the client's session")
            self._give_up(error)

    async def _greet(self, transport: Transport) -> Session:
        hello = Hello(
            teacher=self._teacher,
            spec=self._asked_spec,
            codec=self._codec if self.by_reference is None else "reference",
            samples=None if self.by_reference is None else self.by_reference.view,
            api_key=self._api_key,
            expected_teacher_digest=self._expected_teacher,
            expected_artifact_digest=self._expected_artifact,
            student=host.gethostname(),
        )
        welcome, card = await shake_hands(transport, hello, within_s=self.timeouts.connect_s)
        self._expected_teacher, self._expected_artifact = card.teacher_digest, welcome.artifact_digest
        self._card, self._spec = card, self._asked_spec.resolve(card)
        self.stats.sessions += 1
        log.info("session %s with teacher %s", welcome.session_id, card.name)
        return Session(
            transport,
            welcome,
            card,
            self._spec,
            most_crops=self.room.window_crops,
            ledger=self._ledger,
            stats=self.stats,
            send_again=self._send_again,
            complete=self._complete,
            refused=self._refused.act,
        )

    def _give_up_connecting_after(self, fault: TeacherFarmFault) -> None:
        """Before the first Welcome a wrong address is likelier than a bad moment: stop after ``connect_s``."""
        if asyncio.get_running_loop().time() - self._connecting_since_s > self.timeouts.connect_s:
            places = ", ".join(map(str, self._addresses))
            advice = ""
            if isinstance(fault, SessionLost):
                doctor = f"teacherfarm doctor {self._addresses[0]}"
                advice = f"; is a server running there, with this port for this wire? `{doctor}` looks"
            raise type(fault)(f"no session with {places} within {self.timeouts.connect_s:g} s: {fault.message}{advice}")

    def _set_connected(self) -> None:
        if self._connected is not None and not self._connected.done():
            self._connected.set_result(None)

    # Deadlines and ends

    async def _watch(self) -> None:
        try:
            await self._watch_for_ever()
        except Exception as error:
            # Unwatched, the session would die of silence and starvation go unnoticed.
            log.exception("undeclared error of the client's watch")
            self._give_up(error)

    async def _watch_for_ever(self) -> None:
        """Act on starvation, and tell the server now and then that this student lives."""
        loop = asyncio.get_running_loop()
        pinged_s = warned_s = loop.time()
        while True:
            await asyncio.sleep(STARVATION_CHECK_S)
            now_s = loop.time()
            if now_s - pinged_s > PING_INTERVAL_S and self._session is not None:
                pinged_s = now_s
                self._session.ping(self.reporter.report(self.stats.crops_answered) if self.reporter else None)
            self._ledger.forget_given_up()
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
        self.stats.crops_answered += len(batch.crops) - batch.missing_crops
        if self._on_starved == "skip" and self._card is not None:
            batch.deliver(self._spec, self._card)
        else:
            waited_s = now_s - batch.asked_s
            batch.fail(
                Starved(
                    f"{batch.missing_crops} of {len(batch.crops)} crops got no labels for {waited_s:.1f} s "
                    f"from {', '.join(map(str, self._addresses))}. Is the farm up, and large enough? "
                    "on_starved='skip' goes on without them, 'wait' waits"
                )
            )

    def _fail(self, batch: PendingBatch, fault: BaseException) -> None:
        self._ledger.close(batch)
        self.stats.crops_failed += len(batch.crops)
        batch.fail(fault)

    def _give_up(self, error: BaseException) -> None:
        if self._fatal is None:
            # Without its traceback, which would keep frames and their crops; it is raised again and again.
            self._fatal = error.with_traceback(None)
        for batch in self._ledger.close_all():
            self._fail(batch, error)
        if self._connected is not None and not self._connected.done():
            self._connected.set_exception(error)
            # Whoever awaits connect() gets it; nobody need.
            self._connected.exception()
