"""The arithmetic behind every figure of the benchmarks."""

import asyncio
import json

import pytest

from bench.interleave import LEAST_SLICES, fastest, interleave, interquartile_range, plan_slices, ratio, turns
from bench.report import Row, json_line, table


def contestant(calls, name, rate):
    async def run_slice(seconds):
        calls.append((name, seconds))
        return next(rate) if hasattr(rate, "__next__") else rate

    return run_slice


def test_the_first_round_is_dropped():
    calls = []
    rates = asyncio.run(interleave({"ours": contestant(calls, "ours", iter((1.0, 10.0, 20.0)))}, rounds=3, slice_s=0.5))
    assert rates == {"ours": [10.0, 20.0]}
    assert calls == [("ours", 0.5)] * 3


def test_contestants_take_turns_within_each_round():
    calls = []
    contestants = {name: contestant(calls, name, 1.0) for name in "abc"}
    asyncio.run(interleave(contestants, rounds=7, slice_s=0.1))
    rounds = [[name for name, _ in calls[first : first + 3]] for first in range(0, 21, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)


def test_every_contestant_comes_first_equally_often():
    firsts = [turns("abc", number)[0] for number in range(12)]
    assert {name: firsts.count(name) for name in "abc"} == {"a": 4, "b": 4, "c": 4}


def test_a_ratio_compares_high_percentiles_and_spreads_by_pairs():
    reference = [100.0] * 10
    ours = [50.0] * 8 + [90.0] * 2
    found = ratio(ours, reference)
    assert found.value == pytest.approx(0.9)
    assert found.spread == pytest.approx(0.0)
    # Drift that slows both alike leaves no spread.
    drifting = [float(rate) for rate in range(50, 90)]
    assert ratio([0.8 * rate for rate in drifting], drifting).spread == pytest.approx(0.0)


def test_slices_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match="not pairs"):
        ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="not pairs"):
        ratio([], [])


def test_the_interquartile_range_is_the_middle_half():
    assert interquartile_range([0.0, 1.0, 2.0, 3.0, 100.0]) == pytest.approx(2.0)


@pytest.mark.parametrize("seconds", [0.1, 10.0, 60.0, 600.0])
def test_a_plan_has_enough_slices_and_keeps_to_its_time(seconds):
    plan = plan_slices(seconds, 4, shortest_s=0.05, longest_s=0.25)
    assert plan.rounds >= LEAST_SLICES + 1
    assert 0.05 <= plan.slice_s <= 0.25
    spent_s = plan.rounds * plan.slice_s * 4
    assert spent_s <= max(seconds, 41 * 0.05 * 4) * 1.001
    if seconds >= 41 * 0.05 * 4:
        assert spent_s > 0.9 * seconds


def test_filling_and_draining_count_as_spent():
    plan = plan_slices(100.0, 2, shortest_s=0.1, longest_s=0.5, around_s=1.0)
    assert plan.rounds * (plan.slice_s + 1.0) * 2 == pytest.approx(100.0, rel=0.1)


def test_the_search_takes_the_fastest():
    calls = []
    candidates = {"slow": contestant(calls, "slow", 10.0), "fast": contestant(calls, "fast", 30.0)}
    assert asyncio.run(fastest(candidates, seconds=1.0)) == "fast"
    assert sum(seconds for _, seconds in calls) == pytest.approx(1.0)


def test_the_last_line_is_json_with_figures_machine_and_versions():
    values = json.loads(json_line({"zmq_ratio": 0.912345, "zmq_ratio_spread": 0.01}))
    assert values["zmq_ratio"] == 0.9123
    assert set(values) == {"zmq_ratio", "zmq_ratio_spread", "machine", "versions"}
    assert values["machine"]["cores"] >= 1
    assert {"python", "numpy"} <= set(values["versions"])


def test_the_table_shows_every_contestant_and_its_ratio():
    ours, reference = [80.0, 90.0], [100.0, 100.0]
    text = table([Row(name="ours", rates=ours, ratio=ratio(ours, reference)), Row(name="reference", rates=reference)])
    assert "0.890" in text
    assert len(text.splitlines()) == 3
