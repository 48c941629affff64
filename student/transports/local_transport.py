"""The teacher in the student's own process: the baseline to compare a farm with. Needs the server's ONNX Runtime."""

from __future__ import annotations

import functools
from pathlib import Path

from teacherfarm.protos.faults import UnknownTeacher
from teacherfarm.protos.wire import SLICE_CROPS, Buffer
from teacherfarm.student.transports.answering import AnsweringTransport
from teacherfarm.teacher_server.backends.onnx_backend import OnnxBackend
from teacherfarm.teacher_server.farm.golden import check_golden_answers
from teacherfarm.teacher_server.farm.model_directory import read_model_directory, served_digest


class LocalTransport:
    """One teacher of a model directory, loaded and checked at :meth:`open` as a server would."""

    def __init__(self, models: str, teacher: str) -> None:
        self._models = Path(models)
        self._teacher = teacher
        self._backend: OnnxBackend | None = None
        self._session: AnsweringTransport | None = None

    async def open(self) -> None:
        """Load the teacher. Raises what makes it unfit to be served."""
        teachers = {teacher.name: teacher for teacher in read_model_directory(self._models)}
        name = self._teacher or (next(iter(teachers)) if len(teachers) == 1 else "")
        if name not in teachers:
            raise UnknownTeacher(f"no teacher {name!r} in {self._models}; there are: {', '.join(sorted(teachers))}")
        teacher = teachers[name]
        if teacher.fault is not None or teacher.card is None:
            raise teacher.fault or UnknownTeacher(f"{name!r} has no card")
        backend = self._backend = OnnxBackend(teacher.card, teacher.model_file)
        await backend.start()
        await check_golden_answers(teacher.card, teacher.golden_file, backend)
        self._session = AnsweringTransport(
            teacher.card,
            backend.run,
            artifact_digest=served_digest(teacher.card, backend.provider_class),
            slice_crops=min(backend.largest_batch, SLICE_CROPS),
        )

    def send(self, header: bytes, payload: Buffer = b"") -> None:
        """Take a message of the student's and answer it."""
        self._opened.send(header, payload)

    async def receive(self) -> tuple[Buffer, Buffer]:
        """The next answer."""
        return await self._opened.receive()

    async def close(self) -> None:
        """Free the model."""
        if self._session is not None:
            await self._session.close()
        if self._backend is not None:
            await self._backend.close()
            self._backend = None

    @functools.cached_property
    def _opened(self) -> AnsweringTransport:
        assert self._session is not None, "open() was not awaited"
        return self._session
