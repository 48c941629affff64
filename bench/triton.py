"""Labels/s that a student gets through the gateway from a Triton server, over straight tritonclient to the same Triton.

Real: EfficientNet-Lite0 on tritonserver (Python backend), the gateway, both wires, the student; each side at its own
best batch, number in flight and, for the gateway, largest teacher batch. Triton runs in the layout that suits straight
tritonclient best.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bench.exported_teacher import CACHE, TEACHER, exported
from bench.farm_process import running
from bench.interleave import RunSlice, fastest, high, interleave, plan_slices, ratio
from bench.pipeline import in_rotation, run_pipeline
from bench.report import Row, finish, say, table
from teacherfarm.protos.allocator import keep_large_buffers
from teacherfarm.protos.teacher_card import CROPS_INPUT, TeacherCard
from teacherfarm.student import LabelFuture, TeacherClient
from tests.triton_server import TritonServer

DEFAULT_SECONDS = 360.0
MODELS = CACHE / "bench-triton"
NUM_CROPS = 256
# Crops in a batch, and batches in flight.
STRAIGHT = ((1, 4), (2, 4), (4, 3), (4, 6), (8, 3), (8, 6), (16, 4), (32, 3))
OURS = ((8, 8), (32, 3))
MAX_BATCHES = (2, 4, 6, 8)
SEARCH_SHARE = 0.4
SLICE_S = 1.0
AROUND_S = 0.5
"""About what filling and draining takes, beside what a slice measures."""
Answer = TypeVar("Answer")
ONE_INSTANCE = "instance_group [ { count: 1 kind: KIND_CPU } ]"


def run(seconds: float, models: str = "") -> None:
    """Print the table and the JSON line; exports the teacher into ``models`` when it is not there yet."""
    keep_large_buffers()
    folder = Path(models) if models else MODELS
    asyncio.run(_run(seconds, folder, exported(folder, for_triton=True)))


async def _run(seconds: float, models: Path, card: TeacherCard) -> None:
    say(f"triton: {TEACHER}, {card.crop_format.height} px crops, dense labels; nothing is simulated")
    crops = np.random.default_rng(0).integers(0, 256, (NUM_CROPS, *card.crop_format.shape), np.uint8)
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        share_s = seconds * SEARCH_SHARE / 4
        server, straight = await _best_layout(models, card, crops, logs, stack, share_s)
        chosen = {"straight": straight}
        farms = {f"teacher batches of {most}": _gateway(models, server, most, stack) for most in MAX_BATCHES}
        for wire in ("zmq", "grpc"):
            ways: dict[str, RunSlice] = {}
            for most, farm in farms.items():
                found = _through(farm[wire], crops, stack)
                ways |= {f"{most}, {asked}": run_slice for asked, run_slice in found.items()}
            best = await fastest(ways, seconds=share_s, shortest_s=SLICE_S / 2)
            say(f"  {wire}: fastest with {best}")
            chosen[wire] = ways[best]
            # The largest teacher batch is Triton's affair: what suits one wire suits the other.
            most = best.partition(", ")[0]
            farms = {most: farms[most]}
        plan = plan_slices(
            seconds * (1 - SEARCH_SHARE), len(chosen), shortest_s=SLICE_S / 2, longest_s=2.0, around_s=AROUND_S
        )
        rates = await interleave(chosen, rounds=plan.rounds, slice_s=plan.slice_s)
    zmq, grpc = (ratio(rates[wire], rates["straight"]) for wire in ("zmq", "grpc"))
    say(
        table(
            [
                Row(name="gateway, zmq", rates=rates["zmq"], ratio=zmq),
                Row(name="gateway, grpc", rates=rates["grpc"], ratio=grpc),
                Row(name="straight tritonclient", rates=rates["straight"]),
            ]
        )
    )
    finish(
        {
            "ratio": min(zmq.value, grpc.value),
            "zmq_ratio": zmq.value,
            "zmq_ratio_spread": zmq.spread,
            "grpc_ratio": grpc.value,
            "grpc_ratio_spread": grpc.spread,
            "straight_labels_per_s": high(rates["straight"]),
        }
    )


async def _best_layout(
    models: Path, card: TeacherCard, crops: NDArray[Any], logs: Path, stack: contextlib.ExitStack, seconds: float
) -> tuple[TritonServer, RunSlice]:
    """The Triton on which straight tritonclient is fastest, running, and how it is asked; the others are stopped."""
    cores = len(os.sched_getaffinity(0))
    layouts = {f"{cores} instances of 1 thread": (cores, 1), f"1 instance of {cores} threads": (1, cores)}
    servers: dict[str, TritonServer] = {}
    ways: dict[str, RunSlice] = {}
    for layout, (instances, threads) in layouts.items():
        repository = laid_out(models, logs / layout.replace(" ", "-"), instances=instances, threads=threads)
        server = servers[layout] = stack.enter_context(TritonServer(repository, logs))
        found = AsyncioClient(server.grpc, card).settings(crops)
        ways |= {f"{layout}, {asked}": run_slice for asked, run_slice in found.items()}
    best = await fastest(ways, seconds=seconds, shortest_s=SLICE_S / 2)
    layout, _, asked = best.partition(", ")
    for other in servers.keys() - {layout}:
        servers[other].stop()
    # The client with the other kind of waiting may be faster, in other batches.
    kinds = {f"asyncio, {asked}": ways[best]}
    found = CallbackClient(servers[layout].grpc, card).settings(crops)
    kinds |= {f"callbacks, {asked}": run_slice for asked, run_slice in found.items()}
    best = await fastest(kinds, seconds=seconds, shortest_s=SLICE_S / 2)
    say(f"  straight tritonclient: fastest on {layout}, with {best}")
    return servers[layout], kinds[best]


def laid_out(models: Path, repository: Path, *, instances: int, threads: int) -> Path:
    """A copy of the teacher's entry with so many instances, of so many threads each."""
    entry = shutil.copytree(models / TEACHER, repository / TEACHER)
    config = entry / "config.pbtxt"
    text = config.read_text()
    if ONE_INSTANCE not in text:
        raise RuntimeError(f"{models / TEACHER / 'config.pbtxt'} has another instance_group than export writes")
    text = text.replace(ONE_INSTANCE, ONE_INSTANCE.replace("count: 1", f"count: {instances}"))
    text += f'parameters {{ key: "intra_op_threads" value {{ string_value: "{threads}" }} }}\n'
    config.write_text(text)
    return repository


