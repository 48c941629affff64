"""Whether hungry projects share a teacher by their weights, and whether one alone gets all of it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import numpy as np

from bench.farm_process import running
from bench.report import finish, say
from bench.scripted_farm import TEACHER
from teacherfarm.protos.allocator import keep_large_buffers
from teacherfarm.student import AsyncTeacherClient
from teacherfarm.teacher_server.projects.api_keys import digest_of, make_key

DEFAULT_SECONDS = 60.0
PACE = 3000.0
"""The teacher's crops/s: far below what one core moves over the wire, so that the teacher is what is scarce."""
SIZE = 32
LARGEST_BATCH = 16
BATCH_CROPS = 8
BATCHES_IN_FLIGHT = 32
DROPPED_S = 1.0
LEAST_MEASURED_S = 1.0
ROUNDS = 4

EQUAL = tuple(f"equal-{number}" for number in range(8))
WEIGHTS: dict[str, float] = {"heavy": 3.0, "light": 1.0} | dict.fromkeys(EQUAL, 1.0)
PHASES: dict[str, tuple[str, ...]] = {"weights 3:1": ("heavy", "light"), "8 equal": EQUAL, "one alone": EQUAL[:1]}


def run(seconds: float) -> None:
    """Print the shares and the JSON line."""
    keep_large_buffers()
    asyncio.run(_run(seconds))


async def _run(seconds: float) -> None:
    measured_s = max(LEAST_MEASURED_S, seconds / (ROUNDS * len(PHASES)) - DROPPED_S)
    say(
        f"fairness: {ROUNDS} rounds of {len(PHASES)} phases, each {measured_s:.1f} s after {DROPPED_S:g} s dropped; "
        f"a student a project, ZeroMQ and gRPC in turn, {BATCHES_IN_FLIGHT} batches of {BATCH_CROPS} crops in flight\n"
        f"simulated: the teacher (zeros at {PACE:.0f} crops/s by the clock)"
    )
    errors: dict[str, list[float]] = {name: [] for name in PHASES}
    rates: dict[str, list[float]] = {name: [] for name in PHASES}
    async with AsyncExitStack() as stack:
        students = await _connect(stack)
        for _ in range(ROUNDS):
            for name, projects in PHASES.items():
                counts = await _all_hungry({project: students[project] for project in projects}, measured_s)
                errors[name].append(largest_share_error(counts, {project: WEIGHTS[project] for project in projects}))
                rates[name].append(sum(counts.values()) / measured_s)
    width = max(map(len, PHASES))
    say(f"{'':{width}}  {'crops/s':>8}  largest relative error of a share")
    for name in PHASES:
        say(f"{name:{width}}  {median(rates[name]):8.0f}  {max(errors[name]):.4f}")
    finish(
        {
            "max_relative_share_error": max(max(of_phase) for of_phase in errors.values()),
            "work_conserving": median(rates["one alone"]) / median(rates["8 equal"]),
            "weights_relative_share_error": max(errors["weights 3:1"]),
            "equal_relative_share_error": max(errors["8 equal"]),
        }
    )


def largest_share_error(counts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """How far the worst project's share is from what its weight gives it, relative to that."""
    all_crops, all_weights = sum(counts.values()), sum(weights.values())
    return max(
        abs(counts.get(name, 0.0) / all_crops / (weight / all_weights) - 1.0) for name, weight in weights.items()
    )


async def _connect(stack: AsyncExitStack) -> dict[str, AsyncTeacherClient]:
    keys = {name: make_key() for name in WEIGHTS}
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    tables = (
        f'[projects.{name}]\nweight = {weight}\nkeys = ["{digest_of(keys[name])}"]\n'
        for name, weight in WEIGHTS.items()
    )
    (folder / "projects.toml").write_text("".join(tables))
    options = {
        "--largest-batch": LARGEST_BATCH,
        "--crops-per-second": PACE,
        "--size": SIZE,
        "--projects": folder / "projects.toml",
    }
    farm = stack.enter_context(running("bench.scripted_farm", [f"{flag}={value}" for flag, value in options.items()]))
    return {
        name: await stack.enter_async_context(
            AsyncTeacherClient(farm[("zmq", "grpc")[number % 2]], TEACHER, api_key=keys[name])
        )
        for number, name in enumerate(WEIGHTS)
    }


async def _all_hungry(students: Mapping[str, AsyncTeacherClient], measured_s: float) -> Counter[str]:
    """Crops answered to each project from a second after all began to ask until ``measured_s`` later."""
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH_CROPS, SIZE, SIZE, 3), np.uint8)
    counts: Counter[str] = Counter()
    from_s = time.monotonic() + DROPPED_S
    until_s = from_s + measured_s

    async def ask(name: str, student: AsyncTeacherClient) -> None:
        answers = deque([await student.submit(pixels) for _ in range(BATCHES_IN_FLIGHT)])
        while answers:
            await answers.popleft()
            now_s = time.monotonic()
            if from_s <= now_s < until_s:
                counts[name] += BATCH_CROPS
            if now_s < until_s:
                answers.append(await student.submit(pixels))

    await asyncio.gather(*(ask(name, student) for name, student in students.items()))
    return counts
