"""What measured figures mean: each bound, whether jpeg helps, and whether a student would be fed."""

import dataclasses

import pytest

from teacherfarm.doctor.verdict import MIB, Figures, bound, feeds, link_findings
from teacherfarm.protos.messages import FarmLoad

CROP = 150_528
FAST = Figures(
    rtt_s=0.001,
    up_bytes_per_s=600 * MIB,
    labels_per_s=400,
    window_crops=1024,
    crop_bytes=CROP,
    jpeg_bytes=20_000,
    jpeg_s=0.00015,
    cores=8,
    load=FarmLoad(busy=0.97, backends=2, labels_per_s=400),
)
"""Teachers at their limit behind a fast link."""
SLOW_LINK = dataclasses.replace(
    FAST, up_bytes_per_s=117 * MIB, labels_per_s=780, load=FarmLoad(busy=0.2, backends=8, labels_per_s=780)
)
"""1 Gbit/s."""


def test_teachers_are_the_bound():
    found = bound(FAST)
    assert found.level == "ok"
    assert found.found.startswith("the teachers: 2 of them 97 % busy")


def test_a_full_link_that_jpeg_would_relieve():
    found = bound(SLOW_LINK)
    assert found.level == "warning"
    assert found.found.startswith("the link: 780 labels/s are 96 %")
    assert found.do.startswith('codec="jpeg": a crop becomes 20 KiB, so up to 6134 crops/s')


def test_a_full_link_where_encoding_would_take_longer():
    found = bound(dataclasses.replace(SLOW_LINK, cores=1, jpeg_s=0.01))
    assert found.found.startswith("the link")
    assert "jpeg would not help" in found.do


def test_a_full_link_and_a_teacher_that_takes_no_jpeg():
    found = bound(dataclasses.replace(SLOW_LINK, jpeg_bytes=None, jpeg_s=0.0))
    assert "takes no jpeg" in found.do


def test_the_window_is_the_bound_on_a_long_way():
    found = bound(dataclasses.replace(SLOW_LINK, rtt_s=0.2, up_bytes_per_s=10_000 * MIB, labels_per_s=4900))
    assert found.level == "warning"
    assert found.found.startswith("the window: 1024 crops in flight over a round trip of 200 ms are at most 5120")
    assert "window=" in found.do


def test_neither_is_full():
    found = bound(dataclasses.replace(FAST, load=FarmLoad(busy=0.3, backends=1, labels_per_s=400)))
    assert found.found.startswith("neither the link nor the teachers (30 % busy)")


def test_a_server_that_says_nothing_of_itself():
    found = bound(dataclasses.replace(FAST, load=None, rtt_s=None, up_bytes_per_s=None))
    assert "does not say how busy" in found.found


@pytest.mark.parametrize(
    ("figures", "wanted", "level", "said"),
    [
        (FAST, 400, "ok", "feed a student that takes 400"),
        (FAST, 401, "warning", "1 more teacher would feed"),
        (FAST, 1000, "warning", "3 more teachers would feed"),
        (SLOW_LINK, 1000, "warning", "the link moves 815 raw crops/s at most"),
        (
            dataclasses.replace(FAST, load=FarmLoad(busy=0.3, backends=1, labels_per_s=400)),
            500,
            "warning",
            "not for want",
        ),
        (dataclasses.replace(FAST, load=None), 500, "warning", "see bound"),
    ],
)
def test_whether_a_student_would_be_fed(figures, wanted, level, said):
    found = feeds(figures, wanted)
    assert found.level == level
    assert said in found.found + found.do


def test_how_long_it_would_wait():
    assert "would wait 60 % of its time" in feeds(FAST, 1000).found


def test_figures_are_shown_in_their_units():
    shown = {finding.check: finding.found for finding in link_findings(FAST, 300)}
    assert shown["round trip"] == "1.0 ms"
    assert shown["bandwidth"] == "600 MiB/s to the server, without its teachers: 4180 raw crops/s of 147 KiB"
    assert shown["labels"] == "400 labels/s with 1024 crops in flight"
    assert list(shown)[-2:] == ["bound", "sizing"]
    assert [f.check for f in link_findings(dataclasses.replace(FAST, rtt_s=None, up_bytes_per_s=None), None)] == [
        "labels",
        "bound",
    ]
