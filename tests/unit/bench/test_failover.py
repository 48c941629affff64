"""The arithmetic of the failover benchmark: when the pace is back, and how long nothing came."""

import pytest

from bench.failover import BATCH_CROPS, WINDOW_S, longest_gap_s, recovery_s, window_rates

STEP_S = 0.01
PACE = BATCH_CROPS / STEP_S


def answers(*spans):
    """One answer every STEP_S within each span."""
    return [start + i * STEP_S for start, end in spans for i in range(round((end - start) / STEP_S))]


def test_without_a_pause_recovery_takes_the_first_window():
    assert recovery_s(answers((0, 5)), 1.0, PACE) == pytest.approx(WINDOW_S)


def test_the_pause_and_one_window_are_counted():
    times = answers((0, 1), (3, 6))
    assert recovery_s(times, 1.0, PACE) == pytest.approx(2 + WINDOW_S)
    assert longest_gap_s(times, 1.0) == pytest.approx(2)


def test_a_slower_pace_is_no_recovery():
    times = answers((0, 1)) + [1 + i * 2 * STEP_S for i in range(100)] + answers((3, 5))
    assert recovery_s(times, 1.0, 0.9 * PACE) == pytest.approx(2 + WINDOW_S, abs=0.1)
    assert recovery_s(times[:200], 1.0, 0.9 * PACE) == float("inf")


def test_silence_for_good_is_never_recovered():
    assert recovery_s(answers((0, 1)), 1.0, PACE) == float("inf")
    assert longest_gap_s(answers((0, 1)), 1.0) == float("inf")


def test_rates_are_counted_in_whole_windows():
    assert window_rates(answers((0, 2)), 0.0, 1.9) == pytest.approx([PACE] * 3, rel=0.03)
    assert window_rates(answers((0, 2)), 0.0, 0.1) == []
