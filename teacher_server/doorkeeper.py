"""Who gets in and how much at once: API keys, teachers allowed, streams, and the pace that a project's quota sets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from teacherfarm.protos.faults import NotAllowed, QuotaExceeded, Unauthenticated, UnknownTeacher
from teacherfarm.protos.messages import TeacherSummary
from teacherfarm.teacher_server.credit import UNBOUNDED, Credit
from teacherfarm.teacher_server.farm.farm import Farm
from teacherfarm.teacher_server.farm.lane import Lane
from teacherfarm.teacher_server.metrics import Metrics
from teacherfarm.teacher_server.projects.project import Project
from teacherfarm.teacher_server.projects.projects_file import ProjectEntry
from teacherfarm.teacher_server.projects.quota import Quota, Refusal
from teacherfarm.teacher_server.projects.registry import Projects

# Names of their own: tests let time pass by them.
_clock, _sleep = time.monotonic, asyncio.sleep

STREAMS_RETRY_S = 2.0
NOBODY = "-"
"""The metrics' project of those who have none; no project can be called so."""


class Doorkeeper:
    """Applies the projects' rules to sessions; counts what it refuses, by project and reason."""

    def __init__(self, projects: Projects, farm: Farm, metrics: Metrics) -> None:
        self._projects = projects
        self._farm = farm
        self._refusals = metrics.refusals
        self._open: dict[Project, set[Credit]] = {}

    def __repr__(self) -> str:
        return f"<Doorkeeper {self._projects!r}>"

    def authenticate(self, api_key: str) -> tuple[Project, str]:
        """The project of a key, and the key's digest. Raises Unauthenticated."""
        try:
            return self._projects.authenticate(api_key)
        except Unauthenticated:
            self._refusals.labels(NOBODY, "key").inc()
            raise

    def teachers(self, project: Project) -> list[TeacherSummary]:
        """The teachers that a project may use, and their states."""
        return [teacher for teacher in self._farm.summaries() if project.may_use(teacher.name)]

    def lane(self, project: Project, name: str) -> Lane:
        """A teacher's lane. A name may be left out where there is only one that the project may use.

        A project with a list of teachers hears nothing of the others: not whether there are any.
        """
        if "*" in project.allowance.teachers:
            return self._farm.lane(name)
        allowed = [teacher.name for teacher in self.teachers(project)]
        if not name and len(allowed) == 1:
            return self._farm.lane(allowed[0])
        if name in allowed:
            return self._farm.lane(name)
        choice = f"; it may use: {', '.join(allowed)}" if allowed else "; none that it may use is served here"
        if not name or project.may_use(name):
            raise UnknownTeacher(f"project {project.name!r} finds no teacher {name!r} here{choice}")
        self._refusals.labels(project.name, "teacher").inc()
        raise NotAllowed(f"project {project.name!r} may not use a teacher {name!r}{choice}")

    def check_dataset(self, project: Project, dataset: str) -> None:
        """Raises NotAllowed where a project may not name crops of a data set; whether there is one it does not hear."""
        if not project.may_name(dataset):
            self._refusals.labels(project.name, "dataset").inc()
            raise NotAllowed(
                f"project {project.name!r} may not name crops of a data set {dataset!r}: see 'datasets' in its table"
            )

    def check_streams(self, project: Project) -> None:
        """Raises QuotaExceeded where one more session would be too many."""
        most, streams = self._projects.most_streams(project), len(self._open.get(project, ()))
        if most and streams >= most:
            self._refusals.labels(project.name, "streams").inc()
            raise QuotaExceeded(
                f"project {project.name!r} has {streams} of {most} streams open: close one, or raise 'streams' in the "
                "projects file",
                retry_after_s=STREAMS_RETRY_S,
            )

    def entered(self, project: Project, credit: Credit) -> None:
        """A session was opened."""
        self._open.setdefault(project, set()).add(credit)
        self._share_window(project)

    def left(self, project: Project, credit: Credit) -> None:
        """A session was closed."""
        credits = self._open[project]
        credits.discard(credit)
        self._share_window(project)
        if not credits:
            del self._open[project]

    def update(self, entries: Iterable[ProjectEntry]) -> None:
        """The projects file changed: weights, quotas and windows follow at once; :meth:`check_stay` is for the rest."""
        self._projects.update(entries)
        for project in self._open:
            self._share_window(project)

    def check_stay(self, project: Project, key_digest: str, teacher: str) -> None:
        """Raises the fault that ends an open session which would not be opened again, after an update."""
        if not self._projects.admits(project, key_digest):
            raise Unauthenticated("this session's API key was revoked: ask the farm's owner for a new one")
        if not project.may_use(teacher):
            raise NotAllowed(f"project {project.name!r} may no longer use teacher {teacher!r}")

    @asynccontextmanager
    async def pace(self, project: Project, quota: Quota, num_crops: int) -> AsyncIterator[None]:
        """Wait until the quota has room for a slice, and count it meanwhile. QuotaExceeded where that is long."""
        verdict = quota.admit(num_crops, _clock(), num_sessions=len(self._open.get(project, ())))
        if isinstance(verdict, Refusal):
            self._refusals.labels(project.name, verdict.limit).inc()
            limit = getattr(project.allowance, verdict.limit)
            raise QuotaExceeded(
                f"project {project.name!r} has used up its {limit:g} {verdict.limit.replace('_', ' ')} for now: come "
                f"back in {verdict.retry_after_s:.2f} s",
                retry_after_s=verdict.retry_after_s,
            )
        try:
            if verdict:
                await _sleep(verdict)
            yield
        finally:
            quota.release(num_crops)

    def _share_window(self, project: Project) -> None:
        """A student that keeps to its window is paced and not refused."""
        credits = self._open[project]
        window = project.quota.window_crops if project.quota is not None else UNBOUNDED
        for credit in credits:
            credit.most_crops = int(min(UNBOUNDED, window)) // len(credits)
