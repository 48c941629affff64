"""What a training loop says at the end of an epoch, of a real farm that is too slow for it, and of one that is not."""

from __future__ import annotations

import time

import pytest

from teacherfarm.student import TeacherClient
from teacherfarm.student.labelled_loader import LabelledLoader
from tests.scripted_farm import make_crops

BATCH, STEP_S = 16, 0.08
"""The student takes 200 crops/s."""


def train(address: str, num_batches: int) -> LabelledLoader:
    """A loop whose step takes its time: a GPU's, in which the processor is free."""
    batches = [make_crops(BATCH, seed) for seed in range(num_batches)]
    with TeacherClient(address) as teacher:
        loader = LabelledLoader(batches, teacher, teacher_view=lambda batch: batch, prefetch_batches=4)
        for _ in loader:
            time.sleep(STEP_S)
        return loader


def test_a_teacher_slower_than_the_student(wire, start_scripted):
    # 125 crops/s.
    farm = start_scripted("--seconds-per-crop=0.008", "--largest-batch=8")
    loader = train(getattr(farm, wire), 40)
    assert loader.stall == pytest.approx(0.375, abs=0.15)
    assert loader.report().startswith(
        f"teacher-bound {100 * loader.stall:.0f} %: 1 more teacher would feed this student"
    )


def test_a_teacher_that_is_fast_enough(start_scripted):
    farm = start_scripted("--seconds-per-crop=0.001", "--largest-batch=8")
    loader = train(farm.zmq, 30)
    assert loader.stall < 0.3
    assert "more teacher" not in loader.report()
