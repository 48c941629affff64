import json
from collections import Counter

import numpy as np
import pytest

from teacherfarm.crops.crop_plan import sample_number
from teacherfarm.crops.view_schedule import ViewSchedule


def test_fresh_views_never_repeat():
    schedule = ViewSchedule(per_visit=3)
    seen = np.concatenate([schedule.views_at([5], visit)[0] for visit in range(20)])
    assert seen.tolist() == list(range(60))
    assert not schedule.replays


def test_cycle_goes_through_all_views_in_turn():
    schedule = ViewSchedule(views=5, order="cycle", per_visit=2)
    assert [schedule.views_at([1], visit)[0].tolist() for visit in range(3)] == [[0, 1], [2, 3], [4, 0]]
    assert schedule.replays


def test_permute_draws_without_replacement_and_evenly():
    schedule = ViewSchedule(views=5, order="permute", per_visit=3, seed=1)
    drawn = schedule.views_at(np.arange(12_000, dtype=np.uint64), 7)
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    counts = Counter(map(tuple, drawn.tolist()))
    # 60 ordered triples, 200 draws of each expected; five standard deviations either way.
    assert len(counts) == 60
    assert max(abs(count - 200) for count in counts.values()) < 5 * np.sqrt(200)


def test_permute_is_a_whole_permutation_when_all_views_are_drawn():
    drawn = ViewSchedule(views=9, order="permute", per_visit=9).views_at(np.arange(50, dtype=np.uint64), 0)
    np.testing.assert_array_equal(np.sort(drawn, axis=1), np.tile(np.arange(9), (50, 1)))
    assert len({tuple(row) for row in drawn.tolist()}) == 50


def test_permute_draws_anew_for_each_sample_visit_and_seed():
    schedule = ViewSchedule(views=500, order="permute", per_visit=4)
    drawn = schedule.views_at(np.arange(100, dtype=np.uint64)[:, None], np.arange(20))
    assert drawn.shape == (100, 20, 4)
    assert len({tuple(row) for row in drawn.reshape(-1, 4).tolist()}) == 2000
    again = ViewSchedule(views=500, order="permute", per_visit=4, seed=1).views_at([0], 0)
    assert again.tolist() != drawn[0, :1].tolist()


def test_golden_draws():
    schedule = ViewSchedule(views=200, order="permute", per_visit=6, seed=42)
    assert schedule.views_at([sample_number("a/b.jpg"), 1], 3).tolist() == [
        [23, 20, 144, 88, 130, 3],
        [167, 144, 145, 186, 101, 20],
    ]


def test_single_crops_go_on_where_the_passes_ended():
    schedule = ViewSchedule(per_visit=4)
    num_passes = 3
    after = [schedule.single().views_at([0], num_passes * 4 + epoch)[0].tolist() for epoch in range(4)]
    assert after == [[12], [13], [14], [15]]
    assert schedule.epochs_per_pass == 4


def test_few_replayed_views_warn_with_the_reason():
    with pytest.warns(UserWarning, match="20 views per sample are replayed"):
        ViewSchedule(views=20, order="cycle").warn_if_few()
    ViewSchedule(views=50, order="cycle").warn_if_few()
    ViewSchedule().warn_if_few()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"order": "random"}, "order is"),
        ({"per_visit": 0}, "per_visit is at least 1"),
        ({"views": 10}, "views=10 has no effect"),
        ({"order": "cycle"}, "needs the number of views"),
        ({"order": "permute", "views": 3, "per_visit": 4}, "per_visit=4"),
        ({"seed": 3}, "seed=3 has no effect"),
        ({"order": "permute", "views": 3, "seed": -1}, "a seed is"),
    ],
)
def test_settings_without_effect_or_sense_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        ViewSchedule(**settings)


def test_visits_count_from_zero():
    with pytest.raises(ValueError, match="counted from 0"):
        ViewSchedule().views_at([0], -1)


@pytest.mark.parametrize(
    "schedule", [ViewSchedule(per_visit=4), ViewSchedule(views=200, order="permute", per_visit=2, seed=2**64 - 1)]
)
def test_a_schedule_survives_its_manifest(schedule):
    assert ViewSchedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


@pytest.mark.parametrize(
    ("values", "words"),
    [({"view": 3}, "fields views"), ({"per_visit": "2"}, "per_visit is a whole number"), ({"views": True}, "views is")],
)
def test_a_damaged_manifest_is_named(values, words):
    with pytest.raises(ValueError, match=words):
        ViewSchedule.from_dict(ViewSchedule().to_dict() | values)
