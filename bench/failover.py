"""What a student notices when one of two Triton servers is killed under load: labels lost, doubled or wrong; a pause.

Real: EfficientNet-Lite0 on two tritonservers (Python backend, one thread each), the gateway, ZeroMQ, the student.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.exported_teacher import CACHE, TEACHER, exported
from bench.farm_process import running
from bench.report import finish, say
from teacherfarm.protos.allocator import keep_large_buffers
from teacherfarm.student import LabelFuture, TeacherClient
from tests.triton_server import TritonServer

DEFAULT_SECONDS = 60.0
MODELS = CACHE / "bench-failover"
ONE_THREAD = 'parameters { key: "intra_op_threads" value { string_value: "1" } }\n'
BATCH_CROPS = 8
NUM_BATCHES = 16
BATCHES_IN_FLIGHT = 16
WINDOW_S = 0.5
"""Labels/s are taken over so long; about a dozen answers on two cores."""
ENOUGH = 0.9
"""Of what one endpoint gives at the median: half of its own windows are below the median, too."""
SETTLE_S = 1.5
WATCH_S = 5.0
PATIENCE_S = 60.0


def run(seconds: float) -> None:
    """Print what happened at each kill, and the JSON line."""
    keep_large_buffers()
    card = exported(MODELS, for_triton=True, config=ONE_THREAD)
    say(
        f"failover: {TEACHER} on two Triton servers behind the gateway; a student asks batches of {BATCH_CROPS} crops, "
        f"{BATCHES_IN_FLIGHT} in flight, over ZeroMQ; one server is killed with -9, again and again"
    )
    shape = (NUM_BATCHES, BATCH_CROPS, *card.crop_format.shape)
    crops = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with TeacherClient(f"local://{MODELS}", TEACHER) as local:
        right = [local.label(batch).records.tobytes() for batch in crops]
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [stack.enter_context(TritonServer(MODELS, logs)) for _ in range(2)]
        endpoints = ",".join(server.grpc for server in servers)
        servers[1].kill()
        places = ["--grpc=off", "--zmq=127.0.0.1:0", "--http=127.0.0.1:0", "--log-level=ERROR"]
        farm = stack.enter_context(
            running("teacherfarm.teacher_server", [str(MODELS), f"--triton={endpoints}", *places])
        )
        student = Student(farm["zmq"], crops, right)
        stack.callback(student.finish)
        began_s = time.monotonic()
        time.sleep(SETTLE_S + WATCH_S)
        one = float(np.median(window_rates(student.answers, began_s + SETTLE_S, time.monotonic())))
        say(f"one server: {one:,.0f} labels/s")
        servers[1].start()
        pauses: list[float] = []
        gaps: list[float] = []
        for victim in itertools.cycle(servers):
            wait_for(lambda: _num_serving(farm["http"]) == 2)
            time.sleep(SETTLE_S)
            killed_s = time.monotonic()
            victim.kill()
            time.sleep(WATCH_S)
            pauses.append(recovery_s(student.answers, killed_s, ENOUGH * one))
            gaps.append(longest_gap_s(student.answers, killed_s))
            say(f"killed: {ENOUGH:.0%} of one server's pace after {pauses[-1]:.2f} s, longest silence {gaps[-1]:.2f} s")
            if time.monotonic() - began_s > seconds - WATCH_S - 2 * SETTLE_S:
                break
            victim.start()
        student.finish()
        answered = _metric(farm["http"], "teacherfarm_labels_total")
    finish(
        {
            "lost": (student.asked - len(student.answers)) * BATCH_CROPS,
            "duplicated": max(0.0, answered - student.asked * BATCH_CROPS),
            "wrong": student.wrong * BATCH_CROPS,
            "recovery_s": max(pauses),
            "longest_silence_s": max(gaps),
            "one_endpoint_labels_per_s": one,
            "labels": len(student.answers) * BATCH_CROPS,
            "kills": len(pauses),
        }
    )


class Student:
    """Asks the same batches over and over, compares every answer, and notes when it came."""

    def __init__(self, address: str, crops: NDArray[np.uint8], right: Sequence[bytes]) -> None:
        self.asked = 0
        self.wrong = 0
        self.answers: list[float] = []
        self._client = TeacherClient(address, TEACHER)
        self._crops, self._right = crops, right
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Ask no more and wait for what was asked; what does not come counts as lost."""
        self._stopping.set()
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        pending: deque[tuple[int, LabelFuture]] = deque()
        with self._client as teacher:
            while pending or not self._stopping.is_set():
                while len(pending) < BATCHES_IN_FLIGHT and not self._stopping.is_set():
                    number = self.asked % NUM_BATCHES
                    pending.append((number, teacher.submit(self._crops[number])))
                    self.asked += 1
                number, future = pending.popleft()
                labels = future.result(PATIENCE_S)
                self.answers.append(time.monotonic())
                self.wrong += labels.records.tobytes() != self._right[number]


def window_rates(answers: Sequence[float], start_s: float, end_s: float) -> list[float]:
    """Labels/s in each whole window between two moments."""
    edges = np.arange(start_s, end_s + 1e-9, WINDOW_S)
    counts = np.histogram(answers, bins=edges)[0] if len(edges) > 1 else np.zeros(0)
    return [float(count) * BATCH_CROPS / WINDOW_S for count in counts]


def recovery_s(answers: Sequence[float], killed_s: float, enough: float) -> float:
    """How long after the kill the first window ends that began after it and has at least this pace; inf if none."""
    times = np.asarray([time_s for time_s in answers if time_s >= killed_s])
    starts = np.concatenate([[killed_s], times])
    counts = np.searchsorted(times, starts + WINDOW_S) - np.searchsorted(times, starts)
    found = starts[counts * BATCH_CROPS / WINDOW_S >= enough]
    return float(found[0] + WINDOW_S - killed_s) if len(found) else float("inf")


def longest_gap_s(answers: Sequence[float], since_s: float) -> float:
    """The longest time without any answer after a moment."""
    times = [since_s, *(time_s for time_s in answers if time_s >= since_s)]
    return max((after - before for before, after in itertools.pairwise(times)), default=float("inf"))


def wait_for(condition: Callable[[], Any]) -> None:
    """Until it holds; TimeoutError when it does not."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError("the killed server is not back in the pool")
        time.sleep(0.05)


def _num_serving(http: str) -> float:
    return _metric(http, "teacherfarm_endpoint_up")


def _metric(http: str, name: str) -> float:
    """The sum of a metric's samples."""
    with urllib.request.urlopen(f"{http}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    return sum(float(found) for found in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", page, re.MULTILINE))
