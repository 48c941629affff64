"""Whether a method can be fed: measured before a run, of which nothing changes by it."""

import dataclasses
import time

import numpy as np
import pytest
import torch

from teacherfarm.crops.mixing import Mix, mix_references
from teacherfarm.protos.references import CropReferences
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.recipes.distill import distill
from teacherfarm.student.recipes.link_check import (
    LinkReading,
    answers_per_s,
    bare_spec,
    never_the_same,
    student_per_s,
)
from teacherfarm.student.recipes.ranks import Ranks
from tests.methods import make_card
from tests.unit.student.image_folders import write_images
from tests.unit.student.pattern_teacher import CLASSES, PatternTeacher
from tests.unit.student.recipes.test_distill import options

torch.set_num_threads(1)
ALONE = Ranks(rank=0, num_ranks=1, device=torch.device("cpu"))
READING = LinkReading(method="fitnet", bytes_per_crop=131_072, student_per_s=1000, answers_per_s=50, bare_per_s=900)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", CLASSES, 2)
    write_images(folder / "val", CLASSES, 1, seed=1)
    return folder


def test_a_method_is_refused_where_the_link_is_what_starves_it():
    assert READING.too_slow
    assert READING.share == 0.05
    assert "131072 bytes a crop, of which 50.0 crops/s arrive, while bare labels arrive for 900" in READING.refusal()
    assert "wait for 95% of its time" in READING.refusal()
    # A slow teacher is slow for every method; a slow student is fed all the same.
    assert not dataclasses.replace(READING, bare_per_s=60).too_slow
    assert not dataclasses.replace(READING, student_per_s=100).too_slow
    assert not dataclasses.replace(READING, bare_per_s=None).too_slow
    assert "50 crops/s answered (6.55 MB/s), the student takes 1000: fed to 5%" in str(READING)


def test_the_least_that_a_teacher_can_be_asked_for():
    assert bare_spec(make_card()) == LabelSpec(outputs=("labels",), top_k=1)
    assert bare_spec(make_card(activation="sigmoid")) == LabelSpec()
    assert bare_spec(make_card(fixed_temperature=4.0)).resolve(make_card(fixed_temperature=4.0)).temperature == 4
    assert bare_spec(make_card(activation="none")) == LabelSpec(outputs=("embedding",))
    maps = make_card(activation="none", features={"layer1": (8, 8, 8), "layer2": (16, 4, 4)})
    assert bare_spec(maps) == LabelSpec(outputs=("layer2",))


def test_pixels_are_never_the_same_and_references_always():
    pixels, references = np.zeros((3, 4, 4, 3), np.uint8), np.zeros((3, 20), np.uint8)
    seen = {next(batches).tobytes() for batches in [never_the_same(pixels)] for _ in range(5)}
    assert len(seen) == 5
    again = next(never_the_same(references))
    assert again.pack() == CropReferences(table=again.table).pack() == references.tobytes()
    mixed = mix_references(again, Mix(kind="mixup", partner=(1, 2, 0), own_share=130))
    assert next(never_the_same(mixed)) is mixed


def test_answers_are_counted_and_none_is_left_behind():
    teacher = PatternTeacher(window=40)
    crops = np.zeros((8, 16, 16, 3), np.uint8)
    rate, first = answers_per_s(teacher, never_the_same(crops), 0.05)
    assert 0.3 < rate * 0.05 / (len(teacher.asked) - 8) < 3
    assert len(first) == 8
    assert teacher.untaken == 0
    assert teacher.most_untaken == 40


def test_a_rehearsal_takes_no_random_number():
    before = torch.get_rng_state()
    steps = []

    def rehearse():
        steps.append(torch.rand(3))
        time.sleep(0.02)

    rate = student_per_s(rehearse, 5, ALONE, 10.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert 25 < rate < 250
    assert len(steps) == 5
    # A slow one is not kept waiting for.
    assert 25 < student_per_s(rehearse, 5, ALONE, 0.001) < 250
    assert len(steps) == 6


class Slow(PatternTeacher):
    """Answers all classes slowly, and the best one at once."""

    def answer(self, crops):
        if self.spec.top_k != 1:
            time.sleep(0.05)
        return super().answer(crops)


def run(data, out, teacher_of, *more):
    def connect(*, spec=None, digest="", by_reference=None):
        return teacher_of(spec=spec)

    return distill(options(data, out, "--epochs", 1, *more), ALONE, connect)


def test_what_is_measured_changes_nothing(data, tmp_path, capsys):
    more = ["--method", "kd", "--lr", 0.05]
    run(data, tmp_path / "1", PatternTeacher, *more)
    assert "link " not in capsys.readouterr().out
    run(data, tmp_path / "2", PatternTeacher, *more, "--measure-link", 0.05)
    assert "link     kd asks 12 bytes a crop: " in capsys.readouterr().out
    one, other = (torch.load(tmp_path / name / "student.pt") for name in "12")
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_method_that_cannot_be_fed_does_not_begin(data, tmp_path):
    with pytest.raises(ValueError, match=r"method kd cannot be fed over this link: it asks 12 bytes a crop"):
        run(data, tmp_path, Slow, "--method", "kd", "--measure-link", 0.1)
    assert not list(tmp_path.iterdir())
    assert run(data, tmp_path, Slow, "--method", "fkd", "--form", "hard", "--measure-link", 0.1) == 0
