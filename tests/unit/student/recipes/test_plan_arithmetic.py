"""100 images, 10 epochs, 1000 crops in all: figures that can be worked out by hand."""

from dataclasses import replace

import pytest

from teacherfarm.student.recipes.plan_arithmetic import (
    WIRES,
    Costs,
    Setup,
    all_ways,
    cheapest_of,
    core_seconds,
    disk_bytes,
    in_the_loop,
    recording_first,
    recording_meanwhile,
    server_seconds,
    streaming,
    teachers_for,
)

HOUR = 3600
COSTS = Costs(
    decode_s=0.004,
    student_cut_s=0.001,
    teacher_cut_s=0.002,
    encode_s=0.0005,
    unpack_s=0.00025,
    raw_bytes=1000,
    jpeg_bytes=100,
    reference_bytes=20,
    label_bytes=40,
)
SETUP = Setup(
    num_images=100,
    epochs=10,
    runs=1,
    views=5,
    crops_per_image=2,
    student_rate=100,
    teacher_rate=30,
    teachers=2,
    loop_rate=50,
    cores=1,
    link_bytes=20_000,
)


def test_a_crop_takes_so_much_of_a_core():
    # An image's 4 ms are shared by two crops.
    assert core_seconds(COSTS, 2, None) == pytest.approx(0.002 + 0.001)
    assert core_seconds(COSTS, 2, None, in_loop=True) == pytest.approx(0.002 + 0.001 + 0.002)
    assert core_seconds(COSTS, 2, "raw") == pytest.approx(0.002 + 0.001 + 0.002)
    assert core_seconds(COSTS, 2, "jpeg") == pytest.approx(0.002 + 0.001 + 0.002 + 0.0005)
    assert core_seconds(COSTS, 2, "reference") == pytest.approx(0.002 + 0.001)
    assert core_seconds(replace(COSTS, same_view=True), 2, "raw") == pytest.approx(0.002 + 0.001)
    assert server_seconds(COSTS, 2, "raw") == 0
    assert server_seconds(COSTS, 2, "jpeg") == 0.00025
    assert server_seconds(COSTS, 2, "reference") == pytest.approx(0.002 + 0.002)


def test_teacher_in_the_loop():
    # 10 ms of student and 20 ms of teacher, one after the other: 1000 crops in 30 s, 20 of them the teacher's.
    way = in_the_loop(SETUP, COSTS)
    assert way.crops_per_s == pytest.approx(1000 / 30)
    assert way.wall_hours * HOUR == pytest.approx(30)
    assert way.teacher_hours * HOUR == pytest.approx(20)
    assert way.cost * HOUR == pytest.approx(30)
    assert way.decode_cores == pytest.approx(1000 / 30 * 0.005)
    assert (way.wire_bytes_per_s, way.disk_bytes) == (0, 0)
    assert way.fresh


def test_streaming_is_as_fast_as_its_slowest_part():
    # 20 kB/s carry 20 raw crops, or 200 jpeg ones; two teachers label 60.
    raw, jpeg = streaming(SETUP, COSTS, "raw"), streaming(SETUP, COSTS, "jpeg")
    assert (raw.bound, raw.crops_per_s) == ("the link", pytest.approx(20))
    assert (jpeg.bound, jpeg.crops_per_s) == ("the teachers", pytest.approx(60))
    many = replace(SETUP, teachers=10)
    assert streaming(many, COSTS, "jpeg").bound == "the student"
    assert streaming(many, COSTS, "jpeg").crops_per_s == 100
    slow = streaming(replace(many, cores=0.11), COSTS, "jpeg")
    assert (slow.bound, slow.crops_per_s) == ("loading", pytest.approx(20))
    # Where references are small, labels fill the link: 40 bytes back.
    narrow = streaming(replace(many, link_bytes=400), COSTS, "reference")
    assert (narrow.bound, narrow.crops_per_s) == ("the link", pytest.approx(10))


