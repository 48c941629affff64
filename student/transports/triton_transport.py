"""A Triton server asked directly, without a gateway: its protocol in front of the same client. Only this file knows
Triton.

What the gateway gives and Triton does not (projects, fair shares, joins, golden answers) is not given here.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as triton

from teacherfarm.protos.faults import (
    BadTeacher,
    DigestMismatch,
    Overloaded,
    SessionLost,
    TeacherFailed,
    TeacherFarmFault,
    UnknownTeacher,
)
from teacherfarm.protos.teacher_card import CARD_PARAMETER, CROPS_INPUT, TeacherCard
from teacherfarm.protos.wire import HEADER_BYTES, MESSAGE_OVERHEAD_BYTES, PAYLOAD_BYTES, Buffer, slice_crops, varint
from teacherfarm.student.transports.answering import AnsweringTransport
from teacherfarm.student.transports.grpc_transport import require_fork_safety

SERVICE = "/inference.GRPCInferenceService/"
VERSION = "1"
"""The model's version that export writes; it is asked for by number, so that a second one changes nothing."""
BATCHES_IN_FLIGHT = 3
"""Crops sent and not answered, in teacher batches: one runs, one waits, one travels."""
HEARTBEAT_S = 2.0
SILENCE_S = 10.0
"""How long a heartbeat may go unanswered before the session counts as lost; shorter would cut slow links."""

CLOSE_S = 2.0

