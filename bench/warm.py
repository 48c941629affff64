"""Labels/s of crops whose labels are kept over labels/s of crops that come for the first time, through the same server.

Real: EfficientNet-Lite0, the server, ZeroMQ, the student, LMDB on this disk. Nothing is simulated.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.exported_teacher import TEACHER, exported
from bench.fanout import stamped
from bench.farm_process import running
from bench.interleave import RunSlice, interleave, plan_slices, ratio
from bench.pipeline import in_rotation, run_pipeline
from bench.report import Row, finish, say, table
from bench.service import BATCH_CROPS, MODELS
from teacherfarm.protos.allocator import keep_large_buffers
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student import LabelFuture, TeacherClient

DEFAULT_SECONDS = 120.0
NUM_BATCHES = 24
"""768 dense labels are 1.7 MB of memory: more than the disk's contestant has, so that each comes from the disk."""
LITTLE_MEMORY_MB = 1
BATCHES_IN_FLIGHT = 3
AROUND_S = 0.4


def run(seconds: float, models: str = "") -> None:
    """Print the table and the JSON line."""
    keep_large_buffers()
    folder = Path(models) if models else MODELS
    asyncio.run(_run(seconds, folder, exported(folder)))


async def _run(seconds: float, folder: Path, card: TeacherCard) -> None:
    size = card.crop_format.height
    say(
        f"warm: {TEACHER}, {size} px crops in batches of {BATCH_CROPS}, {BATCHES_IN_FLIGHT} in flight, dense labels, "
        "ZeroMQ; nothing is simulated"
    )
    crops = np.random.default_rng(0).integers(0, 256, (NUM_BATCHES, BATCH_CROPS, *card.crop_format.shape), np.uint8)
    with contextlib.ExitStack() as stack:
        labels = stack.enter_context(tempfile.TemporaryDirectory())

        def teacher(*store: str) -> TeacherClient:
            places = ["--grpc=off", "--zmq=127.0.0.1:0", "--http=off", "--log-level=ERROR"]
            farm = stack.enter_context(running("teacherfarm.teacher_server", [str(folder), *places, *store]))
            return stack.enter_context(TeacherClient(farm["zmq"], TEACHER))

        disk = f"--store-memory-mb={LITTLE_MEMORY_MB}"
        in_memory, on_disk, without = teacher("--store=memory"), teacher(f"--store=lmdb:{labels}", disk), teacher()
        for warmed in (in_memory, on_disk):
            for batch in crops:
                warmed.label(batch)
        contestants = {
            "warm, memory": _asking(in_memory, in_rotation(list(crops))),
            "warm, LMDB": _asking(on_disk, in_rotation(list(crops))),
            "cold": _asking(in_memory, fresh(crops)),
            "no store": _asking(without, fresh(crops)),
        }
        plan = plan_slices(seconds, len(contestants), shortest_s=0.2, longest_s=1.0, around_s=AROUND_S)
        rates = await interleave(contestants, rounds=plan.rounds, slice_s=plan.slice_s)
    ratios = {name: ratio(rates[name], rates["cold"]) for name in rates if name != "cold"}
    say(table([Row(name=name, rates=rates[name], ratio=ratios.get(name)) for name in rates]))
    cold = ratio(rates["cold"], rates["no store"])
    finish(
        {
            "warm_over_cold": ratios["warm, memory"].value,
            "warm_over_cold_spread": ratios["warm, memory"].spread,
            "warm_lmdb_over_cold": ratios["warm, LMDB"].value,
            "warm_lmdb_over_cold_spread": ratios["warm, LMDB"].spread,
            "cold_over_no_store": cold.value,
            "cold_over_no_store_spread": cold.spread,
        }
    )


def _asking(teacher: TeacherClient, batches: Iterator[NDArray[Any]]) -> RunSlice:
    async def submit(batch: NDArray[Any]) -> LabelFuture:
        return teacher.submit(batch)

    async def collect(labels: LabelFuture) -> None:
        labels.result()

    return lambda seconds: run_pipeline(submit, collect, batches, in_flight=BATCHES_IN_FLIGHT, seconds=seconds)


def fresh(crops: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Batches without end, none of them twice."""
    for number in itertools.count(1):
        yield stamped(crops[number % len(crops)], number)
