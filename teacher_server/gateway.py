"""The path of a crop batch through the server: admitted, claimed, labelled, answered. Knows no wire, no model library.

A session is opened once (project, teacher, label spec and crop format are fixed from then on); each slice is one call.
"""

from __future__ import annotations

import hmac
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from teacherfarm.label_store.label_store import LabelStore
from teacherfarm.protos.crop import CropFormat
from teacherfarm.protos.faults import (
    DigestMismatch,
    GoingAway,
    Overloaded,
    WrongBatchSize,
)
from teacherfarm.protos.messages import FarmLoad, Hello, StudentReport, TeacherSummary, Welcome
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.protos.wire import PAYLOAD_BYTES, slice_crops
from teacherfarm.teacher_server.credit import CreditPool
from teacherfarm.teacher_server.doorkeeper import Doorkeeper
from teacherfarm.teacher_server.farm.farm import Farm
from teacherfarm.teacher_server.farm.in_flight import InFlight, split_keys
from teacherfarm.teacher_server.farm.lane import Lane
from teacherfarm.teacher_server.kept_labels import KeptLabels
from teacherfarm.teacher_server.metrics import Metrics
from teacherfarm.teacher_server.projects.project import Project
from teacherfarm.teacher_server.projects.projects_file import ProjectEntry
from teacherfarm.teacher_server.projects.registry import Projects
from teacherfarm.teacher_server.samples.data_sets import DataSets
from teacherfarm.teacher_server.session import Scope, ScopeName, Session, check_format, scope_name
from teacherfarm.teacher_server.slice_crops import SliceCrops

BUSY_RETRY_AFTER_S = 0.05