_TYPES = {"FP32": np.float32, "FP16": np.float16, "UINT8": np.uint8, "UINT16": np.uint16}
_TYPE_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}
_RAW_CONTENTS_TAG = b"\x3a"  # field 7 of ModelInferRequest, length-delimited
_GONE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
_QUEUE_IS_FULL = "maximum queue size"
_PROCESS_IS_DEAD = "is not healthy"


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What Triton says of one model: the card from its configuration, and what runs it, in one digest."""

    card: TeacherCard
    artifact_digest: str
    max_batch: int
    instances: int


class TritonTransport:
    """One session with one model of the Triton server at ``place``. ``payload_bytes``: most bytes in one answer.

    The session is one connection: when it breaks, or a heartbeat goes unanswered or finds another model, it is over,
    and the client asks again over a new one.
    """

    def __init__(
        self, place: str, teacher: str, *, payload_bytes: int, answer_s: float, silence_s: float | None = None
    ) -> None:
        self._place = place
        self._teacher = teacher
        self._answer_s = answer_s
        self._silence_s = SILENCE_S if silence_s is None else silence_s
        self._server = TritonCalls(place, payload_bytes=payload_bytes)
        self._session: AnsweringTransport | None = None
        self._model: ServedModel | None = None
        self._room = asyncio.Semaphore()
        self._watches: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<TritonTransport triton://{self._place} {'open' if self._session else 'closed'}>"

    async def open(self) -> None:
        """Connect, read the model's card and ask it one crop. Raises SessionLost, UnknownTeacher, BadTeacher, or what
        the crop was answered with.
        """
        require_fork_safety()
        self._server.open()
        name = self._teacher or await self._only_teacher()
        model = self._model = await self._server.model(name, within_s=self._silence_s)
        # Configurations promise, answers show: a model whose process has died still counts as ready in Triton.
        black = np.zeros((1, *model.card.crop_format.shape), model.card.crop_format.number_type)
        await self._server.infer(model.card, black, model.card.graph_outputs, within_s=self._answer_s)
        slice_size = slice_crops(model.card.crop_format.crop_bytes, 0, model.max_batch)
        self._room = asyncio.Semaphore(-(-model.max_batch * (BATCHES_IN_FLIGHT + model.instances - 1) // slice_size))
        self._session = AnsweringTransport(
            model.card,
            self._run,
            artifact_digest=model.artifact_digest,
            slice_crops=slice_size,
            session_id=f"with triton://{self._place}",
        )
        self._watches = [
            asyncio.create_task(self._watch_connection(), name="triton connection"),
            asyncio.create_task(self._watch_model(model), name="triton heartbeat"),
        ]

    def send(self, header: bytes, payload: Buffer = b"") -> None:
        """Take a message of the student's and answer it; nothing once the session is over."""
        if self._session is not None:
            self._session.send(header, payload)

    async def receive(self) -> tuple[Buffer, Buffer]:
        """The next answer."""
        if self._session is None:
            raise SessionLost(f"triton://{self._place}: closed")
        return await self._session.receive()

    async def close(self) -> None:
        """Withdraw what is under way and disconnect."""
        if self._session is not None:
            await self._session.close()
        await self._server.close()
        watches, self._watches = self._watches, []
        if watches:
            # That of the connection ends with it; cancelled, it would leave grpc an answer for a loop that is gone.
            await asyncio.wait(watches[:1], timeout=CLOSE_S)
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

    async def _only_teacher(self) -> str:
        names = [name for name, _ in await self._server.models(within_s=self._silence_s)]
        if len(names) != 1:
            raise UnknownTeacher(
                f"Triton at {self._place} has {', '.join(sorted(names)) or 'no models'}: say which with teacher="
            )
        return names[0]

    async def _run(self, pixels: NDArray[Any], outputs: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        """One inference, once there is room: no more crops wait in Triton than its batcher can use."""
        assert self._model is not None
        async with self._room:
            try:
                return await self._server.infer(self._model.card, pixels, outputs, within_s=self._answer_s)
            except SessionLost as fault:
                self._lose(fault)
                raise

    async def _watch_connection(self) -> None:
        """A broken connection ends the session, before anything reaches whoever serves there afterwards."""
        await self._server.disconnected()
        self._lose(SessionLost(f"triton://{self._place}: the connection broke"))

    async def _watch_model(self, pinned: ServedModel) -> None:
        """Find partitions, which nothing tells of, and another model under the same name."""
        name = pinned.card.name
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            try:
                model = await self._server.model(name, within_s=self._silence_s)
                if model != pinned:
                    raise SessionLost(f"triton://{self._place} serves another {name!r} than before")
            except TeacherFarmFault as fault:
                self._lose(fault if isinstance(fault, SessionLost) else SessionLost(fault.message))
                return

    def _lose(self, fault: SessionLost) -> None:
        if self._session is not None:
            self._session.end(fault)


class TritonCalls:
    """The few calls of Triton's gRPC protocol that are needed, over one channel; faults in place of gRPC's errors."""

    def __init__(self, place: str, *, payload_bytes: int) -> None:
        self._place = place
        self._payload_bytes = payload_bytes
        self._channel: grpc.aio.Channel | None = None

    def open(self) -> None:
        """Make the channel; it connects with the first call."""
        self._channel = grpc.aio.insecure_channel(
            self._place,
            options=[
                ("grpc.max_receive_message_length", self._payload_bytes + HEADER_BYTES + MESSAGE_OVERHEAD_BYTES),
                ("grpc.max_send_message_length", -1),
                # One channel is one session: no other session's broken connection may be taken over.
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_http_proxy", 0),
            ],
        )

    async def close(self) -> None:
        """Disconnect; what is under way fails."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def disconnected(self) -> None:
        """Return when the connection, once made, is no more."""
        assert self._channel is not None
        ready = grpc.ChannelConnectivity.READY
        while self._channel is not None and self._channel.get_state() is ready:
            try:
                await self._channel.wait_for_state_change(ready)
            except (grpc.aio.UsageError, AssertionError):
                # What a channel says that is being closed.
                return

    async def models(self, *, within_s: float) -> list[tuple[str, str]]:
        """Name and state ("READY", "UNAVAILABLE") of every model in the server's repository."""
        index = await self._call(
            "RepositoryIndex", triton.RepositoryIndexRequest(), triton.RepositoryIndexResponse, within_s
        )
        return [(model.name, model.state) for model in index.models if model.version in ("", VERSION)]

    async def model(self, name: str, *, within_s: float) -> ServedModel:
        """What is served under this name. Raises BadTeacher where its configuration was not written by export."""
        question = triton.ModelConfigRequest(name=name, version=VERSION)
        config = (await self._call("ModelConfig", question, triton.ModelConfigResponse, within_s)).config
        told = {key: parameter.string_value for key, parameter in config.parameters.items()}
        where = f"model {name!r} of Triton at {self._place}"
        if CARD_PARAMETER not in told:
            raise BadTeacher(f"{where} has no card in its config.pbtxt: export it again with this teacherfarm")
        try:
            card = TeacherCard.from_json(told[CARD_PARAMETER])
        except ValueError as error:
            raise BadTeacher(f"{where}: {error}") from error
        for digest in ("teacher_digest", "artifact_digest"):
            if told.get(digest) != getattr(card, digest):
                raise DigestMismatch(f"{where}: its config.pbtxt and the card in it name different {digest}s")
        kinds = sorted({triton_kind(group.kind) for group in config.instance_group})
        run_by = f"{card.artifact_digest}:{card.precision}:triton {config.backend} {' '.join(kinds)}"
        return ServedModel(
            card=card,
            artifact_digest=hashlib.sha256(run_by.encode()).hexdigest(),
            max_batch=max(1, config.max_batch_size),
            instances=max(1, sum(group.count for group in config.instance_group)),
        )

    async def infer(
        self, card: TeacherCard, pixels: NDArray[Any], outputs: Sequence[str], *, within_s: float
    ) -> dict[str, NDArray[Any]]:
        """The named outputs for crops [N, H, W, C]; SessionLost where nothing came within ``within_s``."""
        question = triton.ModelInferRequest(model_name=card.name, model_version=VERSION)
        question.inputs.add(name=CROPS_INPUT, datatype=_TYPE_NAMES[pixels.dtype], shape=pixels.shape)
        for name in outputs:
            question.outputs.add(name=name)
        # The pixels are the last field, put there by hand: protobuf would copy them twice more.
        raw = np.ascontiguousarray(pixels).reshape(-1).view(np.uint8).data
        message = b"".join((question.SerializeToString(), _RAW_CONTENTS_TAG, varint(len(raw)), raw))
        answer = await self._call("ModelInfer", message, triton.ModelInferResponse, within_s)
        found: dict[str, NDArray[Any]] = {}
        try:
            for output, content in zip(answer.outputs, answer.raw_output_contents, strict=True):
                found[output.name] = np.frombuffer(content, _TYPES[output.datatype]).reshape(tuple(output.shape))
        except (KeyError, ValueError) as error:
            raise TeacherFailed(f"Triton's answer for {card.name!r} is not readable: {error}") from error
        for name in outputs:
            if name not in found or len(found[name]) != len(pixels):
                raise TeacherFailed(f"Triton's answer for {card.name!r} has no {name!r} of {len(pixels)} rows")
        return found

    async def _call(self, method: str, question: Any, answer: Any, within_s: float) -> Any:
        if self._channel is None:
            raise SessionLost(f"triton://{self._place}: closed")
        serializer = None if isinstance(question, bytes) else type(question).SerializeToString
        call = self._channel.unary_unary(
            SERVICE + method, request_serializer=serializer, response_deserializer=answer.FromString
        )
        try:
            return await call(question, timeout=within_s)
        except grpc.aio.AioRpcError as error:
            raise self._fault(error, within_s) from error
        except grpc.aio.UsageError as error:
            raise SessionLost(f"triton://{self._place}: {error}") from error

    def _fault(self, error: grpc.aio.AioRpcError, within_s: float) -> TeacherFarmFault:
        code, said = error.code(), error.details() or ""
        if _QUEUE_IS_FULL in said:
            return Overloaded(f"Triton at {self._place}: {said}", retry_after_s=0.1)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return SessionLost(f"triton://{self._place}: no answer within {within_s:g} s")
        if _PROCESS_IS_DEAD in said:
            return SessionLost(f"triton://{self._place}: the model's process has died, restart Triton: {said}")
        if code in _GONE:
            return SessionLost(f"triton://{self._place}: {code.name.lower()}: {said}")
        if code is grpc.StatusCode.NOT_FOUND or "unknown model" in said:
            return UnknownTeacher(f"Triton at {self._place}: {said}")
        return TeacherFailed(f"Triton at {self._place} failed on this slice: {said}")


async def list_models(place: str, *, within_s: float) -> list[tuple[str, str, ServedModel | TeacherFarmFault]]:
    """Name and state of each model of a Triton server, and what it serves or why that cannot be told."""
    require_fork_safety()
    server = TritonCalls(place, payload_bytes=PAYLOAD_BYTES)
    server.open()
    found: list[tuple[str, str, ServedModel | TeacherFarmFault]] = []
    try:
        for name, state in await server.models(within_s=within_s):
            try:
                found.append((name, state.lower(), await server.model(name, within_s=within_s)))
            except TeacherFarmFault as fault:
                found.append((name, state.lower(), fault))
    finally:
        await server.close()
    return found


def triton_kind(kind: int) -> str:
    """An instance group's kind: KIND_CPU, KIND_GPU ..."""
    return str(model_config_pb2.ModelInstanceGroup.Kind.Name(kind))
