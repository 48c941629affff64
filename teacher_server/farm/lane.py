"""One teacher's lane: its queue, its batcher and its backend, whose free slots pull the next teacher batch.

Knows no wire, no project rules and no label spec: crops go in, the graph's named outputs come out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.faults import BackendDied, BadTeacher, NotReady, PoisonBatch, TeacherFailed, TeacherFarmFault
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.teacher_server.backends.backend import Backend, GraphOutputs
from teacherfarm.teacher_server.farm.batcher import Batcher, TeacherBatch, WaitUntil
from teacherfarm.teacher_server.metrics import LaneMetrics
from teacherfarm.teacher_server.projects.project import Project

log = logging.getLogger(__name__)

KILLS_UNTIL_POISON = 3
PAUSE_AFTER_DEATH_S = 0.2
SLICES_UNDER_SUSPICION = 32
"""After a slice that made the teacher raise, so many of its stream run alone: no neighbour pays for splitting."""
MOST_SUSPECTS = 1024


@dataclass(eq=False, slots=True)
class QueuedSlice:
    """A slice on its way through a lane."""

    pixels: NDArray[Any]
    outputs: tuple[str, ...]
    project: str
    weight: float
    stream: str
    priority: int
    arrived_s: float
    answer: asyncio.Future[GraphOutputs]
    kills: int = 0
    alone: bool = False
    num_crops: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_crops = len(self.pixels)

    @property
    def abandoned(self) -> bool:
        return self.answer.done()


class Lane:
    """Serves one teacher. ``state`` is loading until :meth:`start` has checked the teacher, then ready or failed."""

    def __init__(
        self,
        card: TeacherCard,
        backend: Backend,
        *,
        metrics: LaneMetrics,
        preferred_batch: int = 1,
        longest_wait_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.card = card
        self.backend = backend
        self.state: Literal["loading", "ready", "failed", "closed"] = "loading"
        self.fault: TeacherFarmFault | None = None
        self._metrics = metrics
        self._preferred_batch = preferred_batch
        self._longest_wait_s = longest_wait_s
        self._clock = clock
        self._batcher: Batcher[QueuedSlice] | None = None
        self._pullers: list[asyncio.Task[None]] = []
        self._idle: list[asyncio.Future[None]] = []
        self._busy_slots = 0
        self._suspects: dict[str, int] = {}

    def __repr__(self) -> str:
        return (
            f"<Lane {self.card.name} {self.state}, {self.waiting_crops} crops waiting, "
            f"{self._busy_slots} of {len(self._pullers)} slots busy>"
        )

    @property
    def waiting_crops(self) -> int:
        return self._batcher.waiting_crops if self._batcher else 0

    @property
    def largest_batch(self) -> int:
        return self.backend.largest_batch

    async def start(self, check: Callable[[Backend], Any]) -> None:
        """Load the teacher, let ``check(backend)`` compare its golden answers, and start pulling."""
        try:
            await self.backend.start()
            await check(self.backend)
        except TeacherFarmFault as fault:
            self.state, self.fault = "failed", fault
            await self.backend.close()
            raise
        except Exception as error:
            self.state = "failed"
            self.fault = BadTeacher(f"teacher {self.card.name!r} cannot be run ({error}): export it again")
            raise self.fault from error
        largest = self.backend.largest_batch
        self._batcher = Batcher(
            largest=largest,
            preferred=min(self._preferred_batch, largest),
            longest_wait_s=self._longest_wait_s,
        )
        self._pullers = [
            asyncio.create_task(self._pull(), name=f"lane {self.card.name} slot {slot}")
            for slot in range(self.backend.slots)
        ]
        self.state = "ready"

    async def label(
        self, project: Project, stream: str, pixels: NDArray[Any], outputs: tuple[str, ...], priority: int = 0
    ) -> GraphOutputs:
        """The graph's outputs for a slice [N, ...], N at most ``largest_batch``. Cancelling withdraws the slice."""
        if self._batcher is None or self.state != "ready":
            raise self.fault or NotReady(f"teacher {self.card.name!r} is {self.state}", retry_after_s=1.0)
        slice_ = QueuedSlice(
            pixels=pixels,
            outputs=outputs,
            project=project.name,
            weight=project.weight,
            stream=stream,
            priority=priority,
            arrived_s=self._clock(),
            answer=asyncio.get_running_loop().create_future(),
        )
        if stream in self._suspects:
            slice_.alone = True
            self._suspects[stream] -= 1
            if not self._suspects[stream]:
                del self._suspects[stream]
        self._queue(slice_)
        try:
            return await slice_.answer
        except asyncio.CancelledError:
            self._batcher.withdraw(slice_)
            raise

    async def close(self) -> None:
        """Stop pulling, fail what still waits, free the backend."""
        self.state = "closed"
        for puller in self._pullers:
            puller.cancel()
        await asyncio.gather(*self._pullers, return_exceptions=True)
        while self._batcher is not None and isinstance(batch := self._batcher.next_batch(float("inf")), TeacherBatch):
            self._fail_closed(batch)
        await self.backend.close()

    def _queue(self, slice_: QueuedSlice) -> None:
        assert self._batcher is not None
        self._batcher.push(slice_, self._clock())
        self._wake_one()

    def _wake_one(self) -> None:
        while self._idle:
            waiter = self._idle.pop()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def _pull(self) -> None:
        while True:
            batch = await self._next_batch()
            self._busy_slots += 1
            try:
                await self._serve(batch)
            finally:
                self._busy_slots -= 1

    async def _next_batch(self) -> TeacherBatch[QueuedSlice]:
        assert self._batcher is not None
        while True:
            match self._batcher.next_batch(self._clock()):
                case TeacherBatch() as batch:
                    # What is left over is another free slot's: this one will not look again before its batch is done.
                    if self._batcher.waiting_crops:
                        self._wake_one()
                    return batch
                case WaitUntil(time_s):
                    await self._wait(max(0.0, time_s - self._clock()))
                case None:
                    await self._wait(None)

    async def _wait(self, timeout_s: float | None) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(waiter)
        timer = None
        if timeout_s is not None:
            timer = asyncio.get_running_loop().call_later(timeout_s, _wake, waiter)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            if waiter in self._idle:
                self._idle.remove(waiter)

    async def _serve(self, batch: TeacherBatch[QueuedSlice]) -> None:
        started_s = self._clock()
        try:
            pixels = (
                batch.slices[0].pixels if len(batch.slices) == 1 else np.concatenate([s.pixels for s in batch.slices])
            )
            outputs = await self.backend.run(pixels, batch.outputs)
            _check_rows(outputs, batch)
        except BackendDied as fault:
            self._count_kill(batch, fault)
            await asyncio.sleep(PAUSE_AFTER_DEATH_S)
        except asyncio.CancelledError:
            self._fail_closed(batch)
            raise
        except Exception as error:
            await self._isolate(batch, error)
        else:
            self._answer(batch, outputs, started_s)

    def _answer(self, batch: TeacherBatch[QueuedSlice], outputs: GraphOutputs, started_s: float) -> None:
        self._metrics.teacher_batch(batch.num_crops, started_s - batch.slices[0].arrived_s, self._clock() - started_s)
        if len(batch.slices) == 1:
            if not batch.slices[0].answer.done():
                batch.slices[0].answer.set_result(outputs)
            return
        first = 0
        for slice_ in batch.slices:
            rows = slice(first, first + slice_.num_crops)
            first = rows.stop
            if not slice_.answer.done():
                slice_.answer.set_result({name: outputs[name][rows] for name in batch.outputs})

    def _count_kill(self, batch: TeacherBatch[QueuedSlice], fault: BackendDied) -> None:
        log.warning("backend of teacher %s died under %d crops: %s", self.card.name, batch.num_crops, fault)
        for slice_ in batch.slices:
            slice_.kills += 1
            # From now on it shares no teacher batch: who else was in this one must not be blamed twice.
            slice_.alone = True
            if slice_.kills >= KILLS_UNTIL_POISON:
                _fail(slice_, PoisonBatch(f"this slice killed its backend {slice_.kills} times: {fault}"))
            elif not slice_.abandoned:
                self._queue(slice_)

    async def _isolate(self, batch: TeacherBatch[QueuedSlice], error: Exception) -> None:
        if len(batch.slices) == 1:
            log.error("teacher %s failed on a slice", self.card.name, exc_info=error)
            if len(self._suspects) < MOST_SUSPECTS:
                self._suspects[batch.slices[0].stream] = SLICES_UNDER_SUSPICION
            _fail(batch.slices[0], TeacherFailed(f"teacher {self.card.name!r} failed on this slice: {error}"))
            return
        middle = len(batch.slices) // 2
        try:
            for half in (batch.slices[:middle], batch.slices[middle:]):
                if wanted := tuple(slice_ for slice_ in half if not slice_.abandoned):
                    await self._serve(TeacherBatch(wanted, batch.outputs, sum(s.num_crops for s in wanted)))
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
