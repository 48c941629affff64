"""Runs a teacher on one NVIDIA Triton endpoint. The only module of the server that imports tritonclient.

It takes tritonclient's messages, but frames requests by hand: the pixels are copied once, not four times.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2

from teacherfarm.protos.faults import BackendDied, BadTeacher
from teacherfarm.protos.teacher_card import CROPS_INPUT, TeacherCard
from teacherfarm.teacher_server.backends.backend import BackendUnreachable, FailedInCompany, GraphOutputs
from teacherfarm.teacher_server.backends.onnx_backend import cpu_largest_batch

if TYPE_CHECKING:
    from google.protobuf.message import Message

SERVICE = "/inference.GRPCInferenceService/"
PROBE_EVERY_S = 2.0
PROBE_WITHIN_S = 5.0
CLOSED_WITHIN_S = 1.0
DEADLINE_S = 20.0
MOST_HEADS = 4096
"""Requests differ by outputs asked and number of crops; so many of their heads are kept ready."""
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A connection of its own: a new channel must not wait out the back-off of the one before.
    ("grpc.use_local_subchannel_pool", 1),
    # What to try again, and where, is the lane's business.
    ("grpc.enable_retries", 0),
)
RAW_PIXELS_TAG = bytes([7 << 3 | 2])
"""Of ModelInferRequest.raw_input_contents, its last field: length-delimited, so the pixels may follow the rest."""

NOT_CONNECTED = "cannot connect: "

_TRITON_TYPES = {"uint8": "UINT8", "uint16": "UINT16", "float32": "FP32"}
_NUMPY_TYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "UINT8": "u1", "UINT16": "<u2", "INT8": "i1"}

_BROKE = re.compile(
    r"recvmsg|sendmsg|stream removed|socket closed|connection (reset|closed)|broken pipe|goaway", re.IGNORECASE
)
"""How gRPC says that a connection ended in the middle of a call; what Triton itself refuses reads otherwise."""
_MODEL_DIED = re.compile(r"stub process .* is not healthy", re.IGNORECASE)
"""The process of Triton's Python backend is gone: this endpoint answers nothing any more for this teacher."""
_LOST = frozenset(
    (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    )
)


