"""All teachers being served, each in its lane; knows which are ready and why others are not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from teacherfarm.protos.faults import NotReady, TeacherFarmFault, UnknownTeacher
from teacherfarm.protos.messages import TeacherSummary
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.teacher_server.backends.backend import Backend, BackendPool, EndpointState
from teacherfarm.teacher_server.farm.golden import check_golden_answers
from teacherfarm.teacher_server.farm.lane import Lane
from teacherfarm.teacher_server.farm.model_directory import ExportedTeacher, served_digest
from teacherfarm.teacher_server.metrics import Metrics

log = logging.getLogger(__name__)

RETRY_AFTER_S = 0.5


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """When lanes form teacher batches; see batcher.py."""

    preferred_batch: int = 1
    longest_wait_s: float = 0.0


class LaneRoster:
    """A lane whose backends a pool brings: each gives the golden answers before it joins."""

    def __init__(self, lane: Lane, golden_file: Path) -> None:
        self.card = lane.card
        self._lane = lane
        self._golden_file = golden_file

    async def admit(self, backend: Backend) -> None:
        """Check and join."""
        await check_golden_answers(self.card, self._golden_file, backend)
        self._lane.join(backend)

    async def dismiss(self, backend: Backend) -> None:
        """Leave, once its teacher batches under way ended."""
        await self._lane.leave(backend)


class Farm:
    """Teachers by name. ``make_backend`` chooses what runs an exported teacher here, unless a ``pool`` brings it."""

    def __init__(
        self,
        teachers: list[ExportedTeacher],
        make_backend: Callable[[ExportedTeacher, TeacherCard], Backend],
        *,
        metrics: Metrics,
        batches: BatchSettings,
        pool: BackendPool | None = None,
    ) -> None:
        self._metrics = metrics
        self._teachers = {teacher.name: teacher for teacher in teachers}
        self._faults: dict[str, TeacherFarmFault] = {t.name: t.fault for t in teachers if t.fault is not None}
        self._lanes = {
            teacher.name: Lane(
                teacher.card,
                metrics=metrics.lane(teacher.name),
                preferred_batch=batches.preferred_batch,
                longest_wait_s=batches.longest_wait_s,
            )
            for teacher in teachers
            if teacher.card is not None and teacher.fault is None
        }
        self._pool = pool
        self._pooling: asyncio.Task[None] | None = None
        self._backends: dict[str, Backend] = {}
        if pool is None:
            self._backends = {n: make_backend(self._teachers[n], lane.card) for n, lane in self._lanes.items()}
        for teacher in teachers:
            metrics.ready.labels(teacher.name).set(0)
        for name, lane in self._lanes.items():
            metrics.ready.labels(name).set_function(partial(_is_ready, lane))
            if pool is not None:
                metrics.endpoints.watch(name, partial(self._serving, name))
            metrics.waiting.labels(name).set_function(partial(_waiting_crops, lane))
            metrics.busy.watch(name, partial(_busy_slot_s, lane))
            metrics.slots.labels(name).set_function(partial(_slots, lane))
            metrics.backends.labels(name).set_function(partial(_num_backends, lane))

    def __repr__(self) -> str:
        return f"<Farm {', '.join(f'{t.name} {t.state}' for t in self.summaries())}>"

    @property
    def ready(self) -> bool:
        """Whether every teacher is served."""
        return not self._faults and all(lane.state == "ready" for lane in self._lanes.values())

    def summaries(self) -> list[TeacherSummary]:
        """Every teacher and its state."""
        summaries = []
        for name, teacher in self._teachers.items():
            lane = self._lanes.get(name)
            state = "failed" if name in self._faults or lane is None else lane.state
            digest = teacher.card.teacher_digest if teacher.card is not None else ""
            summaries.append(TeacherSummary(name=name, teacher_digest=digest, state=state))
        return summaries

    def endpoints(self) -> tuple[EndpointState, ...]:
        """Every endpoint of the pool for every teacher; none where teachers run here. For any thread."""
        return self._pool.states() if self._pool is not None else ()

    def missing(self) -> str | None:
        """Which teachers are not served now and why; None where all are. For any thread."""
        lacking = [f"{t.name} is {t.state}{self._why(t.name)}" for t in self.summaries() if t.state != "ready"]
        return ", ".join(lacking) or None

    async def start(self) -> None:
        """Load and check every teacher, one after another. Raises the fault of the last when none can be served.

        With a pool: until each endpoint was tried. What has none then may get one later.
        """
        if self._pool is not None:
            await self._start_pool(self._pool)
        for name, backend in self._backends.items():
            lane, golden_file = self._lanes[name], self._teachers[name].golden_file
            try:
                await lane.start(backend, partial(check_golden_answers, lane.card, golden_file))
            except TeacherFarmFault as error:
                self._faults[name] = error
            else:
                log.info("teacher %s is ready: %r", name, backend)
        for name, fault in self._faults.items():
            log.error("teacher %s is not served: %s", name, fault)
        if self._faults and len(self._faults) == len(self._teachers):
            raise next(iter(self._faults.values()))

    def lane(self, name: str) -> Lane:
        """The lane of a teacher (the only one where ``name`` is empty). Raises UnknownTeacher, NotReady, BadTeacher."""
        known = ", ".join(sorted(self._teachers))
        if not name and len(self._teachers) == 1:
            name = next(iter(self._teachers))
        if not name:
            raise UnknownTeacher(f"several teachers are served, name one of: {known}")
        if name not in self._teachers:
            raise UnknownTeacher(f"no teacher {name!r} here; served are: {known}")
        if name in self._faults:
            # Raised again and again, one exception would gather tracebacks without end.
            raise self._faults[name].with_traceback(None)
        lane = self._lanes[name]
        # One that lost its last backend keeps what is asked: how long to wait is the student's policy.
        if lane.state not in ("ready", "waiting"):
            raise NotReady(
                f"teacher {name!r} is {lane.state}, not ready yet{self._why(name)}", retry_after_s=RETRY_AFTER_S
            )
        return lane

    def artifact_digest(self, lane: Lane) -> str:
        """The digest of what a ready lane really runs."""
        return served_digest(lane.card, lane.provider_class)

    def read_head(self, lane: Lane, first: int, most: int) -> tuple[memoryview, int]:
        """A piece of a teacher's classifier and the whole file's size. Raises NoHead, DamagedArtifact."""
        return self._teachers[lane.card.name].read_head(first, most)

    async def close(self) -> None:
        """Close every lane."""
        if self._pooling is not None:
            self._pooling.cancel()
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))
        if self._pooling is not None:
            await asyncio.gather(self._pooling, return_exceptions=True)

    async def _start_pool(self, pool: BackendPool) -> None:
        rosters = [LaneRoster(lane, self._teachers[name].golden_file) for name, lane in self._lanes.items()]
        self._pooling = asyncio.create_task(self._run_pool(pool, rosters), name="pool")
        tried = asyncio.create_task(pool.tried())
        try:
            await asyncio.wait({self._pooling, tried}, return_when=asyncio.FIRST_COMPLETED)
            if self._pooling.done():
                self._pooling.result()
        finally:
            tried.cancel()
        if missing := self.missing():
            log.warning("not everything is served yet: %s", missing)

    async def _run_pool(self, pool: BackendPool, rosters: list[LaneRoster]) -> None:
        try:
            await pool.run(rosters)
        except Exception:
            # Nobody awaits it while the farm serves.
            log.exception("the pool ended: lost endpoints do not come back")
            raise

    def _why(self, name: str) -> str:
        """In brackets, what keeps each endpoint from serving a teacher."""
        if self._pool is None:
            return ""
        found = sorted((s for s in self._pool.states() if s.teacher == name), key=lambda s: s.address)
        reasons = "; ".join(f"{s.address} is {s.state}" + (f", {s.why}" if s.why else "") for s in found)
        return f" ({reasons or 'no Triton endpoint is known'})"

    def _serving(self, name: str) -> dict[str, bool]:
        return {s.address: s.state == "serving" for s in self.endpoints() if s.teacher == name}


def _is_ready(lane: Lane) -> float:
    return lane.state == "ready"


def _waiting_crops(lane: Lane) -> float:
    return lane.waiting_crops


def _busy_slot_s(lane: Lane) -> float:
    return lane.busy_slot_s


def _slots(lane: Lane) -> float:
    return lane.slots


def _num_backends(lane: Lane) -> float:
    return len(lane.backends)
