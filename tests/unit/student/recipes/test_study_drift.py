import math

import numpy as np
import pytest

from teacherfarm.student.recipes.study_drift import Drift, drift, pareto, smallest_within, tempered


def made(kl_mean):
    zeros = dict.fromkeys(("kl_error", "kl_p99", "kl_worst", "missed_mean", "moved_mean"), 0.0)
    return Drift(num_crops=1, kl_mean=kl_mean, top1=1.0, **zeros)


def test_divergences_worked_out_by_hand():
    full = np.log([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]])
    labels = np.array([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0]])
    found = drift(labels, full)
    first, second = 0.25 * math.log(0.25 / 0.5) + 0.5 * math.log(0.5 / 0.25), math.log(1 / 0.8)
    assert found.kl_mean == pytest.approx((first + second) / 2)
    assert found.kl_worst == pytest.approx(second)
    assert found.kl_error == pytest.approx(abs(first - second) / 2 / math.sqrt(2))
    assert found.kl_p99 == pytest.approx(first + 0.99 * (second - first))
    assert found.missed_mean == math.inf
    assert found.moved_mean == pytest.approx((0.25 + 0.2) / 2)
    assert found.top1 == 0.5
    assert found.num_crops == 2


def test_rows_that_do_not_quite_sum_to_1_cost_nothing():
    full = np.log([[0.5, 0.5], [0.9, 0.1]])
    assert drift(np.exp(full) * 1.01, full).kl_mean < 1e-12


def test_tempering_by_hand():
    # Square roots of 0.64 and 0.04 are 0.8 and 0.2; with 0.32 in the middle it would be something else.
    cool = np.log([[0.64, 0.04, 0.32]])
    roots = np.sqrt([0.64, 0.04, 0.32])
    assert np.exp(tempered(cool, 2.0))[0] == pytest.approx(roots / roots.sum())


def test_front_has_what_nothing_beats():
    ways = [(40, 0.1), (20, 0.5), (40, 0.05), (60, 0.05), (80, 0.01), (10, 0.5)]
    assert pareto(ways, lambda way: way[0], lambda way: way[1]) == [(10, 0.5), (40, 0.05), (80, 0.01)]


def test_smallest_within_the_budget():
    ways = [(80, 0.0), (40, 0.01), (40, 0.009), (20, 0.011)]
    assert smallest_within(ways, lambda way: way[0], lambda way: made(way[1]), 0.01) == (40, 0.009)
    assert smallest_within(ways, lambda way: way[0], lambda way: made(way[1]), 0.02) == (20, 0.011)
    assert smallest_within(ways[1:], lambda way: way[0], lambda way: made(way[1]), 0.001) is None
