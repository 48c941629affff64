import argparse
import json
from dataclasses import replace

import numpy as np
import pytest

from teacherfarm.crops.sample_readers import open_samples
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.faults import UnreadableImage
from teacherfarm.student.accounts import ClientStats
from teacherfarm.student.recipes import plan
from teacherfarm.student.recipes.plan_command import add_arguments
from teacherfarm.student.recipes.plan_measure import FarmFacts, measure_farm, measure_images
from teacherfarm.student.sizing import LoadSum
from tests.unit.student.fake_teacher import make_card
from tests.unit.student.image_folders import write_images
from tests.unit.student.pattern_teacher import CLASSES, SIZE, PatternTeacher

RENDERING = Rendering(height=SIZE, width=SIZE)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "train", CLASSES, 3)


@pytest.fixture(scope="module")
def images(data):
    return measure(data)


def measure(data, **more):
    wanted = {"teacher": RENDERING, "student": Rendering(height=8, width=8), "num_images": 5, "crops_per_image": 2}
    return measure_images(open_samples(data), seed=0, **wanted | more)


def options(*arguments):
    parser = argparse.ArgumentParser(prog="plan")
    add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def known(data, *more):
    """A student of 100 crops/s and teachers of 60, with room in everything else."""
    return options(data, "--student-rate", 100, "--teacher-rate", 60, "--cores", 64, *more)


def planned(chosen, images, capsys, *, card=None, farm=None):
    assert plan.show(chosen, images, card=card, farm=farm, rendering=RENDERING) == 0
    return capsys.readouterr().out


def test_what_is_measured_of_the_images(images):
    assert (images.num_images, images.num_measured) == (18, 5)
    assert (images.height, images.width) == (40, 40)
    assert 1000 < images.image_bytes < 10_000
    assert images.crops.shape == (10, SIZE, SIZE, 3)
    assert 600 < images.jpeg_bytes < 2000, "most of it a header"
    for seconds in ("decode_s", "teacher_cut_s", "student_cut_s", "encode_s", "unpack_s"):
        assert 0 < getattr(images, seconds) < 0.1, seconds


def test_unreadable_images_are_left_out(tmp_path, caplog):
    folder = write_images(tmp_path / "train", CLASSES[:1], 3)
    (folder / CLASSES[0] / "0001.png").write_bytes(b"no image")
    assert measure(folder).num_measured == 2
    assert "cannot read ant/0001" in caplog.text
    for file in folder.glob("*/*"):
        file.write_bytes(b"")
    with pytest.raises(UnreadableImage, match="none of the chosen images"):
        measure(folder)


def test_every_figure_is_printed_with_its_source(data, images, capsys):
    said = planned(known(data, "--images", 1000), images, capsys)
    words = {" ".join(line.split()) for line in said.splitlines()}
    assert "images 1 000 given --images" in words
    assert "link, each way 1 000 Mbit/s assumed --link" in words
    assert "cores for loading 64 given --cores" in words
    assert "teachers 2 as many as keep the student busy --teachers" in words
    assert "classes 1 000 assumed --classes" in words
    assert "a raw crop 768 bytes the teacher's size --size" in words
    assert sum("measured here on 5 of the images" in line for line in words) == 6


def test_a_program_gets_figures_ways_and_words(data, images, capsys):
    chosen = known(data, "--json", "--images", 1000, "--epochs", 100, "--views", 50, "--top-k", 5)
    told = json.loads(planned(chosen, images, capsys))
    figures = {figure["name"]: figure for figure in told["figures"]}
    assert figures["images"]["value"] == 1000
    assert figures["images"]["source"] == "given"
    assert figures["teachers"]["value"] == 2
    assert figures["a label (top-5)"]["value"] == 20
    assert figures["a raw crop"]["value"] == SIZE * SIZE * 3
    assert figures["decoding an image"]["source"] == "measured here on 5 of the images"
    assert figures["link, each way"] == {
        "name": "link, each way",
        "value": 1000,
        "unit": "Mbit/s",
        "source": "assumed",
        "option": "--link",
    }
    ways = {way["name"]: way for way in told["ways"]}
    assert ways["stream raw"]["crops_per_s"] == 100
    assert ways["stream raw"]["wall_hours"] == pytest.approx(1000 * 100 / 100 / 3600)
    assert ways["record, then replay"]["labels"] == 50_000
    assert ways["record, then replay"]["disk_bytes"] == pytest.approx(50_000 * 20, rel=1e-3)
    assert told["advice"][0].startswith("Cheapest: record while training")
    assert "computed once and used 2 times each" in told["advice"][1]


