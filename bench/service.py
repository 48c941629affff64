"""Labels/s that a student gets from a real teacher through the server, over a bare loop around ONNX Runtime.

The bare loop runs the same exported file in this process at its own best batch and thread layout.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.exported_teacher import CACHE, TEACHER, exported
from bench.farm_process import running
from bench.interleave import RunSlice, fastest, interleave, plan_slices, ratio
from bench.pipeline import in_rotation, run_pipeline
from bench.report import Row, finish, say, table
from teacherfarm.protos.allocator import keep_large_buffers
from teacherfarm.protos.teacher_card import CROPS_INPUT, TeacherCard
from teacherfarm.student import LabelFuture, TeacherClient

if TYPE_CHECKING:
    import onnxruntime

DEFAULT_SECONDS = 180.0
MODELS = CACHE / "bench"
BATCH_CROPS = 32
NUM_BATCHES = 8
BARE_BATCHES = (1, 2, 4, 6, 8)
BATCHES_IN_FLIGHT = (2, 3)
AROUND_S = 0.4
"""About what filling and draining takes, beside what a slice measures."""
SEARCH_SHARE = 0.25


def run(seconds: float, models: str = "") -> None:
    """Print the table and the JSON line; exports the teacher into ``models`` when it is not there yet."""
    keep_large_buffers()
    folder = Path(models) if models else MODELS
    asyncio.run(_run(seconds, folder, exported(folder)))


async def _run(seconds: float, folder: Path, card: TeacherCard) -> None:
    size = card.crop_format.height
    say(f"service: {TEACHER}, {size} px crops in batches of {BATCH_CROPS}, dense labels; nothing is simulated")
    shape = (NUM_BATCHES, BATCH_CROPS, *card.crop_format.shape)
    crops = list(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    with contextlib.ExitStack() as stack:
        bare = _bare_loops(folder / TEACHER / card.model_file, card, crops, stack)
        farm = stack.enter_context(
            running(
                "teacherfarm.teacher_server", [str(folder), "--grpc=127.0.0.1:0", "--zmq=127.0.0.1:0", "--http=off"]
            )
        )
        candidates = {wire: _through(farm[wire], crops, stack) for wire in ("zmq", "grpc")} | {"bare": bare}
        chosen: dict[str, RunSlice] = {}
        for name, settings in candidates.items():
            best = await fastest(settings, seconds=seconds * SEARCH_SHARE / len(candidates), shortest_s=0.15)
            say(f"  {name}: fastest with {best}")
            chosen[name] = settings[best]
        plan = plan_slices(seconds * (1 - SEARCH_SHARE), len(chosen), shortest_s=0.2, longest_s=1.0, around_s=AROUND_S)
        rates = await interleave(chosen, rounds=plan.rounds, slice_s=plan.slice_s)
    zmq, grpc = (ratio(rates[wire], rates["bare"]) for wire in ("zmq", "grpc"))
    say(
        table(
            [
                Row(name="zmq", rates=rates["zmq"], ratio=zmq),
                Row(name="grpc", rates=rates["grpc"], ratio=grpc),
                Row(name="bare ONNX Runtime", rates=rates["bare"]),
            ]
        )
    )
    finish(
        {
            "zmq_ratio": zmq.value,
            "zmq_ratio_spread": zmq.spread,
            "grpc_ratio": grpc.value,
            "grpc_ratio_spread": grpc.spread,
        }
    )


def _through(address: str, crops: list[NDArray[Any]], stack: contextlib.ExitStack) -> dict[str, RunSlice]:
    teacher = stack.enter_context(TeacherClient(address, TEACHER))
    batches = in_rotation(crops)

    async def submit(batch: NDArray[Any]) -> LabelFuture:
        return teacher.submit(batch)

    async def collect(labels: LabelFuture) -> None:
        labels.result()

    def with_in_flight(in_flight: int) -> RunSlice:
        return lambda slice_s: run_pipeline(submit, collect, batches, in_flight=in_flight, seconds=slice_s)

    return {f"{count} batches in flight": with_in_flight(count) for count in BATCHES_IN_FLIGHT}


def _bare_loops(
    model_file: Path, card: TeacherCard, crops: list[NDArray[Any]], stack: contextlib.ExitStack
) -> dict[str, RunSlice]:
    callers = stack.enter_context(ThreadPoolExecutor(2))
    output = card.label_output
    one_thread, two_threads = (_session(model_file, threads) for threads in (1, 2))

    def loop(session: onnxruntime.InferenceSession, batch: int) -> Callable[[float], float]:
        inputs = [np.ascontiguousarray(some[:batch]) for some in crops]

        def call_until(stop_s: float) -> float:
            started_s, calls = time.perf_counter(), 0
            while (now_s := time.perf_counter()) < stop_s:
                session.run([output], {CROPS_INPUT: inputs[calls % len(inputs)]})
                calls += 1
            return calls * batch / (now_s - started_s)

        return call_until

    def alone(call_until: Callable[[float], float]) -> RunSlice:
        async def run_slice(seconds: float) -> float:
            return call_until(time.perf_counter() + seconds)

        return run_slice

    def twice(call_until: Callable[[float], float]) -> RunSlice:
        async def run_slice(seconds: float) -> float:
            return sum(callers.map(call_until, [time.perf_counter() + seconds] * 2))

        return run_slice

    loops = {f"one call on two threads, batch {n}": alone(loop(two_threads, n)) for n in BARE_BATCHES}
    return loops | {f"two calls on one thread each, batch {n}": twice(loop(one_thread, n)) for n in BARE_BATCHES}


def _session(model_file: Path, threads: int) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(model_file), options, providers=["CPUExecutionProvider"])
