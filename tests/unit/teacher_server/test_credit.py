"""One byte budget for all sessions: shared, bounded, and never talked up by a student."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacherfarm.protos.faults import Overloaded
from teacherfarm.teacher_server.credit import Credit, CreditPool

CROP = 100


def pool_of(crops: int, most_crops: int = 10**6) -> CreditPool:
    return CreditPool(budget_bytes=crops * CROP, most_crops=most_crops)


def receive(credit: Credit, num_crops: int) -> bool:
    """What the gateway does with a slice."""
    if not credit.has_room(num_crops):
        return False
    credit.receive(num_crops)
    return True


def answer(credit: Credit, num_crops: int) -> None:
    credit.answer(num_crops)


def test_sessions_share_the_budget_and_get_it_back():
    pool = pool_of(64)
    one = pool.open(crop_bytes=CROP, slice_crops=4)
    assert one.window_crops == 64
    others = [pool.open(crop_bytes=CROP, slice_crops=4) for _ in range(3)]
    assert [credit.window_crops for credit in (one, *others)] == [16] * 4
    for credit in others:
        pool.close(credit)
    assert one.window_crops == 64
    pool.close(one)
    pool.close(one)
    assert "0 session" in repr(pool)


def test_a_window_is_at_most_what_was_set_and_at_least_one_slice():
    assert pool_of(64, most_crops=10).open(crop_bytes=CROP, slice_crops=4).window_crops == 10
    pool = pool_of(12)
    credits = [pool.open(crop_bytes=CROP, slice_crops=4, project=name) for name in "abc"]
    assert {credit.window_crops for credit in credits} == {4}


def test_a_session_that_the_memory_cannot_hold_is_told_when_to_come_back():
    pool = pool_of(12)
    credits = [pool.open(crop_bytes=CROP, slice_crops=4, project=name) for name in "abc"]
    with pytest.raises(Overloaded, match=r"3 sessions.*1200 bytes.*--memory-mb") as caught:
        pool.open(crop_bytes=CROP, slice_crops=4)
    assert caught.value.retry_after_s > 0
    pool.close(credits[0])
    pool.open(crop_bytes=CROP, slice_crops=4)


def test_a_project_with_many_sessions_leaves_room_for_one_that_has_none():
    pool = pool_of(16)
    for _ in range(3):
        pool.open(crop_bytes=CROP, slice_crops=4, project="greedy")
    with pytest.raises(Overloaded):
        pool.open(crop_bytes=CROP, slice_crops=4, project="greedy")
    newcomer = pool.open(crop_bytes=CROP, slice_crops=4, project="newcomer")
    assert receive(newcomer, 4)


def test_untaken_answers_count_against_the_window():
    credit = pool_of(8).open(crop_bytes=CROP, slice_crops=4)
    assert receive(credit, 4)
    assert receive(credit, 4)
    assert not receive(credit, 1)
    answer(credit, 8)
    assert not receive(credit, 1), "answered is not taken"
    credit.took(3)
    assert receive(credit, 3)
    assert not receive(credit, 1)


def test_nobody_takes_more_than_was_answered():
    credit = pool_of(8).open(crop_bytes=CROP, slice_crops=4)
    receive(credit, 8)
    answer(credit, 2)
    credit.took(2**63)
    assert (credit.taken_crops, credit.untaken_crops) == (2, 6)
    credit.took(0)
    assert credit.taken_crops == 2, "a message that was overtaken counts for nothing"


def test_those_who_filled_a_larger_window_leave_no_room_beyond_the_budget():
    pool, credits = pool_of(64), []
    for number in range(16):
        credits.append(pool.open(crop_bytes=CROP, slice_crops=4, project=str(number)))
        while receive(credits[-1], 4):
            pass
    assert all(credit.untaken_crops >= 4 for credit in credits), "each has room for a slice, come what may"
    assert pool.used_bytes <= 2 * 64 * CROP


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "close", "receive", "answer", "took"]), st.integers(0, 9), st.integers(1, 8)
        ),
        max_size=80,
    )
)
def test_whatever_happens_memory_is_bounded_and_an_empty_session_gets_one_slice(steps):
    pool = pool_of(40)
    credits: list[Credit] = []
    for step, which, number in steps:
        if step == "open":
            try:
                credits.append(pool.open(crop_bytes=CROP, slice_crops=number))
            except Overloaded:
                assert sum(c.slice_crops for c in credits) + number > 30
        elif credits:
            credit = credits[which % len(credits)]
            if step == "close":
                pool.close(credit)
                credits.remove(credit)
            elif step == "receive" and number <= credit.slice_crops:
                assert receive(credit, number) or credit.untaken_crops
            elif step == "answer":
                answer(credit, min(number, credit.received_crops - credit.answered_crops))
            elif step == "took":
                credit.took(number * which)
        assert pool.used_bytes == sum(c.untaken_crops for c in credits) * CROP
        assert pool.used_bytes <= 2 * 40 * CROP
        assert all(c.untaken_crops >= 0 for c in credits)
