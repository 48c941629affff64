"""Probabilities and float16 log-probabilities: what goes out comes back as the same numbers, and sums to 1."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from teacherfarm.label_store.rounded_probabilities import LEAST_LOG_PROBABILITY, log_probabilities, probabilities
from teacherfarm.protos.soft_label import log_softmax, top_k


def test_every_log_probability_comes_back_from_its_probability():
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    every = every[(every <= 0) & (every >= -87)]
    assert len(every) > 20_000
    np.testing.assert_array_equal(log_probabilities(probabilities(every[:, None], whole=False))[:, 0], every)


@settings(max_examples=100, deadline=None)
@example(seed=1, spread=12.943573072714875, num_classes=2, k=1)
@given(
    seed=st.integers(0, 2**32 - 1), spread=st.floats(0.1, 15), num_classes=st.integers(2, 1000), k=st.integers(1, 10)
)
def test_labels_of_a_teacher_come_back_bit_for_bit_and_sum_to_one(seed, spread, num_classes, k):
    logits = np.random.default_rng(seed).standard_normal((20, num_classes)) * spread
    exact = log_softmax(logits)
    dense = exact.astype(np.float16)
    back = probabilities(dense, whole=True)
    np.testing.assert_allclose(back.sum(axis=1, dtype=np.float64), 1, atol=2e-6)
    assert (back >= 0).all()
    seen = dense > -80
    np.testing.assert_array_equal(log_probabilities(back)[seen], dense[seen])
    best = top_k(exact, min(k, num_classes), 1.0)[1].astype(np.float16)
    back = probabilities(best, whole=False)
    assert back.sum(axis=1, dtype=np.float64).max() <= 1 + 2e-6
    seen = best > -80
    np.testing.assert_array_equal(log_probabilities(back)[seen], best[seen])


def test_two_classes_whose_rounding_may_need_all_its_room():
    first = np.linspace(0.001, 0.999, 50_001)
    logs = np.log(np.stack([first, 1 - first], axis=1)).astype(np.float16)
    back = probabilities(logs, whole=True)
    np.testing.assert_array_equal(log_probabilities(back), logs)
    assert np.abs(back.sum(axis=1, dtype=np.float64) - 1).max() < 2e-6


def test_labels_that_need_all_the_room_of_their_rounding_come_back_too():
    """Pairs of logarithms whose upper ends of rounding just sum to 1."""
    every = np.arange(0x8000, 0xFC00, dtype=np.uint16).view(np.float16)
    every = np.sort(every[(every < -1e-3) & (every > -7)])
    ends = np.exp((every.astype(np.float64) + np.nextafter(every, np.float16(0)).astype(np.float64)) / 2)
    other = np.searchsorted(ends, 1 - ends).clip(max=len(ends) - 1)
    just = np.abs(ends + ends[other] - 1) < 3e-7
    assert just.sum() > 20
    logs = np.stack([every[just], every[other[just]]], axis=1)
    back = probabilities(logs, whole=True)
    np.testing.assert_array_equal(log_probabilities(back), logs)
    assert np.abs(back.sum(axis=1, dtype=np.float64) - 1).max() < 2e-6


def test_labels_that_were_no_distribution_are_scaled():
    over = probabilities(np.log([[0.75, 0.75]]).astype(np.float16), whole=False)
    np.testing.assert_allclose(over, [[0.5, 0.5]], atol=2e-6)
    under = np.log([[0.25, 0.25]]).astype(np.float16)
    np.testing.assert_allclose(probabilities(under, whole=True), [[0.5, 0.5]], atol=2e-6)
    np.testing.assert_allclose(probabilities(under, whole=False), [[0.25, 0.25]], rtol=1e-3)


@pytest.mark.parametrize("probability", [0.0, 1.0, 1e-40, 0.5])
def test_extremes_are_finite(probability):
    logs = log_probabilities(np.array([[probability]], np.float32))
    assert np.isfinite(logs).all()
    assert LEAST_LOG_PROBABILITY <= logs[0, 0] <= 0
    np.testing.assert_allclose(probabilities(logs, whole=False), [[probability]], rtol=1e-3, atol=1e-38)
