"""How much a training loop slows down when its soft labels come from a farm: the loop with them over the one without.

Simulated by time: the GPU's step and the teacher. Real: the batches (made by a DataLoader, then held in memory), the
LabelledLoader, the client, the wire, the server and every byte.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch.utils.data import DataLoader, Dataset

from bench.farm_process import running
from bench.interleave import Ratio, RunSlice, interleave, plan_slices, ratio
from bench.report import Row, finish, say, table
from bench.scripted_farm import SIZE, TEACHER
from teacherfarm.protos.allocator import keep_large_buffers
from teacherfarm.student import TeacherClient
from teacherfarm.student.labelled_loader import LabelledLoader

DEFAULT_SECONDS = 150.0
CROPS_PER_SECOND = (2000, 5000)
TEACHER_SPEED = 1.3
"""The simulated teacher's pace over what the loop needs."""
TEACHER_BATCH = 32
BATCH_CROPS = 64
NUM_BATCHES = 32
SETTLE_S = 0.25
"""Run before each slice and not counted: the labels asked ahead while the other loop ran are used up by then."""

Batch = dict[str, torch.Tensor]


def run(seconds: float) -> None:
    """Print the tables and the JSON line."""
    keep_large_buffers()
    torch.set_num_threads(1)
    say(
        f"stall: a training loop over DataLoader-made batches of {BATCH_CROPS} crops of {SIZE} px, ready in memory\n"
        "simulated: the GPU's step (a sleep without the interpreter lock) and the teacher (a sleep, "
        f"{TEACHER_SPEED:g} times the need). Not simulated: LabelledLoader, client, ZeroMQ, server, all bytes"
    )
    batches = list(DataLoader(RandomCrops(NUM_BATCHES * BATCH_CROPS), batch_size=BATCH_CROPS))
    figures: dict[str, float] = {}
    for rate in CROPS_PER_SECOND:
        found, cpu_share = asyncio.run(_measure(batches, rate, seconds / len(CROPS_PER_SECOND)))
        figures |= {f"ratio_{rate}": found.value, f"ratio_{rate}_spread": found.spread, f"cpu_share_{rate}": cpu_share}
    finish(figures)


class RandomCrops(Dataset[Batch]):
    """As many different crops as asked."""

    def __init__(self, num_crops: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._crops = torch.randint(0, 256, (num_crops, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, index: int) -> Batch:
        return {"crops": self._crops[index], "target": torch.tensor(index % 1000)}


@dataclass(kw_only=True)
class Loop:
    """A training loop that can be paused: each batch costs a step of ``seconds_per_crop``."""

    batches: Iterator[Batch]
    seconds_per_crop: float
    cpu_s: float = field(default=0.0, init=False)
    wall_s: float = field(default=0.0, init=False)

    async def run_slice(self, seconds: float) -> float:
        """Crops/s of some seconds of training, after a moment to settle."""
        self._train(SETTLE_S)
        cpu_s = time.process_time()
        num_crops, wall_s = self._train(seconds)
        self.cpu_s += time.process_time() - cpu_s
        self.wall_s += wall_s
        return num_crops / wall_s

    def _train(self, seconds: float) -> tuple[int, float]:
        started_s, num_crops = time.perf_counter(), 0
        while (passed_s := time.perf_counter() - started_s) < seconds:
            batch = next(self.batches)
            time.sleep(len(batch["crops"]) * self.seconds_per_crop)
            num_crops += len(batch["crops"])
        return num_crops, passed_s


class ReadyBatches:
    """Stands where the DataLoader stood: its batches again and again, without an end."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return itertools.cycle(self._batches)


async def _measure(batches: list[Batch], rate: int, seconds: float) -> tuple[Ratio, float]:
    with ExitStack() as stack:
        farm = stack.enter_context(
            running(
                "bench.scripted_farm",
                ["--largest-batch", str(TEACHER_BATCH), "--crops-per-second", str(TEACHER_SPEED * rate)],
            )
        )
        teacher = stack.enter_context(TeacherClient(farm["zmq"], TEACHER))
        ready = ReadyBatches(batches)
        labelled = LabelledLoader(ready, teacher, teacher_view=lambda batch: batch["crops"])
        stack.callback(labelled.close)
        with_labels = Loop(batches=(batch for batch, _ in labelled), seconds_per_crop=1 / rate)
        without = Loop(batches=iter(ready), seconds_per_crop=1 / rate)
        loops: dict[str, RunSlice] = {"with labels": with_labels.run_slice, "without a teacher": without.run_slice}
        plan = plan_slices(seconds, len(loops), shortest_s=0.25, longest_s=1.0, around_s=SETTLE_S)
        rates = await interleave(loops, rounds=plan.rounds, slice_s=plan.slice_s)
    found = ratio(rates["with labels"], rates["without a teacher"])
    cpu_share, cpu_share_without = (loop.cpu_s / loop.wall_s for loop in (with_labels, without))
    say(f"a student that takes {rate:,} crops/s")
    say(
        table(
            [
                Row(name="with labels", rates=rates["with labels"], ratio=found),
                Row(name="without a teacher", rates=rates["without a teacher"]),
            ]
        )
    )
    say(f"main process: {cpu_share:.1%} of a core with labels, {cpu_share_without:.1%} without; {labelled.report()}")
    return found, cpu_share
