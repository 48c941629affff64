"""How far a share is from what its weight gives."""

import pytest

from bench.fairness import largest_share_error


@pytest.mark.parametrize(
    ("counts", "weights", "error"),
    [
        ({"a": 300, "b": 100}, {"a": 3, "b": 1}, 0.0),
        ({"a": 200, "b": 200}, {"a": 3, "b": 1}, 1.0),
        ({"a": 310, "b": 90}, {"a": 3, "b": 1}, 0.1),
        ({"a": 100}, {"a": 1, "b": 1}, 1.0),
        ({"a": 100}, {"a": 7}, 0.0),
    ],
)
def test_the_worst_share_counts(counts, weights, error):
    assert largest_share_error(counts, weights) == pytest.approx(error)