class Traffic:
    """Calls under way on one endpoint, for whichever teacher; lets one of them be the only one."""

    def __init__(self) -> None:
        self.running = 0
        self.reserved: asyncio.Future[None] | None = None
        self._emptied: asyncio.Future[None] | None = None

    async def enter(self) -> None:
        """Count a call, once nobody runs alone."""
        while self.reserved is not None:
            await asyncio.shield(self.reserved)
        self.running += 1

    def leave(self) -> None:
        """A counted call ended."""
        self.running -= 1
        if not self.running and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Wait for the calls under way, and keep others waiting meanwhile."""
        while self.reserved is not None:
            await asyncio.shield(self.reserved)
        loop = asyncio.get_running_loop()
        reserved = self.reserved = loop.create_future()
        try:
            if self.running:
                self._emptied = loop.create_future()
                await self._emptied
            yield
        finally:
            self.reserved = self._emptied = None
            reserved.set_result(None)


class TritonBackend:
    """One teacher on one endpoint, from :meth:`start` until it is lost; a lost one is replaced by another.

    ``traffic`` is shared by all teachers of the endpoint. ``largest_batch``: the lane's, where it is fixed; otherwise
    Triton's ``max_batch_size`` is taken, on a CPU no more than what one message carries. ``deadline_s``: how long a
    call may take before the endpoint counts as gone.
    """

    def __init__(
        self,
        card: TeacherCard,
        address: str,
        *,
        traffic: Traffic | None = None,
        largest_batch: int | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.address = address
        self._card = card
        self._version = Path(card.model_file).parts[0]
        self._traffic = traffic or Traffic()
        self._wanted_batch = largest_batch
        self._deadline_s = deadline_s
        self._channel: grpc.aio.Channel | None = None
        self._infer: Any = None
        self._lost: asyncio.Future[str] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._config = model_config_pb2.ModelConfig()
        self._head = lru_cache(MOST_HEADS)(self._make_head)

    def __repr__(self) -> str:
        return f"<TritonBackend {self._card.name} on {self.address}>"

    @property
    def slots(self) -> int:
        """One more than Triton has instances, so that each finds its next teacher batch there when it is done."""
        return num_instances(self._config) + 1

    @property
    def largest_batch(self) -> int:
        if self._wanted_batch is not None:
            return self._wanted_batch
        allowed = max(1, int(self._config.max_batch_size))
        return min(allowed, cpu_largest_batch(self._card.crop_format.crop_bytes)) if self._on_cpu else allowed

    @property
    def _on_cpu(self) -> bool:
        return self.provider_class == "cpu"

    @property
    def provider_class(self) -> str:
        return provider_class(self._config)

    async def start(self) -> None:
        """Connect and compare what is served there with the card.

        Raises BackendUnreachable, or BadTeacher naming what was found and what was expected.
        """
        self._lost = asyncio.get_running_loop().create_future()
        self._channel = grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        self._infer = self._channel.unary_unary(
            f"{SERVICE}ModelInfer", response_deserializer=service_pb2.ModelInferResponse.FromString
        )
        asked = service_pb2.ModelReadyRequest(name=self._card.name, version=self._version)
        ready = await self._ask("ModelReady", asked, service_pb2.ModelReadyResponse)
        if not ready.ready:
            raise BackendUnreachable(f"has no ready model {self._card.name!r} in version {self._version}")
        await self._check()

    async def until_lost(self) -> str:
        """Look after it until it cannot be asked any more; returns why. Calls under way then end as unreachable."""
        assert self._lost is not None, "start() was not awaited"
        assert self._channel is not None
        # gRPC would connect again by itself, to whatever is there by then.
        ended = asyncio.ensure_future(self._channel.wait_for_state_change(grpc.ChannelConnectivity.READY))
        self._ended = ended
        either: set[asyncio.Future[Any]] = {self._lost, ended}
        while True:
            await asyncio.wait(either, timeout=PROBE_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                # Calls under way fail by themselves, and say how: they are suspects.
                self._lose("the connection ended")
            if self._lost.done():
                return self._lost.result()
            try:
                await self._check()
            except (BackendUnreachable, BadTeacher) as why:
                self._lose(str(why))
                await self._close_channel()

    async def run(self, pixels: NDArray[Any], outputs: Sequence[str]) -> GraphOutputs:
        traffic = self._traffic
        if traffic.reserved is None:
            traffic.running += 1
        else:
            await traffic.enter()
        try:
            return await self._call(pixels, tuple(outputs))
        except grpc.aio.AioRpcError as error:
            if loss := self._loss(error):
                raise loss from error
            raise FailedInCompany(f"{self.address}: {error.details()}") from error
        finally:
            traffic.leave()

    async def run_alone(self, pixels: NDArray[Any], outputs: Sequence[str]) -> GraphOutputs:
        async with self._traffic.alone():
            try:
                return await self._call(pixels, tuple(outputs))
            except grpc.aio.AioRpcError as error:
                loss = self._loss(error)
                if loss is None and not await self._answers_at_all():
                    loss = BackendUnreachable(f"{self.address} fails on every crop", under_way=True)
                    self._lose(str(loss))
                if loss is None:
                    raise RuntimeError(error.details()) from error
                if loss.under_way:
                    raise BackendDied(str(loss)) from error
                raise loss from error

    async def close(self) -> None:
        """Calls under way are finished first, unless the endpoint was lost."""
        lost = self._lost is not None and self._lost.done()
        self._lose("closed")
        await self._close_channel(None if lost else self._deadline_s)

    async def _call(self, pixels: NDArray[Any], outputs: tuple[str, ...]) -> GraphOutputs:
        assert self._lost is not None, "start() was not awaited"
        if self._lost.done():
            raise BackendUnreachable(f"{self.address}: {self._lost.result()}")
        num_crops = len(pixels)
        head = self._head(outputs, num_crops)
        if not pixels.flags.c_contiguous:
            pixels = np.ascontiguousarray(pixels)
        try:
            response = await self._infer(b"".join((head, pixels.data)), timeout=self._deadline_s)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._lost.done() and not (task and task.cancelling()):
                raise BackendUnreachable(f"{self.address}: {self._lost.result()}") from None
            raise
        return {
            tensor.name: np.frombuffer(raw, _NUMPY_TYPES[tensor.datatype]).reshape(tensor.shape)
            for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        }

    def _make_head(self, outputs: tuple[str, ...], num_crops: int) -> bytes:
        """All of a request but its pixels."""
        crop_format = self._card.crop_format
        request = service_pb2.ModelInferRequest(model_name=self._card.name, model_version=self._version)
        kind = _TRITON_TYPES[crop_format.number_type]
        request.inputs.add(name=CROPS_INPUT, datatype=kind, shape=(num_crops, *crop_format.shape))
        for name in outputs:
            request.outputs.add(name=name)
        size, length = num_crops * crop_format.crop_bytes, bytearray()
        while size >= 0x80:
            length.append(size & 0x7F | 0x80)
            size >>= 7
        length.append(size)
        return b"".join((request.SerializeToString(), RAW_PIXELS_TAG, length))

    async def _check(self) -> None:
        """Ask whether the teacher is still the card's; raises as :meth:`start` does."""
        asked = service_pb2.ModelConfigRequest(name=self._card.name, version=self._version)
        config = (await self._ask("ModelConfig", asked, service_pb2.ModelConfigResponse)).config
        check_config(config, self._card, self._wanted_batch)
        self._config = config

    async def _ask(self, method: str, request: Message, response: Any) -> Any:
        assert self._channel is not None
        call = self._channel.unary_unary(
            SERVICE + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        try:
            return await call(request, timeout=PROBE_WITHIN_S)
        except grpc.aio.AioRpcError as error:
            raise BackendUnreachable(_words(error, PROBE_WITHIN_S)) from error

    async def _answers_at_all(self) -> bool:
        """Whether a plain crop still gets an answer: if not, no slice is to blame for its failure here."""
        plain = np.zeros((1, *self._card.crop_format.shape), self._card.crop_format.number_type)
        try:
            await self._call(plain, self._card.graph_outputs[:1])
        except (grpc.aio.AioRpcError, BackendUnreachable):
            return False
        return True

    def _loss(self, error: grpc.aio.AioRpcError) -> BackendUnreachable | None:
        """What a failed call means for this backend; None where the endpoint is all right and only this call failed."""
        words = _words(error, self._deadline_s)
        if _MODEL_DIED.search(words):
            loss = BackendUnreachable(f"{self.address}: {words}", under_way=True)
        elif error.code() in _LOST:
            broke = bool(_BROKE.search(words)) and not words.startswith(NOT_CONNECTED)
            loss = BackendUnreachable(f"{self.address}: {words}", under_way=broke)
        else:
            return None
        self._lose(words)
        return loss

    def _lose(self, why: str) -> None:
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(why)

    async def _close_channel(self, grace_s: float | None = None) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(grace=grace_s)
        ended, self._ended = self._ended, None
        if ended is not None:
            # It ends with the channel. Cancelled instead, grpc would tell a loop that may be closed by then.
            await asyncio.wait({ended}, timeout=CLOSED_WITHIN_S)
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)


