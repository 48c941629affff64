"""Crops per second and crops in flight of one project, with the time as an argument."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacherfarm.teacher_server.projects.quota import BURST_S, LONGEST_HOLD_S, WINDOW_S, Quota, Refusal


def rate(crops_per_second: float) -> Quota:
    return Quota(crops_per_second=crops_per_second, crops_in_flight=0)


def test_without_limits_nothing_is_held():
    quota = Quota(crops_per_second=0, crops_in_flight=0)
    assert [quota.admit(10**9, now_s) for now_s in (0.0, 0.0, 1.0)] == [0.0] * 3
    assert quota.in_flight_crops == 3 * 10**9


def test_slices_are_held_one_after_another_at_the_rate():
    quota = rate(100)
    holds = [quota.admit(10, 50.0) for _ in range(10)]
    # A quarter of a second of the rate was saved up, 25 crops; from then on a slice of 10 every tenth of a second.
    assert holds == pytest.approx([0.0, 0.0, 0.0, 0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65])


def test_what_comes_much_too_early_is_refused_and_told_when_it_gets_in():
    quota = rate(100)
    while not isinstance(verdict := quota.admit(10, 0.0), Refusal):
        assert verdict <= LONGEST_HOLD_S
    assert verdict.limit == "crops_per_second"
    assert 0 < verdict.retry_after_s <= LONGEST_HOLD_S
    assert isinstance(quota.admit(10, verdict.retry_after_s), float)


def test_a_refusal_costs_nothing():
    quota = rate(10)
    assert quota.admit(100, 0.0) == 0.0
    before = quota.in_flight_crops
    first = quota.admit(1, 0.0)
    assert [quota.admit(1, 0.0) for _ in range(5)] == [first] * 5
    assert quota.in_flight_crops == before


def test_no_limit_sends_anybody_away_for_minutes():
    quota = rate(0.01)
    quota.admit(64, 0.0)
    refusal = quota.admit(1, 0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.retry_after_s == 30.0


def test_in_flight_counts_what_is_not_answered():
    quota = Quota(crops_per_second=0, crops_in_flight=8)
    assert quota.admit(4, 0.0) == quota.admit(4, 0.0) == 0.0
    assert quota.admit(1, 0.0) == Refusal("crops_in_flight", 0.01)
    assert quota.admit(1, 0.0, num_sessions=64) == Refusal("crops_in_flight", 0.64)
    quota.release(4)
    assert quota.admit(4, 0.0) == 0.0


def test_a_slice_larger_than_the_limit_gets_in_alone():
    quota = Quota(crops_per_second=0, crops_in_flight=2)
    assert quota.admit(8, 0.0) == 0.0
    assert isinstance(quota.admit(1, 0.0), Refusal)
    quota.release(8)
    assert quota.admit(8, 0.0) == 0.0


def test_a_change_acts_at_once():
    quota = rate(10)
    quota.admit(20, 0.0)
    assert isinstance(quota.admit(1, 0.0), Refusal)
    quota.change(crops_per_second=0, crops_in_flight=0)
    assert quota.admit(1000, 0.0) == 0.0
    quota.change(crops_per_second=0, crops_in_flight=10)
    assert isinstance(quota.admit(1, 0.0), Refusal)


def test_a_window_is_what_the_limits_can_use():
    assert Quota(crops_per_second=1000, crops_in_flight=0).window_crops == 1000 * WINDOW_S
    assert Quota(crops_per_second=1000, crops_in_flight=64).window_crops == 64
    assert Quota(crops_per_second=0, crops_in_flight=64).window_crops == 64


@settings(max_examples=200)
@given(
    crops_per_second=st.floats(1, 1e5),
    most=st.integers(0, 500),
    slices=st.lists(st.tuples(st.integers(1, 64), st.floats(0, 0.2)), max_size=60),
)
def test_in_no_stretch_of_time_more_than_the_rate_and_what_was_saved_up(crops_per_second, most, slices):
    quota = Quota(crops_per_second=crops_per_second, crops_in_flight=most)
    now_s, starts = 0.0, []
    for num_crops, later_s in slices:
        now_s += later_s
        verdict = quota.admit(num_crops, now_s)
        if isinstance(verdict, float):
            starts.append((now_s + verdict, num_crops))
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            crops = sum(num_crops for _, num_crops in starts[first:last])
            stretch_s = starts[last][0] - starts[first][0]
            assert crops <= crops_per_second * (stretch_s + BURST_S) + 64 + 1e-6
    assert [start_s for start_s, _ in starts] == sorted(start_s for start_s, _ in starts), "in the order of arrival"


@given(num_sessions=st.integers(1, 20), crops_per_second=st.integers(200, 10**5))
def test_sessions_that_keep_to_their_shares_of_the_window_are_never_refused(num_sessions, crops_per_second):
    """Each sends its whole window at once, and again whatever was answered."""
    quota = rate(crops_per_second)
    share = int(quota.window_crops) // num_sessions
    under_way: list[tuple[float, int]] = []
    for _ in range(num_sessions):
        verdict = quota.admit(max(1, share), 0.0)
        assert isinstance(verdict, float)
        under_way.append((verdict, max(1, share)))
    for _ in range(50):
        under_way.sort()
        start_s, num_crops = under_way.pop(0)
        quota.release(num_crops)
        verdict = quota.admit(num_crops, start_s)
        assert isinstance(verdict, float)
        under_way.append((start_s + verdict, num_crops))


def test_a_raised_rate_acts_at_once_whatever_was_run_at_the_former_one():
    quota = Quota(crops_per_second=0.1, crops_in_flight=0)
    assert quota.admit(64, 100.0) == 0
    assert isinstance(quota.admit(6, 101.0), Refusal)
    quota.change(crops_per_second=1000, crops_in_flight=0)
    assert quota.admit(6, 101.0) == 0
