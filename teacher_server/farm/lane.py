"""One teacher's lane: its queue, its batcher and its backends, whose free slots pull the next teacher batch.

Knows no wire, no project rules and no label spec: crops go in, the graph's named outputs come out. Backends join and
leave while students wait: a new one simply pulls too, and what a lost one had under way goes back to the front.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.faults import BackendDied, BadTeacher, NotReady, PoisonBatch, TeacherFailed, TeacherFarmFault
from teacherfarm.protos.messages import FarmLoad
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.teacher_server.backends.backend import Backend, BackendUnreachable, FailedInCompany, GraphOutputs
from teacherfarm.teacher_server.farm.batcher import Batcher, TeacherBatch, WaitUntil
from teacherfarm.teacher_server.farm.lane_load import BusyTime, LoadMark, load_between
from teacherfarm.teacher_server.metrics import LaneMetrics
from teacherfarm.teacher_server.projects.project import Project

log = logging.getLogger(__name__)

KILLS_UNTIL_POISON = 3
PAUSE_AFTER_DEATH_S = 0.2
SLICES_UNDER_SUSPICION = 32
"""After a slice that made the teacher raise, so many of its stream run alone: no neighbour pays for splitting."""
MOST_SUSPECTS = 1024


LaneState = Literal["loading", "ready", "waiting", "failed", "closed"]


@dataclass(eq=False, slots=True)
class QueuedSlice:
    """A slice on its way through a lane.

    ``alone``: shares no teacher batch. ``suspect``: a backend was lost or failed while it was one of several under way,
    so the next one runs nothing beside it.
    """

    pixels: NDArray[Any]
    outputs: tuple[str, ...]
    project: str
    weight: float
    stream: str
    priority: int
    arrived_s: float
    answer: asyncio.Future[GraphOutputs]
    num_crops: int
    kills: int = 0
    alone: bool = False
    suspect: bool = False

    @property
    def abandoned(self) -> bool:
        return self.answer.done()


@dataclass(eq=False, slots=True)
class Member:
    """A backend that serves the lane, and its slots."""

    backend: Backend
    pullers: tuple[asyncio.Task[None], ...] = ()
    busy: int = 0
    leaving: bool = False


class Lane:
    """Serves one teacher. ``state``: loading until a first backend joined, then ready, or waiting while it has none.

    A waiting lane keeps its queue and takes more: how long to wait is the student's policy. Failed: its only backend
    cannot be run; closed for good.
    """

    def __init__(
        self,
        card: TeacherCard,
        *,
        metrics: LaneMetrics,
        preferred_batch: int = 1,
        longest_wait_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.card = card
        self.state: LaneState = "loading"
        self.fault: TeacherFarmFault | None = None
        self.largest_batch = 0
        self.provider_class = "unknown"
        self._metrics = metrics
        self._preferred_batch = preferred_batch
        self._longest_wait_s = longest_wait_s
        self._clock = clock
        self._batcher: Batcher[QueuedSlice] | None = None
        self._members: list[Member] = []
        self._pullers: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._suspects: dict[str, int] = {}
        self._busy = BusyTime()

    def __repr__(self) -> str:
        return (
            f"<Lane {self.card.name} {self.state}, {self.waiting_crops} crops waiting, "
            f"{sum(m.busy for m in self._members)} of {sum(len(m.pullers) for m in self._members)} slots busy>"
        )

    @property
    def waiting_crops(self) -> int:
        return self._batcher.waiting_crops if self._batcher else 0

    @property
    def backends(self) -> tuple[Backend, ...]:
        """What serves it at this moment."""
        return tuple(member.backend for member in self._members)

    @property
    def slots(self) -> int:
        """Teacher batches that can run at once."""
        return sum(len(member.pullers) for member in self._members)

    @property
    def busy_slot_s(self) -> float:
        """Seconds that slots were busy so far, added up."""
        return self._busy.seconds(self._clock())

    def load_mark(self) -> LoadMark:
        """What was counted so far, for :meth:`load_since`."""
        now_s = self._clock()
        return LoadMark(time_s=now_s, busy_s=self._busy.seconds(now_s), crops=self._metrics.crops)

    def load_since(self, mark: LoadMark) -> FarmLoad | None:
        """How busy this lane was since ``mark``; None right after it."""
        return load_between(mark, self.load_mark(), slots=self.slots, backends=len(self._members))

    async def start(self, backend: Backend, check: Callable[[Backend], Any]) -> None:
        """Load the only backend there will be, let ``check(backend)`` compare its golden answers, and let it join."""
        try:
            await backend.start()
            await check(backend)
        except TeacherFarmFault as fault:
            self.state, self.fault = "failed", fault
            await backend.close()
            raise
        except Exception as error:
            self.state = "failed"
            self.fault = BadTeacher(f"teacher {self.card.name!r} cannot be run ({error}): export it again")
            await backend.close()
            raise self.fault from error
        self.join(backend)

    def join(self, backend: Backend) -> None:
        """Let the slots of a started and checked backend pull, too.

        The first one settles the lane's largest teacher batch and what computes it. Raises BadTeacher when this one
        takes smaller teacher batches or computes on something else: a student's labels must not depend on who answers.
        """
        if self.state == "closed":
            raise NotReady(f"teacher {self.card.name!r} was closed")
        if self._batcher is None:
            self.largest_batch, self.provider_class = backend.largest_batch, backend.provider_class
            self._batcher = Batcher(
                largest=self.largest_batch,
                preferred=min(self._preferred_batch, self.largest_batch),
                longest_wait_s=self._longest_wait_s,
            )
        if backend.largest_batch < self.largest_batch:
            raise BadTeacher(
                f"takes at most {backend.largest_batch} crops at once, the lane of {self.card.name!r} forms teacher "
                f"batches of {self.largest_batch}: serve with --max-batch {backend.largest_batch}, or export alike"
            )
        if backend.provider_class != self.provider_class:
            raise BadTeacher(
                f"computes on {backend.provider_class}, the others of {self.card.name!r} on {self.provider_class}: "
                "their answers differ in the last bits. Give it a farm of its own, or this one it alone"
            )
        member = Member(backend)
        self._members.append(member)
        member.pullers = tuple(
            asyncio.create_task(self._pull(member), name=f"lane {self.card.name} slot {slot} of {backend!r}")
            for slot in range(backend.slots)
        )
        for puller in member.pullers:
            # The loop itself holds tasks weakly, and those of a lost member are in no list.
            self._pullers.add(puller)
            puller.add_done_callback(self._pullers.discard)
        self.state = "ready"

    async def leave(self, backend: Backend) -> None:
        """Let a backend pull no more and wait for the teacher batches that it has under way. It is not closed."""
        for member in self._members:
            if member.backend is backend:
                self._dismiss(member)
                # Not gather: who gives up waiting must not take their teacher batches along.
                await asyncio.wait(member.pullers)
                return

    async def label(
        self, project: Project, stream: str, pixels: NDArray[Any], outputs: tuple[str, ...], priority: int = 0
    ) -> GraphOutputs:
        """The graph's outputs for a slice [N, ...], N at most ``largest_batch``. Cancelling withdraws the slice."""
        batcher = self._batcher
        if batcher is None or self.state == "closed":
            raise self.fault or NotReady(f"teacher {self.card.name!r} is {self.state}", retry_after_s=1.0)
        now_s = self._clock()
        answer: asyncio.Future[GraphOutputs] = asyncio.get_running_loop().create_future()
        slice_ = QueuedSlice(
            pixels, outputs, project.name, project.weight, stream, priority, now_s, answer, len(pixels)
        )
        if self._suspects and stream in self._suspects:
            slice_.alone = True
            self._suspects[stream] -= 1
            if not self._suspects[stream]:
                del self._suspects[stream]
        batcher.push(slice_, now_s)
        if self._idle:
            self._wake_one()
        try:
            return await answer
        except asyncio.CancelledError:
            batcher.withdraw(slice_)
            raise

    async def close(self) -> None:
        """Stop pulling, fail what still waits, free the backends."""
        self.state = "closed"
        members, self._members = self._members, []
        pullers = tuple(self._pullers)
        for puller in pullers:
            puller.cancel()
        await asyncio.gather(*pullers, return_exceptions=True)
        while self._batcher is not None and isinstance(batch := self._batcher.next_batch(float("inf")), TeacherBatch):
            self._fail_closed(batch)
        await asyncio.gather(*(member.backend.close() for member in members))

    def _dismiss(self, member: Member) -> None:
        """No more of the queue for this backend; what it has under way may end."""
        if member.leaving:
            return
        member.leaving = True
        self._members.remove(member)
        if not self._members and self.state == "ready":
            self.state = "waiting"
        # Its idle slots look up and leave; those of others look up in vain.
        idle, self._idle = self._idle, []
        for waiter in idle:
            _wake(waiter)

    def _wake_one(self) -> None:
        while self._idle:
            waiter = self._idle.pop()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def _pull(self, member: Member) -> None:
        assert self._batcher is not None
        batcher, clock, loop = self._batcher, self._clock, asyncio.get_running_loop()
        while not member.leaving:
            now_s = clock()
            found = batcher.next_batch(now_s)
            if isinstance(found, TeacherBatch):
                # What is left over is another free slot's: this one will not look again before its batch is done.
                if self._idle and batcher.waiting_crops:
                    self._wake_one()
                member.busy += 1
                self._busy.begin(now_s)
                try:
                    await self._serve(member, found, now_s)
                finally:
                    member.busy -= 1
                    self._busy.end(clock())
                continue
            waiter: asyncio.Future[None] = loop.create_future()
            self._idle.append(waiter)
            if found is None:
                await waiter
            else:
                await self._wait_until(found, waiter)

    async def _wait_until(self, found: WaitUntil, waiter: asyncio.Future[None]) -> None:
        timer = asyncio.get_running_loop().call_later(max(0.0, found.time_s - self._clock()), _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            if waiter in self._idle:
                self._idle.remove(waiter)

    async def _serve(self, member: Member, batch: TeacherBatch[QueuedSlice], started_s: float) -> None:
        slices = batch.slices
        try:
            pixels = slices[0].pixels if len(slices) == 1 else np.concatenate([s.pixels for s in slices])
            # A suspect is always the only slice of its teacher batch.
            run = member.backend.run_alone if slices[0].suspect else member.backend.run
            outputs = await run(pixels, batch.outputs)
            _check_rows(outputs, batch)
        except BackendUnreachable as loss:
            self._lose(member, batch, loss)
        except BackendDied as fault:
            self._count_kill(batch, fault)
            await asyncio.sleep(PAUSE_AFTER_DEATH_S)
        except asyncio.CancelledError:
            self._fail_closed(batch)
            raise
        except FailedInCompany as error:
            if len(slices) == 1:
                self._ask_again_alone(batch)
            else:
                await self._isolate(member, batch, error)
        except Exception as error:
            await self._isolate(member, batch, error)
        else:
            self._answer(batch, outputs, started_s)

    def _answer(self, batch: TeacherBatch[QueuedSlice], outputs: GraphOutputs, started_s: float) -> None:
        slices = batch.slices
        self._metrics.teacher_batch(batch.num_crops, started_s - slices[0].arrived_s, self._clock() - started_s)
        if len(slices) == 1:
            if not slices[0].answer.done():
                slices[0].answer.set_result(outputs)
            return
        first = 0
        for slice_ in slices:
            rows = slice(first, first + slice_.num_crops)
            first = rows.stop
            if not slice_.answer.done():
                slice_.answer.set_result({name: outputs[name][rows] for name in batch.outputs})

    def _lose(self, member: Member, batch: TeacherBatch[QueuedSlice], loss: BackendUnreachable) -> None:
        """The backend is out; its slices are the next to be run elsewhere, and nothing is held against them."""
        if not member.leaving:
            log.warning("teacher %s lost %r: %s", self.card.name, member.backend, loss)
        self._dismiss(member)
        for slice_ in batch.slices:
            slice_.alone = slice_.alone or loss.under_way
            slice_.suspect = slice_.suspect or loss.under_way
        self._restore(batch)

    def _ask_again_alone(self, batch: TeacherBatch[QueuedSlice]) -> None:
        assert self._batcher is not None
        for slice_ in batch.slices:
            slice_.alone = slice_.suspect = True
            if not slice_.abandoned:
                self._batcher.push(slice_, self._clock())
                self._wake_one()

    def _restore(self, batch: TeacherBatch[QueuedSlice]) -> None:
        assert self._batcher is not None
        for slice_ in reversed(batch.slices):
            if not slice_.abandoned:
                self._batcher.restore(slice_, slice_.arrived_s)
                self._wake_one()

    def _count_kill(self, batch: TeacherBatch[QueuedSlice], fault: BackendDied) -> None:
        log.warning("backend of teacher %s died under %d crops: %s", self.card.name, batch.num_crops, fault)
        assert self._batcher is not None
        for slice_ in batch.slices:
            slice_.kills += 1
            # From now on it shares no teacher batch: who else was in this one must not be blamed twice.
            slice_.alone = True
            if slice_.kills >= KILLS_UNTIL_POISON:
                _fail(slice_, PoisonBatch(f"this slice killed its backend {slice_.kills} times: {fault}"))
            elif not slice_.abandoned:
                self._batcher.push(slice_, self._clock())
                self._wake_one()

    async def _isolate(self, member: Member, batch: TeacherBatch[QueuedSlice], error: Exception) -> None:
        if len(batch.slices) == 1:
            log.error("teacher %s failed on a slice", self.card.name, exc_info=error)
            if len(self._suspects) >= MOST_SUSPECTS:
                # The oldest, which may have ended: streams are not told apart from those that are quiet.
                del self._suspects[next(iter(self._suspects))]
            self._suspects[batch.slices[0].stream] = SLICES_UNDER_SUSPICION
            _fail(batch.slices[0], TeacherFailed(f"teacher {self.card.name!r} failed on this slice: {error}"))
            return
        middle = len(batch.slices) // 2
        try:
            for half in (batch.slices[:middle], batch.slices[middle:]):
                if wanted := tuple(slice_ for slice_ in half if not slice_.abandoned):
                    part = TeacherBatch(wanted, batch.outputs, sum(s.num_crops for s in wanted))
                    await self._serve(member, part, self._clock())
        except asyncio.CancelledError:
            self._fail_closed(batch)
            raise

    def _fail_closed(self, batch: TeacherBatch[QueuedSlice]) -> None:
        for slice_ in batch.slices:
            _fail(slice_, NotReady(f"teacher {self.card.name!r} was closed"))


def _check_rows(outputs: GraphOutputs, batch: TeacherBatch[QueuedSlice]) -> None:
    for name in batch.outputs:
        if len(outputs[name]) != batch.num_crops:
            raise ValueError(f"output {name!r} has {len(outputs[name])} rows for {batch.num_crops} crops")


def _fail(slice_: QueuedSlice, fault: TeacherFarmFault) -> None:
    if not slice_.answer.done():
        slice_.answer.set_exception(fault)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