def check_config(config: model_config_pb2.ModelConfig, card: TeacherCard, largest_batch: int | None) -> None:
    """Raise BadTeacher where Triton's model is not the card's, or takes smaller batches than the lane forms."""
    for what, expected in (
        ("teacher_digest", card.teacher_digest),
        ("artifact_digest", card.artifact_digest),
        ("precision", card.precision),
    ):
        found = config.parameters[what].string_value if what in config.parameters else ""
        if found != expected:
            raise BadTeacher(
                f"serves another {card.name!r}: {what} {found or 'missing'}, expected {expected}. Point it at the "
                "repository that this farm was started with, or export the teacher again for both"
            )
    if largest_batch is not None and config.max_batch_size < largest_batch:
        raise BadTeacher(
            f"takes at most {config.max_batch_size} crops of {card.name!r} at once, --max-batch is {largest_batch}: "
            "lower it, or export with the larger one"
        )


def num_instances(config: model_config_pb2.ModelConfig) -> int:
    """How many teacher batches Triton computes side by side."""
    on_gpu = model_config_pb2.ModelInstanceGroup.KIND_GPU
    return sum(
        group.count * (max(1, len(group.gpus)) if group.kind == on_gpu else 1) for group in config.instance_group
    )


def provider_class(config: model_config_pb2.ModelConfig) -> str:
    """What computes there, by the names that ONNX Runtime's providers have."""
    if "tensorrt" in (config.backend, config.platform.partition("_")[0]):
        return "tensorrt"
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    if any(accelerator.name == "tensorrt" for accelerator in accelerators):
        return "tensorrt"
    on_gpu = model_config_pb2.ModelInstanceGroup.KIND_GPU
    return "cuda" if any(group.kind == on_gpu for group in config.instance_group) else "cpu"


def _words(error: grpc.aio.AioRpcError, within_s: float) -> str:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {within_s:g} s"
    details = error.details() or error.code().name
    if details.startswith("failed to connect"):
        return NOT_CONNECTED + details.rpartition(": ")[2]
    return details
