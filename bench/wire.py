"""What the wire costs: a server that computes nothing, over bare loops that move the same bytes in such messages."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, closing

import numpy as np

from bench.farm_process import running
from bench.interleave import RunSlice, fastest, high, interleave, interquartile_range, plan_slices, ratio
from bench.pipeline import in_rotation, run_pipeline
from bench.report import Row, finish, say, table
from bench.scripted_farm import SIZE, TEACHER
from bench.wire_reference import MESSAGE_BYTES, BareGrpc, BareZmq
from teacherfarm.protos.allocator import keep_large_buffers
from teacherfarm.protos.wire import PAYLOAD_BYTES
from teacherfarm.student import AsyncTeacherClient, SoftLabels

DEFAULT_SECONDS = 90.0
BATCH_CROPS = 32
NUM_BATCHES = 64
CROP_BYTES = SIZE * SIZE * 3
SEARCH_SHARE = 0.3
BATCHES_IN_FLIGHT = (2, 4, 8, 16, 24)
MESSAGES_IN_FLIGHT = (2, 4, 6, 12, 24, 48)


def run(seconds: float) -> None:
    """Print the table and the JSON line."""
    keep_large_buffers()
    asyncio.run(_run(seconds))


async def _run(seconds: float) -> None:
    crops_in_message = PAYLOAD_BYTES // CROP_BYTES
    say(
        f"wire: raw {SIZE} px crops in batches of {BATCH_CROPS}, {NUM_BATCHES} distinct batches in rotation, dense "
        f"labels back; messages of {crops_in_message} crops, {MESSAGE_BYTES // CROP_BYTES} in the bare loops\n"
        "simulated: the teacher (it answers zeros at once)"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_BATCHES, BATCH_CROPS, SIZE, SIZE, 3), np.uint8)
    batches = in_rotation(list(pixels))
    async with AsyncExitStack() as stack:
        bare = stack.enter_context(running("bench.wire_reference", ["--crop-bytes", str(CROP_BYTES)]))

        async def ours(wire: str) -> dict[str, RunSlice]:
            # A server for each wire: beside another session of the same farm, a student makes keys of its crops.
            farm = stack.enter_context(running("bench.scripted_farm", ["--largest-batch", str(crops_in_message)]))
            window = (max(BATCHES_IN_FLIGHT) + 1) * BATCH_CROPS
            teacher = await stack.enter_async_context(AsyncTeacherClient(farm[wire], TEACHER, window=window))

            def with_in_flight(in_flight: int) -> RunSlice:
                return lambda slice_s: run_pipeline(
                    teacher.submit, _collect, batches, in_flight=in_flight, seconds=slice_s
                )

            return {f"{count} batches in flight": with_in_flight(count) for count in BATCHES_IN_FLIGHT}

        def bare_zmq(count: int) -> RunSlice:
            loop = stack.enter_context(closing(BareZmq(bare["zmq"], CROP_BYTES, batches, in_flight=count)))
            return loop.run_slice

        def bare_grpc(scheme: str, count: int) -> RunSlice:
            loop = BareGrpc(bare[scheme], CROP_BYTES, batches, in_flight=count)
            stack.push_async_callback(loop.close)
            return loop.run_slice

        candidates = {
            "zmq": await ours("zmq"),
            "bare zmq": {f"{count} messages in flight": bare_zmq(count) for count in MESSAGES_IN_FLIGHT},
            "grpc": await ours("grpc"),
            "bare grpc": {
                f"{count} messages in flight, {how}": bare_grpc(scheme, count)
                for count in MESSAGES_IN_FLIGHT
                for scheme, how in (("grpc", "answered in turn"), ("grpcwriter", "a writer task beside the reader"))
            },
        }
        chosen: dict[str, RunSlice] = {}
        for name, settings in candidates.items():
            best = await fastest(settings, seconds=seconds * SEARCH_SHARE / len(candidates))
            say(f"  {name}: fastest with {best}")
            chosen[name] = settings[best]
        plan = plan_slices(seconds * (1 - SEARCH_SHARE), len(chosen), shortest_s=0.05, longest_s=0.25)
        rates = await interleave(chosen, rounds=plan.rounds, slice_s=plan.slice_s)
    zmq, grpc = (ratio(rates[wire], rates[f"bare {wire}"]) for wire in ("zmq", "grpc"))
    rows = [
        Row(name="zmq", rates=rates["zmq"], ratio=zmq),
        Row(name="bare zmq", rates=rates["bare zmq"]),
        Row(name="grpc", rates=rates["grpc"], ratio=grpc),
        Row(name="bare grpc", rates=rates["bare grpc"]),
    ]
    say(table(rows))
    zmq_us, grpc_us = ([1e6 / rate for rate in rates[wire]] for wire in ("zmq", "grpc"))
    finish(
        {
            "zmq_ratio": zmq.value,
            "zmq_ratio_spread": zmq.spread,
            "grpc_ratio": grpc.value,
            "grpc_ratio_spread": grpc.spread,
            "zmq_us_per_crop": 1e6 / high(rates["zmq"]),
            "zmq_us_per_crop_spread": interquartile_range(zmq_us),
            "grpc_us_per_crop": 1e6 / high(rates["grpc"]),
            "grpc_us_per_crop_spread": interquartile_range(grpc_us),
        }
    )


async def _collect(labels: asyncio.Future[SoftLabels]) -> SoftLabels:
    return await labels