def _gateway(models: Path, server: TritonServer, most: int, stack: contextlib.ExitStack) -> dict[str, str]:
    places = ["--grpc=127.0.0.1:0", "--zmq=127.0.0.1:0", "--http=off", "--log-level=ERROR"]
    arguments = [str(models), f"--triton={server.grpc}", f"--max-batch={most}", *places]
    return stack.enter_context(running("teacherfarm.teacher_server", arguments))


def _through(address: str, crops: NDArray[Any], stack: contextlib.ExitStack) -> dict[str, RunSlice]:
    teacher = stack.enter_context(TeacherClient(address, TEACHER))

    async def submit(batch: NDArray[Any]) -> LabelFuture:
        return teacher.submit(batch)

    async def collect(labels: LabelFuture) -> None:
        labels.result()

    return pipelines(submit, collect, crops, OURS)


class AsyncioClient:
    """tritonclient's asyncio client."""

    def __init__(self, address: str, card: TeacherCard) -> None:
        self._address = address
        self._output = card.label_output
        self._client: Any = None

    def settings(self, crops: NDArray[Any]) -> dict[str, RunSlice]:
        """Each way to ask it."""
        return pipelines(self._ask, self._collect, crops, STRAIGHT)

    async def _ask(self, batch: NDArray[Any]) -> asyncio.Task[Any]:
        from tritonclient.grpc import aio

        if self._client is None:
            self._client = aio.InferenceServerClient(self._address)
        question = self._client.infer(TEACHER, [crops_input(batch)], outputs=[wanted_output(self._output)])
        return asyncio.get_running_loop().create_task(question)

    async def _collect(self, answer: asyncio.Task[Any]) -> None:
        labels = (await answer).as_numpy(self._output)
        assert labels is not None


class CallbackClient:
    """tritonclient's blocking client with its callbacks, whose threads do the waiting."""

    def __init__(self, address: str, card: TeacherCard) -> None:
        from tritonclient import grpc

        self._output = card.label_output
        self._client = grpc.InferenceServerClient(address)

    def settings(self, crops: NDArray[Any]) -> dict[str, RunSlice]:
        """Each way to ask it."""
        return pipelines(self._ask, self._collect, crops, STRAIGHT)

    async def _ask(self, batch: NDArray[Any]) -> Future[Any]:
        answer: Future[Any] = Future()

        def called(result: Any, error: Exception | None) -> None:
            answer.set_exception(error) if error is not None else answer.set_result(result)

        self._client.async_infer(TEACHER, [crops_input(batch)], called, outputs=[wanted_output(self._output)])
        return answer

    async def _collect(self, answer: Future[Any]) -> None:
        labels = answer.result().as_numpy(self._output)
        assert labels is not None


def crops_input(batch: NDArray[Any]) -> Any:
    """The crops as tritonclient takes them."""
    from tritonclient.grpc import InferInput

    crops = InferInput(CROPS_INPUT, list(batch.shape), "UINT8")
    crops.set_data_from_numpy(batch)
    return crops


def wanted_output(name: str) -> Any:
    """The one output that is asked."""
    from tritonclient.grpc import InferRequestedOutput

    return InferRequestedOutput(name)


def pipelines(
    ask: Callable[[NDArray[Any]], Awaitable[Answer]],
    collect: Callable[[Answer], Awaitable[object]],
    crops: NDArray[Any],
    ways: Sequence[tuple[int, int]],
) -> dict[str, RunSlice]:
    """A contestant for each batch size and number in flight."""

    def pipeline(size: int, in_flight: int) -> RunSlice:
        batches = in_rotation([crops[first : first + size] for first in range(0, len(crops) - size + 1, size)])
        return lambda seconds: run_pipeline(ask, collect, batches, in_flight=in_flight, seconds=seconds)

    return {f"batches of {size}, {in_flight} in flight": pipeline(size, in_flight) for size, in_flight in ways}
