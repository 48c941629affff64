"""A server that does not answer: the student's policy decides, and its memory is bounded by its window (3 and 7)."""

from __future__ import annotations

import gc
import logging
import threading
import weakref

import numpy as np
import pytest

from teacherfarm.protos.faults import Starved
from teacherfarm.student import TeacherClient, Timeouts
from teacherfarm.student.labelled_loader import LabelledLoader
from tests.farm_process import wait_for
from tests.scripted_farm import HANGS, asking_for, make_crops, right_classes

IMPATIENT = Timeouts(answer_s=1.5)


@pytest.fixture
def farm(start_scripted):
    """A teacher with two slots, one of which a crop may hang."""
    return start_scripted("--slots=2", "--largest-batch=4")


def test_raise_names_what_starved_and_goes_on(wire, farm):
    with TeacherClient(getattr(farm, wire), timeouts=IMPATIENT, on_starved="raise") as teacher:
        hanging = teacher.submit(asking_for(HANGS, 4, seed=1))
        good = make_crops(4, seed=2)
        assert (teacher.label(good).top1 == right_classes(good, 10)).all()
        with pytest.raises(
            Starved, match=r"4 of 4 crops got no labels for 1\.\d s from (zmq|grpc)://.*on_starved='skip'"
        ):
            hanging.result(10)
        assert (teacher.label(good).top1 == right_classes(good, 10)).all()
        assert (teacher.stats.sessions, teacher.stats.crops_starved) == (1, 4)


def test_skip_keeps_shape_and_steps_with_weight_0(wire, farm):
    """Only the rows without an answer lose their weight; every batch keeps its size."""
    batches = [make_crops(12, seed) for seed in range(6)]
    batches[2][5, 0, 0, 0] = HANGS  # in the second slice of 4
    with TeacherClient(getattr(farm, wire), timeouts=IMPATIENT, on_starved="skip") as teacher:
        steps = 0
        for crops, labels in LabelledLoader(batches, teacher, lambda crops: crops):
            expected = np.ones(12)
            if steps == 2:
                expected[4:8] = 0
                assert not labels.records[4:8].tobytes().strip(b"\0")
            assert (labels.weight == expected).all()
            answered = expected == 1
            assert (labels.top1[answered] == right_classes(crops, 10)[answered]).all()
            steps += 1
        assert steps == len(batches)
        assert teacher.stats.crops_starved == 4
        assert teacher.stats.crops_answered == 6 * 12 - 4


def test_wait_waits_says_so_and_gets_every_label(wire, farm, caplog):
    batches = [make_crops(12, seed) for seed in range(6)]
    with TeacherClient(getattr(farm, wire), timeouts=IMPATIENT) as teacher, caplog.at_level(logging.WARNING):
        farm.pause()
        answers = [teacher.submit(crops) for crops in batches]
        wait_for(lambda: "still waiting" in caplog.text)
        assert not any(answer.done() for answer in answers)
        farm.resume()
        for crops, answer in zip(batches, answers, strict=True):
            assert (answer.result(20).top1 == right_classes(crops, 10)).all()
        assert teacher.stats.sessions == 1


def test_submitting_waits_for_room_while_the_server_stalls(wire, farm):
    window = 64
    with TeacherClient(getattr(farm, wire), window=window) as teacher:
        farm.pause()
        answers = []
        submitting = threading.Thread(
            target=lambda: answers.extend(teacher.submit(make_crops(16, seed)) for seed in range(8)), daemon=True
        )
        submitting.start()
        # Until the thread waits for room.
        wait_for(lambda: teacher._room_changed._waiters and teacher.stats.crops_asked >= window)
        assert (teacher.stats.crops_asked, teacher.room()) == (window, 0)
        assert submitting.is_alive()
        farm.resume()
        for number in range(8):
            wait_for(lambda number=number: len(answers) > number)
            answers[number].result(20)
        submitting.join(20)
        assert teacher.stats.crops_answered == 8 * 16


def test_a_starving_student_holds_no_more_than_its_window(wire, farm):
    """Batch after batch is given up; one that nobody waits for must be forgotten, or an outage fills the memory."""
    window, batch, rounds = 64, 16, 30
    alive: list[weakref.ref[np.ndarray]] = []
    with TeacherClient(
        getattr(farm, wire), window=window, timeouts=Timeouts(answer_s=0.05), on_starved="skip"
    ) as teacher:
        teacher.label(make_crops(4, seed=0))
        farm.pause()

        def crops():
            for seed in range(rounds):
                pixels = make_crops(batch, seed)
                alive.append(weakref.ref(pixels))
                yield pixels

        steps = sum((labels.weight == 0).all() for _, labels in LabelledLoader(crops(), teacher, lambda pixels: pixels))
        assert steps == rounds
        gc.collect()
        held = sum(reference() is not None for reference in alive)
        # What was sent stays until the session ends, since the server may still answer it; the last few may not be
        # forgotten yet.
        assert held * batch <= window + 3 * batch, f"{held} batches are still in memory"
        farm.resume()
        good = make_crops(4, seed=99)

        def served_again():
            labels = teacher.label(good)
            return labels.weight.all() and (labels.top1 == right_classes(good, 10)).all()

        wait_for(served_again)
