"""All teachers being served, each in its lane; knows which are ready and why others are not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from teacherfarm.protos.faults import NotReady, TeacherFarmFault, UnknownTeacher
from teacherfarm.protos.messages import TeacherSummary
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.teacher_server.backends.backend import Backend
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


class Farm:
    """Teachers by name. ``make_backend`` chooses what runs an exported teacher."""

    def __init__(
        self,
        teachers: list[ExportedTeacher],
        make_backend: Callable[[ExportedTeacher, TeacherCard], Backend],
        *,
        metrics: Metrics,
        batches: BatchSettings,
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
        self._backends = {name: make_backend(self._teachers[name], lane.card) for name, lane in self._lanes.items()}
        for teacher in teachers:
            metrics.ready.labels(teacher.name).set(0)
        for name, lane in self._lanes.items():
            metrics.waiting.labels(name).set_function(partial(_waiting_crops, lane))
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

    async def start(self) -> None:
        """Load and check every teacher, one after another. Raises the fault of the last when none can be served."""
        for name, lane in self._lanes.items():
            golden_file = self._teachers[name].golden_file
            try:
                await lane.start(self._backends[name], partial(check_golden_answers, lane.card, golden_file))
            except TeacherFarmFault as error:
                self._faults[name] = error
            else:
                self._metrics.ready.labels(name).set(1)
                log.info("teacher %s is ready: %r", name, self._backends[name])
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
        if lane.state != "ready":
            raise NotReady(f"teacher {name!r} is {lane.state}, not ready yet", retry_after_s=RETRY_AFTER_S)
        return lane

    def artifact_digest(self, lane: Lane) -> str:
        """The digest of what a ready lane really runs."""
        return served_digest(lane.card, lane.provider_class)

    async def close(self) -> None:
        """Close every lane."""
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))


def _waiting_crops(lane: Lane) -> float:
    return lane.waiting_crops


def _slots(lane: Lane) -> float:
    return lane.slots


def _num_backends(lane: Lane) -> float:
    return len(lane.backends)
