"""Whether a teacher's answers can feed a student by a method: measured over the real link before a run begins.

Measures answers and training steps of a copy; nothing of the run changes by it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from teacherfarm.protos.references import CropReferences
from teacherfarm.protos.soft_label import LABELS, LabelSpec, SoftLabels
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.by_reference import as_references
from teacherfarm.student.label_pass import PendingLabels
from teacherfarm.student.methods.method import Step
from teacherfarm.student.recording_teacher import Teacher

if TYPE_CHECKING:
    from teacherfarm.student.recipes.distill_data import DistillData
    from teacherfarm.student.recipes.distill_teachers import DistillTeachers
    from teacherfarm.student.recipes.phase_training import PhaseTraining
    from teacherfarm.student.recipes.ranks import Ranks

Crops = NDArray[np.uint8] | CropReferences

IN_FLIGHT = 8
"""Batches asked ahead while measuring, as a loader does."""
FED = 0.25
"""A method is refused where its answers come at less than this share of what both the student could take and the same
teacher gives when it is asked for bare labels: then it is the link, and waiting is most of the run."""
STUDENT_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class LinkReading:
    """Crops per second that the student takes, and for which the answers come that the method asks.

    ``bare_per_s``: for which bare labels come, None where that made no difference.
    """

    method: str
    bytes_per_crop: int
    student_per_s: float
    answers_per_s: float
    bare_per_s: float | None = None

    @property
    def share(self) -> float:
        """How much of the student's need is met, 0 to 1."""
        return min(self.answers_per_s / self.student_per_s, 1.0)

    @property
    def too_slow(self) -> bool:
        """Whether the link cannot carry this method."""
        return self.bare_per_s is not None and self.answers_per_s < FED * min(self.bare_per_s, self.student_per_s)

    def __str__(self) -> str:
        rate = self.answers_per_s * self.bytes_per_crop / 1e6
        return (
            f"{self.method} asks {self.bytes_per_crop} bytes a crop: {self.answers_per_s:.0f} crops/s answered "
            f"({rate:.2f} MB/s), the student takes {self.student_per_s:.0f}: fed to {self.share:.0%}"
        )

    def refusal(self) -> str:
        """What a user is told where it is too slow."""
        return (
            f"method {self.method} cannot be fed over this link: it asks {self.bytes_per_crop} bytes a crop, of which "
            f"{self.answers_per_s:.1f} crops/s arrive, while bare labels arrive for {self.bare_per_s:.0f} and this "
            f"student takes {self.student_per_s:.0f} crops/s: it would wait for {1 - self.share:.0%} of its time. A "
            "teacher exported with reduced outputs (--tap NAME@HxW), another method (teacherfarm methods lists what "
            "each asks), a faster link, or --measure-link 0 to train all the same"
        )


def bare_spec(card: TeacherCard) -> LabelSpec:
    """The least that this teacher can be asked for."""
    if card.activation == "softmax":
        return LabelSpec(outputs=(LABELS,), top_k=1, temperature=card.fixed_temperature or 1.0)
    if card.activation == "sigmoid":
        return LabelSpec()
    return LabelSpec(outputs=(min(card.features, key=lambda output: math.prod(output.shape)).name,))


def answers_per_s(teacher: Teacher, batches: Iterator[Crops], seconds: float) -> tuple[float, SoftLabels]:
    """Crops per second that a teacher answers, asked ahead as a loader asks it, and its first answer."""
    first = teacher.submit(next(batches)).result()
    pending: deque[PendingLabels] = deque()
    done, began_s = 0, time.perf_counter()
    while not done or time.perf_counter() - began_s < seconds:
        while len(pending) < IN_FLIGHT:
            crops = next(batches)
            if pending and teacher.room() < len(crops):
                break
            pending.append(teacher.submit(crops))
        done += len(pending.popleft().result())
    elapsed_s = time.perf_counter() - began_s
    for unwanted in pending:
        unwanted.cancel()
    return done / elapsed_s, first


def never_the_same(crops: Any) -> Iterator[Crops]:
    """Crops that no store has an answer to: the pixels of a batch, changed each time. References stay what they are."""
    references = as_references(crops)
    change = np.random.default_rng(time.time_ns())
    while references is not None:
        yield references
    pixels = np.asarray(crops)
    while True:
        yield pixels ^ change.integers(256, size=pixels.shape[1:], dtype=np.uint8)


def student_per_s(backward: Callable[[], object], num_crops: int, ranks: Ranks, seconds: float) -> float:
    """Crops per second of ``backward()``, which trains a copy on one batch: a few steps after a first one, or that one
    alone where it took ``seconds`` on any rank. All ranks take equally many, as a loss may wait for all of them.
    """
    device = ranks.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        took_s = _timed(backward, device)
        if ranks.any(took_s > seconds):
            return num_crops / took_s
        steps = [_timed(backward, device) for _ in range(STUDENT_STEPS)]
    return num_crops * STUDENT_STEPS / sum(steps)


def _timed(backward: Callable[[], object], device: torch.device) -> float:
    _finish(device)
    began_s = time.perf_counter()
    backward()
    _finish(device)
    return max(time.perf_counter() - began_s, 1e-9)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_link(
    options: argparse.Namespace, data: DistillData, teachers: DistillTeachers, training: PhaseTraining, ranks: Ranks
) -> LinkReading | str:
    """What a phase's labels and the student's steps come to, for about ``--measure-link`` seconds.

    Every rank measures at the same time, as they will train. Raises ValueError where the link is too slow on any.
    """
    asks, card, seconds = training.phase.asks, teachers.card, options.measure_link
    teacher = None if asks.spec is None else teachers.asked(asks.spec)
    if teacher is None or asks.spec is None:
        return "nothing to measure: this phase asks nobody"
    batch = data.some_batch(asks)
    crops = batch["crops"]
    answered, labels = answers_per_s(teacher, never_the_same(crops), seconds)
    step = Step(
        labels=labels,
        targets=data.train.targets(batch).to(ranks.device),
        samples=batch["samples"].to(ranks.device),
        mix=batch.get("mix"),
    )
    taken = student_per_s(training.rehearsal(data.student_input(batch), step), len(crops), ranks, seconds)
    bare = None
    if answered < FED * taken and teacher.spec != bare_spec(card).resolve(card):
        with teachers.asked_besides(bare_spec(card)) as other:
            bare, _ = answers_per_s(other, never_the_same(crops), seconds)
    reading = LinkReading(
        method=options.method,
        bytes_per_crop=teacher.spec.record_dtype(card).itemsize,
        student_per_s=taken,
        answers_per_s=answered,
        bare_per_s=bare,
    )
    if ranks.any(reading.too_slow):
        raise ValueError(reading.refusal() if reading.too_slow else f"another rank's link is too slow; here: {reading}")
    return reading
