"""How often the teacher computes a crop that four students ask for at about the same time, without any label store.

Real: EfficientNet-Lite0, the server, both wires. Nothing is simulated. The students go through the same batches, each
as fast as its answers come; only joining what is in flight keeps the teacher from computing each crop four times.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.exported_teacher import TEACHER, exported
from bench.farm_process import running
from bench.report import finish, say
from bench.service import BATCH_CROPS, MODELS
from teacherfarm.protos.allocator import keep_large_buffers
from teacherfarm.student import LabelFuture, TeacherClient

DEFAULT_SECONDS = 60.0
NUM_STUDENTS = 4
BATCHES_IN_FLIGHT = 3


def run(seconds: float, models: str = "") -> None:
    """Print what was computed and the JSON line."""
    keep_large_buffers()
    folder = Path(models) if models else MODELS
    card = exported(folder)
    say(
        f"fanout: {TEACHER}, {NUM_STUDENTS} students, ZeroMQ and gRPC in turn, all asking the same crops in batches of "
        f"{BATCH_CROPS}, {BATCHES_IN_FLIGHT} in flight; store off; nothing is simulated"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH_CROPS, *card.crop_format.shape), np.uint8)
    with ExitStack() as stack:
        places = [f"--{wire}=127.0.0.1:0" for wire in ("grpc", "zmq", "http")]
        farm = stack.enter_context(
            running("teacherfarm.teacher_server", [str(folder), "--store=off", "--log-level=ERROR", *places])
        )
        course = Course(seconds)
        students = [
            Student(stack.enter_context(TeacherClient(farm[("zmq", "grpc")[number % 2]], TEACHER)), course, pixels)
            for number in range(NUM_STUDENTS)
        ]
        for number, student in enumerate(students):
            # A crop of its own: from its answer on each knows that keys are wanted.
            student.teacher.label(stamped(pixels[:1], -1 - number))
        before, began_s = computed_crops(farm["http"]), time.monotonic()
        course.begin()
        for student in students:
            student.start()
        for student in students:
            student.join()
        took_s = time.monotonic() - began_s
        if errors := [student.error for student in students if student.error is not None]:
            raise errors[0]
        computed = computed_crops(farm["http"]) - before
    unique = course.num_batches * BATCH_CROPS
    asked = NUM_STUDENTS * unique
    say(f"asked {asked:,} crops, {unique:,} different ones; the teacher computed {computed:,}")
    say(f"{asked / took_s:,.0f} labels/s of {computed / took_s:,.0f} crops/s computed")
    finish(
        {
            "teacher_crops_per_unique_crop": computed / unique,
            "labels_per_s": asked / took_s,
            "computed_per_s": computed / took_s,
            "unique_crops": unique,
        }
    )


class Course:
    """The batches that all students go through: as many as the first of them gets to begin in the time."""

    def __init__(self, seconds: float) -> None:
        self.num_batches = 0
        self._seconds, self._until_s = seconds, 0.0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """The time runs from now on."""
        self._until_s = time.monotonic() + self._seconds

    def batches(self) -> Iterator[int]:
        """The number of each batch, for one student."""
        for number in itertools.count():
            with self._lock:
                if number >= self.num_batches:
                    if time.monotonic() >= self._until_s:
                        return
                    self.num_batches = number + 1
            yield number


class Student(threading.Thread):
    """Asks for every batch of the course."""

    def __init__(self, teacher: TeacherClient, course: Course, pixels: NDArray[Any]) -> None:
        super().__init__(daemon=True)
        self.teacher = teacher
        self._course, self._pixels = course, pixels
        self.error: BaseException | None = None

    def run(self) -> None:
        """Until the course ends."""
        try:
            waiting: deque[LabelFuture] = deque()
            for number in self._course.batches():
                waiting.append(self.teacher.submit(stamped(self._pixels, number)))
                if len(waiting) == BATCHES_IN_FLIGHT:
                    waiting.popleft().result()
            while waiting:
                waiting.popleft().result()
        except BaseException as error:
            self.error = error


def stamped(pixels: NDArray[Any], number: int) -> NDArray[Any]:
    """The crops with a number in their first pixels: crops that were never asked before."""
    crops = pixels.copy()
    crops[:, 0, :3, :].reshape(len(crops), -1)[:, :8] = np.frombuffer(number.to_bytes(8, "little", signed=True), "u1")
    return crops


def computed_crops(http: str) -> int:
    """Crops in all teacher batches so far."""
    with urllib.request.urlopen(f"{http}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    return int(
        sum(float(found) for found in re.findall(r"^teacherfarm_batch_crops_sum{.*} (\S+)$", page, re.MULTILINE))
    )
