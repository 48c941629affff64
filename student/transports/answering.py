"""A session answered inside the student's process: what the transports share that speak to no server of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.crop_codec import decode_crops
from teacherfarm.protos.faults import (
    DigestMismatch,
    NoHead,
    SessionLost,
    TeacherFailed,
    TeacherFarmFault,
    UnknownDataSet,
)
from teacherfarm.protos.messages import (
    GetTeacher,
    Hello,
    Ping,
    Pong,
    Slice,
    SliceFault,
    SliceLabels,
    Teacher,
    Value,
    Welcome,
)
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.protos.wire import PAYLOAD_BYTES, Buffer, decode_header, encode_header

Run = Callable[[NDArray[Any], Sequence[str]], Awaitable[Mapping[str, NDArray[Any]]]]
"""Pixels [N, H, W, C] and graph output names to arrays [N, ...]."""

ReadHead = Callable[[int, int], tuple[Buffer, int]]

WINDOW_CROPS = 1024


class AnsweringTransport:
    """Speaks a server's part of the wire for one teacher: ``run`` computes, everything else is here.

    ``read_head``: (first byte, most bytes) -> a piece of the classifier's file and the whole file's size, where it has
    one here.
    """

    def __init__(
        self,
        card: TeacherCard,
        run: Run,
        *,
        artifact_digest: str,
        slice_crops: int,
        session_id: str = "in-process",
        read_head: ReadHead | None = None,
    ) -> None:
        self._read_head = read_head
        self._card = card
        self._run = run
        self._artifact_digest = artifact_digest
        self._slice_crops = slice_crops
        self._session_id = session_id
        self._spec: LabelSpec | None = None
        self._crop_format = card.crop_format
        self._answers: asyncio.Queue[tuple[bytes, Buffer] | None] = asyncio.Queue()
        self._slices: set[asyncio.Task[None]] = set()
        self._over: SessionLost | None = None

    async def open(self) -> None:
        """Nothing to connect to."""

    def send(self, header: bytes, payload: Buffer = b"") -> None:
        """Take a message of the student's and answer it; nothing once closed."""
        if self._over is not None:
            return
        match decode_header(header):
            case Hello() as hello:
                self._greet(hello)
            case Slice() as slice_:
                task = asyncio.get_running_loop().create_task(self._label(slice_, payload))
                self._slices.add(task)
                task.add_done_callback(self._slices.discard)
            case Ping():
                self._say(Pong(window_crops=WINDOW_CROPS))
            case GetTeacher(head=True, head_from=first):
                self._answer_head(first)

    async def receive(self) -> tuple[Buffer, Buffer]:
        """The next answer."""
        answer = None if self._over else await self._answers.get()
        if answer is None:
            # A new one each time: an exception that is raised again and again collects tracebacks.
            raise SessionLost(self._over.message if self._over else "")
        return answer

    def end(self, reason: SessionLost) -> None:
        """The session is over: what is under way is withdrawn, and receiving says why."""
        if self._over is None:
            self._over = reason
            for task in list(self._slices):
                task.cancel()
            self._answers.put_nowait(None)

    async def close(self) -> None:
        """Withdraw what is under way."""
        self.end(SessionLost("the teacher's session was closed"))
        await asyncio.gather(*self._slices, return_exceptions=True)

    def _greet(self, hello: Hello) -> None:
        try:
            for what, expected, actual in (
                ("teacher", hello.expected_teacher_digest, self._card.teacher_digest),
                ("artifact", hello.expected_artifact_digest, self._artifact_digest),
            ):
                if not actual.startswith(expected):
                    raise DigestMismatch(
                        f"{what} digest is {actual}, expected {expected}: another teacher than the one this run was "
                        "started with is served under its name. Serve the pinned one, or start a new run"
                    )
            if hello.codec == "reference":
                raise UnknownDataSet(
                    "this teacher has no server of ours that could cut crops: leave by_reference out, or ask a farm "
                    f"that serves data set {hello.samples.dataset if hello.samples else ''!r}"
                )
            self._spec = hello.spec.resolve(self._card)
            self._crop_format = replace(self._card.crop_format, codec=hello.codec)
        except TeacherFarmFault as fault:
            self._say(SliceFault(fault=fault))
            return
        welcome = Welcome(
            session_id=self._session_id,
            window_crops=WINDOW_CROPS,
            slice_crops=self._slice_crops,
            artifact_digest=self._artifact_digest,
        )
        self._say(welcome, self._card.to_json().encode())

    def _answer_head(self, first: int) -> None:
        if self._read_head is None:
            why = "has no classifiers to give: ask a farm (grpc:// or zmq://), or the models' folder (local://models/)"
            self._say(SliceFault(fault=NoHead(f"what answers {self._session_id} {why}")))
            return
        try:
            piece, size = self._read_head(first, PAYLOAD_BYTES)
        except TeacherFarmFault as fault:
            self._say(SliceFault(fault=fault))
            return
        answer = Teacher(name=self._card.name, artifact_digest=self._artifact_digest, head_bytes=size)
        self._say(answer, piece)

    async def _label(self, slice_: Slice, payload: Buffer) -> None:
        assert self._spec is not None, "a slice before Hello"
        place = {"batch_id": slice_.batch_id, "first_row": slice_.first_row, "num_crops": slice_.num_crops}
        try:
            pixels = decode_crops(payload, slice_.num_crops, self._crop_format, slice_.crop_bytes)
            outputs = await self._run(pixels, self._spec.graph_outputs(self._card))
            records = self._spec.pack(outputs, self._card)
        except TeacherFarmFault as fault:
            self._say(SliceFault(fault=fault, window_crops=WINDOW_CROPS, **place))
        except Exception as error:
            failed = TeacherFailed(f"teacher {self._card.name!r} failed on this slice: {error}")
            self._say(SliceFault(fault=failed, window_crops=WINDOW_CROPS, **place))
        else:
            self._say(SliceLabels(window_crops=WINDOW_CROPS, **place), memoryview(records.view(np.uint8)))  # type: ignore[arg-type]

    def _say(self, value: Value, payload: Buffer = b"") -> None:
        self._answers.put_nowait((encode_header(value), payload))