def test_enough_epochs_for_every_view_once_stream(data, images, capsys):
    said = planned(known(data, "--epochs", 30), images, capsys)
    assert "Cheapest: stream raw" in said, "small crops on a fast link: nothing is decoded twice"
    assert "with 30 views for 30 epochs in all, recording saves no label" in said


def test_a_light_teacher_stays_in_the_loop(data, images, capsys):
    said = planned(known(data, "--epochs", 30, "--loop-rate", 1000, "--teacher-price", 9), images, capsys)
    assert "Cheapest: teacher in the loop" in said
    assert "works 9% of its time for the teacher" in said


def test_what_is_in_the_way_is_named(data, images, capsys):
    said = planned(known(data, "--teachers", 1, "--link", 0.1), images, capsys)
    assert "Raw crops for a busy student are 0.614 Mbit/s, the link carries 0.1: send jpeg or by reference." in said
    assert "1 teacher cannot feed this student; 2 can." in said
    assert "Loading for a busy student takes" not in said
    few = planned(options(data, "--student-rate", 1e6, "--teacher-rate", 60, "--cores", 1), images, capsys)
    assert "Loading for a busy student takes" in few


def test_few_views_are_warned_of(data, images, capsys):
    assert "20 views are few" in planned(known(data, "--views", 20), images, capsys)
    assert "views are few" not in planned(known(data, "--views", 50), images, capsys)


def test_a_farm_that_was_measured(data, images, capsys):
    card = make_card(num_classes=20, size=SIZE)
    chosen = options(data, "--student-rate", 100, "--teacher-address", "zmq://unused:1", "--top-k", 100, "--json")
    farm = FarmFacts(labels_per_s=80, teachers=4, busy=0.45, all_per_s=90)
    told = json.loads(planned(chosen, images, capsys, card=card, farm=farm))
    figures = {figure["name"]: figure for figure in told["figures"]}
    # 90 labels/s at 45 % of the time are 180 at 90 %: 45 of each of the four.
    assert figures["one teacher"]["value"] == pytest.approx(45)
    assert figures["one teacher"]["source"] == "measured: this machine got 80/s from 4 teachers, 45% busy"
    assert (figures["teachers"]["value"], figures["teachers"]["source"]) == (4, "the farm's")
    # A hundred of twenty classes are all of them: dense.
    assert figures["a label (dense)"]["value"] == 40


def test_what_a_farm_can_do():
    alone = FarmFacts(labels_per_s=80)
    assert (alone.farm_rate, alone.teacher_rate) == (80, 80)
    full = FarmFacts(labels_per_s=80, teachers=2, busy=0.95, all_per_s=160)
    assert (full.farm_rate, full.teacher_rate) == (160, 80)
    idle = replace(full, busy=0.0, all_per_s=0.0)
    assert idle.farm_rate == 80


class CountingTeacher(PatternTeacher):
    def __init__(self):
        super().__init__(window=1024)
        self.batches = []
        self.stats = ClientStats(load=LoadSum(seconds=1, busy_s=1, labels=50, backends=3))

    def submit(self, crops, **more):
        self.batches.append(crops.copy())
        return super().submit(crops, **more)


def test_the_farm_is_asked_for_no_crop_twice(images):
    teacher = CountingTeacher()
    facts = measure_farm(teacher, images.crops, seconds=0.2, seed=0)
    asked = np.concatenate(teacher.batches)
    assert len(np.unique(asked.reshape(len(asked), -1), axis=0)) == len(asked)
    assert 0 < facts.labels_per_s < len(asked) / 0.2
    # No server said anything while it was measured.
    assert facts.teachers is None
    assert teacher.untaken == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student-rate", "1"], "how fast is a teacher. --teacher-rate CROPS/S"),
        (["--student-rate", "0", "--teacher-rate", "1"], "--student-rate must be positive, got 0"),
        (["--student-rate", "1", "--teacher-rate", "1", "--views", "0"], "--views must be positive"),
        (["--student-rate", "1", "--teacher-rate", "1", "--top-k", "-1"], "--top-k must not be negative"),
        (["--student-rate", "1", "--teacher-address", "zmq://a:1", "--size", "9"], "--size is the card's"),
    ],
)
def test_arguments_that_cannot_be_planned_with(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan.main(options("DATA", *arguments))
