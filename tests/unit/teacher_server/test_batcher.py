"""When a teacher batch is formed, of whom, and that time is only an argument."""

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacherfarm.teacher_server.farm.batcher import Batcher, TeacherBatch, WaitUntil
from tests.unit.teacher_server.waiting_slice import WaitingSlice


def sizes(batch: object) -> list[int]:
    assert isinstance(batch, TeacherBatch)
    assert batch.num_crops == sum(s.num_crops for s in batch.slices)
    assert {s.outputs for s in batch.slices} == {batch.outputs}
    return [s.num_crops for s in batch.slices]


def test_without_a_preference_whatever_waits_goes_at_once():
    batcher: Batcher = Batcher(largest=8)
    assert batcher.next_batch(0.0) is None
    batcher.push(WaitingSlice(num_crops=2), 0.0)
    assert sizes(batcher.next_batch(0.0)) == [2]
    assert batcher.next_batch(0.0) is None


def test_waiting_counts_from_the_first_crop_and_not_from_the_last():
    batcher: Batcher = Batcher(largest=64, preferred=64, longest_wait_s=1.0)
    for time_s in (10.0, 10.4, 10.8, 10.95):
        batcher.push(WaitingSlice(num_crops=1), time_s)
        assert batcher.next_batch(time_s) == WaitUntil(11.0)
    assert batcher.next_batch(10.999) == WaitUntil(11.0)
    assert sizes(batcher.next_batch(11.0)) == [1, 1, 1, 1]


def test_the_preferred_batch_goes_at_once():
    batcher: Batcher = Batcher(largest=16, preferred=8, longest_wait_s=100.0)
    batcher.push(WaitingSlice(num_crops=7), 0.0)
    assert batcher.next_batch(0.0) == WaitUntil(100.0)
    batcher.push(WaitingSlice(num_crops=1), 0.0)
    assert sizes(batcher.next_batch(0.0)) == [7, 1]


def test_no_batch_is_larger_than_the_largest():
    batcher: Batcher = Batcher(largest=10)
    for _ in range(5):
        batcher.push(WaitingSlice(num_crops=4), 0.0)
    assert [sizes(batcher.next_batch(0.0)) for _ in range(3)] == [[4, 4], [4, 4], [4]]


def test_after_a_batch_the_next_first_crop_counts():
    batcher: Batcher = Batcher(largest=4, preferred=4, longest_wait_s=1.0)
    for time_s in (0.0, 0.2, 0.7):
        batcher.push(WaitingSlice(num_crops=2), time_s)
    assert sizes(batcher.next_batch(0.7)) == [2, 2]
    assert batcher.next_batch(0.8) == WaitUntil(1.7)


def test_output_sets_are_never_mixed():
    batcher: Batcher = Batcher(largest=64)
    for outputs in ("a", "b", "a", "b", "b", "a"):
        batcher.push(WaitingSlice(outputs=(outputs,), stream=outputs), 0.0)
    batches = [batcher.next_batch(0.0) for _ in range(2)]
    assert {batch.outputs: len(batch.slices) for batch in batches} == {("a",): 3, ("b",): 3}
    assert batcher.next_batch(0.0) is None


def test_who_must_be_alone_is_alone():
    batcher: Batcher = Batcher(largest=64)
    for stream, alone in enumerate((True, False, True, False)):
        batcher.push(WaitingSlice(alone=alone, stream=str(stream)), 0.0)
    batches = [batcher.next_batch(0.0) for _ in range(3)]
    assert sorted(len(batch.slices) for batch in batches) == [1, 1, 2]
    assert all(len(batch.slices) == 1 for batch in batches if any(s.alone for s in batch.slices))


def test_abandoned_slices_neither_count_nor_hurry_nor_go():
    batcher: Batcher = Batcher(largest=64, preferred=8, longest_wait_s=1.0)
    first, second = WaitingSlice(num_crops=6), WaitingSlice(num_crops=6)
    batcher.push(first, 0.0)
    first.abandoned = True
    batcher.withdraw(first)
    assert (batcher.waiting_crops, batcher.next_batch(5.0)) == (0, None)
    batcher.push(second, 5.0)
    assert batcher.next_batch(5.5) == WaitUntil(6.0)
    second.abandoned = True
    assert batcher.next_batch(6.0) is None
    assert batcher.waiting_crops == 0


def test_a_slice_may_come_back():
    batcher: Batcher = Batcher(largest=64)
    slice_ = WaitingSlice()
    for _ in range(3):
        batcher.push(slice_, 0.0)
        assert batcher.next_batch(0.0).slices == (slice_,)
        assert batcher.waiting_crops == 0


@pytest.mark.parametrize("end", ["served", "withdrawn"])
def test_what_left_is_not_kept_behind_one_that_waits_on(end):
    batcher: Batcher = Batcher(largest=4)
    batcher.push(WaitingSlice(priority=-1), 0.0)
    gone = []
    for _ in range(50):
        slice_ = WaitingSlice(priority=1 if end == "served" else -2)
        gone.append(weakref.ref(slice_))
        batcher.push(slice_, 0.0)
        if end == "served":
            assert batcher.next_batch(0.0).slices == (slice_,)
        else:
            slice_.abandoned = True
            batcher.withdraw(slice_)
        del slice_
    gc.collect()
    assert [ref() for ref in gone if ref() is not None] == []
    assert batcher.waiting_crops == 4


@pytest.mark.parametrize("preferred", [0, 9])
def test_an_impossible_preference_is_refused(preferred):
    with pytest.raises(ValueError, match=rf"preferred batch {preferred} must lie in 1\.\.8"):
        Batcher(largest=8, preferred=preferred)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.integers(1, 8)),
            st.tuples(st.just("abandon"), st.integers(0, 20)),
            st.tuples(st.just("ask"), st.floats(0, 2)),
        ),
        max_size=50,
    ),
    st.integers(1, 12),
)
def test_every_waiting_slice_goes_once_and_in_time(steps, preferred):
    batcher: Batcher = Batcher(largest=12, preferred=preferred, longest_wait_s=1.0)
    now_s, waiting = 0.0, {}
    for step, argument in steps:
        if step == "push":
            slice_ = WaitingSlice(num_crops=argument)
            waiting[slice_] = now_s
            batcher.push(slice_, now_s)
        elif step == "abandon" and waiting:
            slice_ = list(waiting)[argument % len(waiting)]
            slice_.abandoned = True
            batcher.withdraw(slice_)
            del waiting[slice_]
        elif step == "ask":
            now_s += argument
            match batcher.next_batch(now_s):
                case TeacherBatch() as batch:
                    assert sum(sizes(batch)) <= 12
                    for slice_ in batch.slices:
                        del waiting[slice_]
                case WaitUntil(time_s):
                    assert time_s == min(waiting.values()) + 1.0 > now_s
                    assert sum(s.num_crops for s in waiting) < preferred
                case None:
                    assert not waiting
        assert batcher.waiting_crops == sum(s.num_crops for s in waiting)


def test_what_is_restored_waits_since_it_came_and_is_the_first_again():
    batcher: Batcher = Batcher(largest=8, preferred=8, longest_wait_s=1.0)
    first = WaitingSlice(num_crops=8)
    batcher.push(first, 10.0)
    assert sizes(batcher.next_batch(10.0)) == [8]
    batcher.push(WaitingSlice(num_crops=2), 10.5)
    batcher.restore(first, 10.0)
    assert batcher.waiting_crops == 10
    assert batcher.next_batch(10.6).slices == (first,)
    assert batcher.next_batch(10.6) == WaitUntil(11.5)
    assert batcher.waiting_crops == 2
