import math
from itertools import pairwise

import pytest

from teacherfarm.student.recipes.passes import LearningRate, plan_passes, plan_phases


def shape(passes):
    return [(p.epoch, p.crops_per_image) for p in passes]


def test_a_pass_over_m_crops_counts_m_epochs_and_the_last_m_are_single():
    assert shape(plan_passes(12, 4)) == [(0, 4), (4, 4), (8, 1), (9, 1), (10, 1), (11, 1)]
    assert shape(plan_passes(3, 1)) == [(0, 1), (1, 1), (2, 1)]
    assert [p.visit for p in plan_passes(12, 4)] == [0, 1, 8, 9, 10, 11]


@pytest.mark.parametrize(("epochs", "m"), [(10, 4), (4, 4), (3, 4), (7, 2), (300, 4), (1, 1)])
def test_every_epoch_is_counted_once_and_at_least_m_are_single(epochs, m):
    passes = plan_passes(epochs, m)
    assert passes[0].epoch == 0
    assert all(one.epoch_after == other.epoch for one, other in pairwise(passes))
    assert passes[-1].epoch_after == epochs
    assert sum(p.crops_per_image == 1 for p in passes) >= min(m, epochs)


def test_no_epochs_is_a_mistake():
    with pytest.raises(ValueError, match="at least 1"):
        plan_passes(0, 1)


def test_the_learning_rate_warms_up_and_follows_a_cosine():
    def rate(epoch):
        return LearningRate(peak=2.0, epochs=30, warmup_epochs=10).at(epoch)

    assert rate(0) == pytest.approx(0.02)
    assert rate(5) == pytest.approx(2 * (0.01 + 0.99 / 2))
    assert rate(10) == 2
    assert rate(20) == pytest.approx(1)
    assert rate(30) == pytest.approx(0)
    assert rate(15) == pytest.approx(1 + math.cos(math.pi / 4))
    assert LearningRate(peak=1, epochs=1).at(0) == 1


def test_the_learning_rate_goes_by_steps_or_stays():
    stepwise = LearningRate(peak=1.0, epochs=9, schedule="steps", steps=(3, 6), factor=0.5, warmup_epochs=1)
    assert [stepwise.at(epoch) for epoch in (0, 1, 2.9, 3, 6, 9)] == [0.01, 1.0, 1.0, 0.5, 0.25, 0.25]
    assert [LearningRate(peak=1.0, epochs=9, schedule="constant").at(epoch) for epoch in (0, 9)] == [1.0, 1.0]
    assert LearningRate(peak=1.0, epochs=9, floor=0.2).at(9) == 0.2
    with pytest.raises(ValueError, match="go together"):
        LearningRate(peak=1.0, epochs=9, schedule="steps")
    with pytest.raises(ValueError, match="go together"):
        LearningRate(peak=1.0, epochs=9, steps=(3,))


def test_phases_have_passes_of_their_own():
    passes = plan_phases([(0, 6), (6, 8)], 2)
    assert [(one.epoch, one.crops_per_image, one.phase) for one in passes] == [
        (0, 2, 0), (2, 2, 0), (4, 1, 0), (5, 1, 0), (6, 1, 1), (7, 1, 1),
    ]  # fmt: skip