class Gateway:
    """Opens sessions and labels their slices. Without ``projects`` everybody is the same project and needs no key;
    without ``kept`` no label is looked up or kept; without ``data_sets`` no crop is taken by reference.
    """

    def __init__(
        self,
        farm: Farm,
        *,
        credit: CreditPool,
        metrics: Metrics,
        projects: Projects | None = None,
        kept: LabelStore | None = None,
        data_sets: DataSets | None = None,
        payload_bytes: int = PAYLOAD_BYTES,
    ) -> None:
        self._farm = farm
        self._kept = kept
        self._data_sets = data_sets or DataSets()
        self._credit = credit
        self._metrics = metrics
        self._door = Doorkeeper(projects or Projects(), farm, metrics)
        self.payload_bytes = payload_bytes
        self._in_flight = InFlight()
        self._scopes: dict[ScopeName, Scope] = {}
        self._numbers = itertools.count(1)
        self._admitted_crops = 0
        self.draining = False
        metrics.admitted.set_function(lambda: self._admitted_crops)

    def __repr__(self) -> str:
        return f"<Gateway {self._farm!r} {self._credit!r} {self._in_flight!r}>"

    @property
    def admitted_crops(self) -> int:
        """Crops received and not yet answered; 0 when there is nothing left to drain."""
        return self._admitted_crops

    def teachers(self) -> list[TeacherSummary]:
        """Every teacher and its state."""
        return self._farm.summaries()

    def teachers_of(self, api_key: str) -> list[TeacherSummary]:
        """The teachers that the project of a key may use. Raises Unauthenticated."""
        return self._door.teachers(self._door.authenticate(api_key)[0])

    def teacher(self, name: str, api_key: str) -> Lane:
        """The lane of a ready teacher that the project of a key may use, or the fault."""
        return self._door.lane(self._door.authenticate(api_key)[0], name)

    def read_head(self, lane: Lane, first: int) -> tuple[memoryview, int]:
        """A payload's worth of a teacher's classifier from byte ``first`` on, and the whole file's size."""
        return self._farm.read_head(lane, first, self.payload_bytes)

    def update_projects(self, entries: Iterable[ProjectEntry]) -> None:
        """The projects file changed: weights and quotas act at once; ask :meth:`check_stay` of every session."""
        self._door.update(entries)

    def check_stay(self, session: Session) -> None:
        """Raises the fault that ends a session which would not be opened any more."""
        self._door.check_stay(session.project, session.key_digest, session.lane.card.name)
        if session.cutter is not None:
            self._door.check_dataset(session.project, session.cutter.samples.name)

    def artifact_digest(self, lane: Lane) -> str:
        """The digest of what a lane really runs."""
        return self._farm.artifact_digest(lane)

    def open_session(self, hello: Hello) -> Session:
        """Check everything that can be checked once. Raises the fault that the student gets instead of a Welcome."""
        if self.draining:
            raise GoingAway("this server is draining: connect elsewhere, or here again once it is back")
        project, key_digest = self._door.authenticate(hello.api_key)
        lane = self._door.lane(project, hello.teacher)
        card, digest = lane.card, self._farm.artifact_digest(lane)
        for what, expected, actual in (
            ("teacher", hello.expected_teacher_digest, card.teacher_digest),
            ("artifact", hello.expected_artifact_digest, digest),
        ):
            # Users may pin the first digits of a digest, at least 8 of them.
            if expected and not (
                len(expected) >= 8 and hmac.compare_digest(actual[: len(expected)].encode(), expected.encode())
            ):
                raise DigestMismatch(
                    f"{what} digest of {card.name!r} is {actual}, expected {expected}: another teacher than the one "
                    "this run was started with is served under its name. Serve the pinned one, or start a new run"
                )
        crop_format = replace(hello.crop_format or card.crop_format, codec=hello.codec)
        check_format(crop_format, card.crop_format)
        spec = hello.spec.resolve(card)
        record_dtype = spec.record_dtype(card)
        cutter = None
        if hello.samples is not None:
            self._door.check_dataset(project, hello.samples.dataset)
            cutter = self._data_sets.cutter(hello.samples, card.crop_format, project)
        # What could never be in flight at once must not be sent at once.
        most = min(lane.largest_batch, project.allowance.crops_in_flight or lane.largest_batch)
        crops = slice_crops(card.crop_format.crop_bytes, record_dtype.itemsize, most, self.payload_bytes)
        # References weigh next to nothing: their slices may fill a teacher batch.
        by_reference = slice_crops(0, record_dtype.itemsize, most, self.payload_bytes) if cutter is not None else 0
        self._door.check_streams(project)
        credit = self._credit.open(
            crop_bytes=card.crop_format.crop_bytes + record_dtype.itemsize,
            slice_crops=max(crops, by_reference),
            project=project.name,
        )
        self._door.entered(project, credit)
        session_id = f"s{next(self._numbers)}"
        scope = self._scope(project, lane, spec, crop_format)
        scope.num_sessions += 1
        return Session(
            id=session_id,
            project=project,
            key_digest=key_digest,
            lane=lane,
            spec=spec,
            crop_format=crop_format,
            credit=credit,
            record_dtype=record_dtype,
            graph_outputs=spec.graph_outputs(card),
            scope=scope,
            cutter=cutter,
            load_mark=lane.load_mark(),
            welcome=Welcome(
                session_id=session_id,
                window_crops=credit.window_crops,
                slice_crops=crops,
                artifact_digest=digest,
                keys_wanted=scope.keys_wanted,
                reference_crops=by_reference,
            ),
        )

    def _scope(self, project: Project, lane: Lane, spec: LabelSpec, crop_format: CropFormat) -> Scope:
        name = scope_name(project, lane, spec, crop_format)
        scope = self._scopes.get(name)
        if scope is None:
            metrics = self._metrics.scope(lane.card.name, project.name)
            kept = None
            if self._kept is not None:
                kept = KeptLabels(
                    self._kept,
                    project=project.name,
                    card=lane.card,
                    artifact_digest=self._farm.artifact_digest(lane),
                    spec=spec,
                    crop_format=name[-1],
                    shares=lambda: project.allowance.share_labels,
                    counts=metrics.looked_up,
                )
            scope = self._scopes[name] = Scope(metrics, kept)
        return scope

    def close_session(self, session: Session) -> None:
        """Give the session's share of the memory back."""
        self._credit.close(session.credit)
        self._door.left(session.project, session.credit)
        self._metrics.students.forget(session.id)
        session.scope.num_sessions -= 1
        if not session.scope.num_sessions:
            del self._scopes[session.scope_name]

    def note_ping(self, session: Session, report: StudentReport | None) -> FarmLoad | None:
        """Keep how the student fared since its last ping; how busy its teacher was meanwhile."""
        if report is not None:
            teacher = session.lane.card.name
            self._metrics.students.note(session.id, project=session.project.name, teacher=teacher, report=report)
        load = session.lane.load_since(session.load_mark)
        if load is not None:
            session.load_mark = session.lane.load_mark()
        return load

    async def label(
        self, session: Session, num_crops: int, decode: Callable[[], Awaitable[SliceCrops]]
    ) -> NDArray[np.void]:
        """Label records [N] for one slice, in order. Cancelling withdraws it; a fault concerns this slice alone.

        ``decode`` is called only once there is room for the pixels that it makes. Records of refused rows are zeros.
        """
        self._admit(session, num_crops)
        try:
            quota = session.project.quota
            if quota is None:
                records = await self._answer(session, await decode())
            else:
                async with self._door.pace(session.project, quota, num_crops):
                    records = await self._answer(session, await decode())
        except BaseException:
            # A fault is an answer that needs no taking.
            session.credit.withdraw(num_crops)
            raise
        else:
            session.credit.answer(num_crops)
            session.scope.metrics.answered(num_crops)
            return records
        finally:
            self._admitted_crops -= num_crops

    async def _answer(self, session: Session, crops: SliceCrops) -> NDArray[np.void]:
        rows: Sequence[int] = range(len(crops))
        if crops.refused:
            rows = [row for row in rows if row not in crops.refused]
        if crops.keys:
            return await self._claim_and_compute(session, crops, rows)
        computed, done = await self._render_and_compute(session, crops, rows)
        return computed if len(done) == len(crops) else _spread(computed, done, len(crops))

    async def _claim_and_compute(self, session: Session, crops: SliceCrops, rows: Sequence[int]) -> NDArray[np.void]:
        keys, missing = split_keys(crops.keys), rows
        records: NDArray[np.void] | None = None
        while missing:
            claim = self._in_flight.claim(session.scope, keys, missing)
            try:
                if claim.fresh:
                    computed, done = await self._find_or_compute(session, crops, keys, claim.fresh)
                    # Who joined a crop that was refused here asks by itself: it may have the pixels.
                    claim.fulfil(computed, done)
                    if len(done) == len(crops):
                        return computed
                if records is None:
                    records = np.zeros(len(crops), session.record_dtype)
                if claim.fresh:
                    records[np.asarray(done, np.int64)] = computed
            finally:
                claim.release()
            missing = []
            for row, owner, index in claim.joined:
                answer = await owner.answer(index)
                if answer is None:
                    missing.append(row)
                else:
                    records[row] = answer
            session.scope.metrics.joined(len(claim.joined) - len(missing))
        return np.zeros(len(crops), session.record_dtype) if records is None else records

    async def _find_or_compute(
        self, session: Session, crops: SliceCrops, keys: Sequence[bytes], rows: Sequence[int]
    ) -> tuple[NDArray[np.void], Sequence[int]]:
        """Records of those of ``rows`` that were kept or could be rendered, and which these are."""
        kept = session.scope.kept
        if kept is None:
            return await self._render_and_compute(session, crops, rows)
        lookup = await kept.find(keys, rows)
        if missing := lookup.missing:
            pixels, done = await kept.find_shared(lookup, *await crops.render(missing))
            if len(done):
                kept.keep(lookup, await self._compute(session, pixels, crops.priority), done)
        return lookup.answers()

    async def _render_and_compute(
        self, session: Session, crops: SliceCrops, rows: Sequence[int]
    ) -> tuple[NDArray[np.void], Sequence[int]]:
        """Records of those of ``rows`` that could be rendered, and which these are."""
        pixels, done = await crops.render(rows)
        if not len(done):
            return np.zeros(0, session.record_dtype), done
        return await self._compute(session, pixels, crops.priority), done

    async def _compute(self, session: Session, pixels: NDArray[np.generic], priority: int) -> NDArray[np.void]:
        outputs = await session.lane.label(session.project, session.id, pixels, session.graph_outputs, priority)
        return session.spec.pack(outputs, session.lane.card, session.record_dtype)

    def _admit(self, session: Session, num_crops: int) -> None:
        credit = session.credit
        if num_crops > credit.slice_crops:
            raise WrongBatchSize(f"a slice of {num_crops} crops; Welcome allowed {credit.slice_crops}")
        if not credit.has_room(num_crops):
            raise Overloaded(
                f"{credit.untaken_crops} crops in flight or not taken, {num_crops} more exceed the window of "
                f"{credit.window_crops}",
                retry_after_s=BUSY_RETRY_AFTER_S,
            )
        credit.receive(num_crops)
        self._admitted_crops += num_crops


def _spread(computed: NDArray[np.void], rows: Sequence[int], num_crops: int) -> NDArray[np.void]:
    """Records of some rows in their places among ``num_crops``, zeros elsewhere."""
    records = np.zeros(num_crops, computed.dtype)
    records[np.asarray(rows, np.int64)] = computed
    return records
