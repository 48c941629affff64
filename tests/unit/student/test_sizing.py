"""Sizing: how many teachers would feed a student, and the same in words."""

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacherfarm.protos.messages import FarmLoad, StudentReport
from teacherfarm.student.sizing import NEGLIGIBLE, SATURATED, LoadSum, teachers_missing, wanted_per_s
from teacherfarm.student.stall import Stall
from teacherfarm.student.waits import Reporter, WaitClock

FULL = FarmLoad(busy=1.0, backends=4, labels_per_s=1000)


@pytest.mark.parametrize(
    ("wanted", "load", "missing"),
    [
        (1000, FULL, 0),  # it gets what it wants
        (1001, FULL, 1),
        (1250, FULL, 1),  # each of the four gives 250
        (1270, FULL, 1),  # a tenth of a teacher is not worth another one
        (1280, FULL, 2),
        (2000, FULL, 4),
        (1900, FarmLoad(busy=0.45, backends=4, labels_per_s=1000), 0),  # there is time for another 1000
        (2100, FarmLoad(busy=0.45, backends=4, labels_per_s=1000), 1),
        (1050, FarmLoad(busy=0.95, backends=1, labels_per_s=1000), 1),  # as busy as a teacher can be
        (1500, FarmLoad(busy=0.0, backends=0, labels_per_s=0), None),
        (1500, FarmLoad(busy=0.4, backends=1, labels_per_s=0), None),
    ],
)
def test_teachers_missing(wanted, load, missing):
    assert teachers_missing(wanted=wanted, got=1000, load=load) == missing


@given(st.floats(0.01, 1), st.integers(1, 64), st.floats(1, 1e6), st.floats(0, 1), st.floats(0, 1e6))
def test_with_so_many_more_it_is_fed_and_with_one_less_it_is_not(busy, backends, labels_per_s, of_them, lacking):
    load = FarmLoad(busy=busy, backends=backends, labels_per_s=labels_per_s)
    got = labels_per_s * of_them
    missing = teachers_missing(wanted=got + lacking, got=got, load=load)
    per_backend = labels_per_s / min(1, busy / SATURATED) / backends
    spare = per_backend * backends - labels_per_s
    assert spare + (missing + (missing and NEGLIGIBLE)) * per_backend >= lacking * (1 - 1e-6) - 1e-6
    assert missing == 0 or spare + (missing - 1) * per_backend <= lacking * (1 + 1e-6) + 1e-6


def test_what_a_student_would_take_without_waiting():
    assert wanted_per_s(crops=820, total_s=10, waited_s=1.8) == pytest.approx(100)
    assert math.isfinite(wanted_per_s(crops=5, total_s=10, waited_s=10))
    assert wanted_per_s(crops=0, total_s=0, waited_s=0) == 0


def test_loads_add_up_by_their_time():
    before = LoadSum().plus(FarmLoad(busy=1.0, backends=1, labels_per_s=100), 10)
    after = before.plus(FarmLoad(busy=0.2, backends=2, labels_per_s=10), 1).plus(
        FarmLoad(busy=0.8, backends=3, labels_per_s=40), 3
    )
    load = after.since(before)
    assert (load.busy, load.backends, load.labels_per_s) == (pytest.approx(0.65), 3, pytest.approx(32.5))
    assert before.since(before) is None


BOUND = Stall(total_s=100, labels_s=18, batches_s=1, crops=82_000)
"""Takes 1000 crops/s, got 820."""


def test_the_sentence_says_how_many_teachers_would_feed_the_student():
    BOUND.load = FarmLoad(busy=1.0, backends=8, labels_per_s=820)
    assert BOUND.report() == (
        "teacher-bound 18 %: 2 more teachers would feed this student; waited 18.0 of 100.0 s for labels, got 820 of "
        "1000 crops/s from 8 teachers, 100 % busy"
    )
    BOUND.load = FarmLoad(busy=0.97, backends=1, labels_per_s=820)
    assert BOUND.report().startswith("teacher-bound 18 %: 1 more teacher would feed this student; ")
    assert "from 1 teacher, 97 % busy" in BOUND.report()


def test_teachers_with_time_to_spare_are_not_to_blame():
    BOUND.load = FarmLoad(busy=0.3, backends=1, labels_per_s=820)
    assert BOUND.report().startswith("link-bound 18 %: waited 18.0 of 100.0 s")
    assert "30 % busy" in BOUND.report()
    assert "teacherfarm doctor" in BOUND.report()


def test_a_farm_without_a_backend_is_named():
    BOUND.load = FarmLoad(busy=0.0, backends=0, labels_per_s=0)
    assert BOUND.report().startswith("teacher-bound 18 %: no backend runs this teacher")


def test_without_a_word_from_the_farm_only_the_speed_is_known():
    BOUND.load = None
    assert BOUND.report() == (
        "teacher-bound 18 %: waited 18.0 of 100.0 s for labels; teachers 1.22 times as fast would feed it"
    )


def test_other_bounds():
    assert Stall(total_s=100, labels_s=1, batches_s=40).report().startswith("loader-bound 40 %")
    assert Stall(total_s=100, labels_s=1, batches_s=2).report().startswith("student-bound")
    assert Stall(total_s=100, labels_s=4).report() == "student-bound: waited 4.0 of 100.0 s for labels (4.0 %)"
    assert "teachers 1.05 times as fast" in Stall(total_s=100, labels_s=5).report()
    assert Stall().share == 0
    both = Stall(total_s=100, labels_s=18, load=FULL) + Stall(total_s=100, labels_s=18)
    assert (both.share, both.load) == (0.18, FULL)


class Clock:
    now = 10.0

    def __call__(self):
        return self.now


def test_waits_that_overlap_count_once_and_one_under_way_counts_so_far():
    clock = Clock()
    waits = WaitClock(clock)
    with waits:
        clock.now += 2
        with waits:
            clock.now += 3
            assert waits.waited_s == 5
        clock.now += 1
    clock.now += 100
    assert waits.waited_s == 6


def test_waits_of_several_threads_are_counted():
    waits, inside, go = WaitClock(), threading.Barrier(3), threading.Event()

    def wait():
        with waits:
            inside.wait(20)
            go.wait(20)

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(20)
    assert waits.waited_s < (later := waits.waited_s)
    go.set()
    for thread in threads:
        thread.join(20)
    assert waits.waited_s == waits.waited_s >= later


def test_reports_are_each_over_the_time_since_the_last():
    clock = Clock()
    waits = WaitClock(clock)
    reporter = Reporter(waits, clock)
    assert reporter.report(0) is None
    with waits:
        clock.now += 1
    clock.now += 3
    assert reporter.report(300) == StudentReport(stall=0.25, wanted_per_s=100)
    clock.now += 5
    assert reporter.report(800) == StudentReport(stall=0, wanted_per_s=100)
    with waits:
        clock.now += 5
        # The last answer is long ago, and that is what a monitor must see now.
        assert reporter.report(800) == StudentReport(stall=1, wanted_per_s=0)
        clock.now += 1
    clock.now += 1
    assert reporter.report(900) == StudentReport(stall=0.5, wanted_per_s=100)
