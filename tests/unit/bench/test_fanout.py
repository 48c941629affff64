"""The benchmark of joined crops: every student goes through the same batches, and no crop of them comes twice."""

import numpy as np

from bench import fanout
from bench.fanout import Course, stamped


def test_every_student_gets_the_same_batches(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(fanout.time, "monotonic", lambda: clock[0])
    course = Course(10.0)
    course.begin()
    first, second = course.batches(), course.batches()
    assert [next(first) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert next(second) == 0
    clock[0] = 11.0
    # Whoever is behind goes on to where the first one was.
    assert list(first) == []
    assert list(second) == [1, 2, 3, 4]
    assert course.num_batches == 5


def test_stamped_crops_differ_by_their_number_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    seen = {stamped(pixels, number).tobytes() for number in (-2, -1, 0, 1, 255, 256, 2**40)}
    assert len(seen) == 7
    assert (stamped(pixels, 7) == stamped(pixels, 7)).all()
    assert (stamped(pixels, 7)[:, 1:] == pixels[:, 1:]).all()
