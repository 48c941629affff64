"""How busy a lane was: the shares, and when it does not say."""

import pytest

from teacherfarm.teacher_server.farm.lane_load import BusyTime, LoadMark, load_between

BEGIN = LoadMark(time_s=100.0, busy_s=7.0, crops=1000)


def test_share_of_all_slots_and_labels_per_second():
    load = load_between(BEGIN, LoadMark(time_s=104.0, busy_s=13.0, crops=1800), slots=2, backends=1)
    assert (load.busy, load.labels_per_s, load.backends) == (pytest.approx(0.75), 200.0, 1)


def test_a_batch_that_began_before_the_mark_makes_no_more_than_all():
    assert load_between(BEGIN, LoadMark(time_s=101.0, busy_s=17.0, crops=1000), slots=2, backends=1).busy == 1.0


def test_too_short_a_time_says_nothing():
    assert load_between(BEGIN, LoadMark(time_s=100.001, busy_s=7.5, crops=1001), slots=2, backends=1) is None


def test_a_lane_without_a_backend_is_not_busy():
    load = load_between(BEGIN, LoadMark(time_s=105.0, busy_s=7.0, crops=1000), slots=0, backends=0)
    assert (load.busy, load.backends, load.labels_per_s) == (0.0, 0, 0.0)


def test_busy_slots_count_up_to_now():
    busy = BusyTime()
    busy.begin(10.0)
    assert busy.seconds(12.0) == 2
    busy.begin(12.0)
    assert busy.seconds(13.0) == 4
    busy.end(15.0)
    busy.end(16.0)
    assert busy.seconds(1000.0) == 9