def test_what_streaming_costs():
    # 1000 crops at 60/s are 16.67 s of the student; the labels are 33.33 s of one teacher.
    way = streaming(SETUP, COSTS, "jpeg")
    assert way.wall_hours * HOUR == pytest.approx(1000 / 60)
    assert way.teacher_hours * HOUR == pytest.approx(1000 / 30)
    assert way.wire_bytes_per_s == pytest.approx(60 * 140)
    assert way.decode_cores == pytest.approx(60 * 0.0055)
    assert way.server_cores == pytest.approx(60 * 0.00025)
    assert way.cost * HOUR == pytest.approx(1000 / 60 + 1000 / 30)
    priced = streaming(replace(SETUP, student_price=3, student_devices=2, teacher_price=0.5), COSTS, "jpeg")
    assert priced.cost * HOUR == pytest.approx(6 * 1000 / 60 + 0.5 * 1000 / 30)
    # Four teachers stand by for all the 10 s of the run, and compute for 33.33 of these 40.
    dedicated = streaming(replace(SETUP, teachers=4, dedicated=True), COSTS, "jpeg")
    assert dedicated.cost * HOUR == pytest.approx(10 + 4 * 10)


def test_recording_first():
    # 5 views of 100 images: 500 labels, in 8.33 s of two teachers; then 1000 crops at the student's own 100/s.
    way = recording_first(SETUP, COSTS, "jpeg")
    assert way.labels == 500
    assert way.teacher_hours * HOUR == pytest.approx(500 / 30)
    assert way.student_hours * HOUR == pytest.approx(10)
    assert way.wall_hours * HOUR == pytest.approx(10 + 500 / 60)
    assert way.cost * HOUR == pytest.approx(10 + 500 / 30)
    assert way.wire_bytes_per_s == pytest.approx(60 * 140)
    assert way.decode_cores == pytest.approx(100 * 0.003)
    assert not way.fresh
    assert "the student" in way.bound
    assert "the teachers (60/s)" in way.bound
    twice = recording_first(replace(SETUP, runs=2), COSTS, "jpeg")
    assert (twice.teacher_hours, twice.student_hours) == (way.teacher_hours, pytest.approx(2 * way.student_hours))
    assert recording_first(replace(SETUP, views=10), COSTS, "jpeg").fresh


def test_recording_while_training():
    # The first 500 crops stream at 60/s, the other 500 replay at 100/s.
    way = recording_meanwhile(SETUP, COSTS, "jpeg")
    assert way.labels == 500
    assert way.wall_hours * HOUR == pytest.approx(500 / 60 + 5)
    assert way.teacher_hours * HOUR == pytest.approx(500 / 30)
    assert way.cost * HOUR == pytest.approx(500 / 60 + 5 + 500 / 30)
    # More views than epochs are never asked for.
    all_new = recording_meanwhile(replace(SETUP, views=50), COSTS, "jpeg")
    assert all_new.labels == 1000
    assert all_new.disk_bytes == pytest.approx(1000 * (40 + 8 / 1024))


def test_labels_on_disk():
    assert disk_bytes(SETUP, COSTS) == pytest.approx(500 * 40.0078125)
    imagenet = replace(SETUP, num_images=1_281_167, views=200)
    assert disk_bytes(imagenet, replace(COSTS, label_bytes=20)) == pytest.approx(5.13e9, rel=0.01)


def test_teachers_that_keep_a_student_busy():
    assert teachers_for(2500, 900) == 3
    assert teachers_for(1800, 900) == 2


def test_all_ways_record_over_the_fastest_wire():
    ways = {way.name: way for way in all_ways(SETUP, COSTS)}
    assert len(ways) == 3 + len(WIRES)
    # jpeg and by reference are equally fast here, and references are smaller.
    assert ways["record while training"].wire_bytes_per_s == pytest.approx(60 * 60)


def test_the_cheapest_and_of_equals_the_soonest():
    loop = in_the_loop(SETUP, COSTS)
    cheap, soon = replace(loop, cost=1.0, wall_hours=9), replace(loop, cost=1.009, wall_hours=3)
    assert cheapest_of([cheap, soon, replace(loop, cost=2.0)]) is soon
    assert cheapest_of([cheap, replace(soon, cost=1.02)]) is cheap
