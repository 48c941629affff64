"""The teacher in the student's own process: the baseline to compare a farm with. Needs the server's ONNX Runtime."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.faults import UnknownTeacher
from teacherfarm.protos.teacher_card import TeacherCard
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
        self._card: TeacherCard | None = None

    async def open(self) -> None:
        """Load the teacher. Raises what makes it unfit to be served."""
        teachers = {teacher.name: teacher for teacher in read_model_directory(self._models)}
        name = self._teacher or (next(iter(teachers)) if len(teachers) == 1 else "")
        if name not in teachers:
            raise UnknownTeacher(f"no teacher {name!r} in {self._models}; there are: {', '.join(sorted(teachers))}")
        teacher = teachers[name]
        if teacher.fault is not None or teacher.card is None:
            raise teacher.fault or UnknownTeacher(f"{name!r} has no card")
        self._card = teacher.card
        backend = self._backend = OnnxBackend(teacher.card, teacher.model_file)
        await backend.start()
        await check_golden_answers(teacher.card, teacher.golden_file, backend)
        self._session = AnsweringTransport(
            teacher.card,
            backend.run,
            artifact_digest=served_digest(teacher.card, backend.provider_class),
            slice_crops=min(backend.largest_batch, SLICE_CROPS),
            read_head=teacher.read_head,
        )

    @property
    def card(self) -> TeacherCard:
        """The teacher's, once open."""
        assert self._card is not None, "open() was not awaited"
        return self._card

    async def compute(self, pixels: NDArray[Any], output: str) -> NDArray[Any]:
        """One output of the graph for crops [N, H, W, C] as the graph gives it, float32 logits too: a label would be
        rounded to float16.
        """
        assert self._backend is not None, "open() was not awaited"
        step = self._backend.largest_batch
        slices = [self._backend.run(pixels[i : i + step], (output,)) for i in range(0, len(pixels), step)]
        return np.concatenate([outputs[output] for outputs in await asyncio.gather(*slices)])

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
