import argparse
import re

import numpy as np
import pytest
import torch

from teacherfarm.student.recipes.check import add_arguments, check
from teacherfarm.student.recipes.check_verdict import Counts, verdict
from teacherfarm.student.recipes.class_names import match_classes
from tests.unit.student.fake_teacher import make_card
from tests.unit.student.image_folders import write_images
from tests.unit.student.pattern_teacher import CLASSES, PatternTeacher

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "val", CLASSES, 6)
    write_images(folder / "train", CLASSES, 4, seed=1)
    return folder


def options(data, *more):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(data), "--teacher-address", "zmq://unused:1", "--workers", "0", *map(str, more)])


def test_a_teacher_that_fits(data, tmp_path, capsys):
    picture = tmp_path / "worst.png"
    teacher = PatternTeacher(order=(0, 1, 2, 3, 5, 4))  # two of six classes are mixed up: a few disagreements
    assert check(options(data, "--picture", picture), teacher) == 0
    said = re.sub(" +", " ", capsys.readouterr().out)
    assert "6 of 6 classes of the folder matched to the teacher's by name" in said
    assert "val, centre crops 36 66.7% 100.0%" in said
    assert "train, crops of 0.5 to 1 of the area 24" in said
    assert "FITS: top-1 66.7% and top-5 100.0%" in said
    assert picture.stat().st_size > 1000
    assert teacher.untaken == 0


def test_another_class_order_is_found_out(data, capsys):
    assert check(options(data), PatternTeacher(order=(1, 2, 3, 4, 5, 0))) == 1
    said = capsys.readouterr().out
    assert "DOES NOT FIT: top-1 0.0%" in said
    assert "The reason is the class order: the teacher gives 100% of the images their folder's usual" in said
    assert "\nant = bee\nbee = cat\n" in said


def test_the_suggested_map_helps(data, tmp_path, capsys):
    file = tmp_path / "map.txt"
    file.write_text("\n".join(f"{a} = {b}" for a, b in zip(CLASSES, CLASSES[1:] + CLASSES[:1], strict=True)))
    assert check(options(data, "--class-map", file), PatternTeacher(order=(1, 2, 3, 4, 5, 0))) == 0
    assert "matched to the teacher's by map.txt" in capsys.readouterr().out


class SwappedTeacher(PatternTeacher):
    """Right about crops with red and blue exchanged, one class off otherwise."""

    def logits(self, crops):
        right, wrong = super().logits(crops[..., ::-1]), np.roll(super().logits(crops), 1, axis=1)
        return np.where(right.max(axis=1) > wrong.max(axis=1), right.T, wrong.T).T


def test_swapped_channels_are_found_out(data, capsys):
    assert check(options(data), SwappedTeacher()) == 1
    said = re.sub(" +", " ", capsys.readouterr().out)
    assert "DOES NOT FIT: top-1 0.0%" in said
    assert "The reason is the channel order: with red and blue swapped its top-1 is 100.0%" in said
    assert "red and blue swapped 36 100.0%" in said


class StubbornTeacher(PatternTeacher):
    def logits(self, crops):
        return np.tile(np.arange(6.0), (len(crops), 1))


def test_a_teacher_of_something_else(data, capsys):
    assert check(options(data), StubbornTeacher()) == 1
    said = capsys.readouterr().out
    assert "DOES NOT FIT: top-1 16.7%" in said
    assert "swapping red and blue does not help" in said
    assert "one and the same answer to 100% of the images" in said


def test_a_folder_of_class_folders_is_enough(data, capsys):
    assert check(options(data / "val"), PatternTeacher()) == 0
    assert "train" not in capsys.readouterr().out


def test_unknown_classes_are_named(tmp_path, capsys):
    write_images(tmp_path / "val", ("ant", "bee", "griffin"), 2)
    assert check(options(tmp_path), PatternTeacher()) == 0
    assert (
        "1 of the folder's classes are unknown to the teacher and were not counted (griffin)" in capsys.readouterr().out
    )


def test_no_known_class_cannot_be_told(tmp_path, capsys):
    write_images(tmp_path / "val", ("griffin", "sphinx"), 5)
    assert check(options(tmp_path), PatternTeacher()) == 1
    said = capsys.readouterr().out
    assert "CANNOT TELL" in said
    assert "griffin = ant\nsphinx = bee" in said


def test_an_unreadable_image_is_counted_and_named(data, tmp_path, capsys, caplog):
    write_images(tmp_path / "val", CLASSES, 3)
    (tmp_path / "val" / "ant" / "0000.png").write_bytes(b"no image")
    assert check(options(tmp_path), PatternTeacher()) == 0
    assert "1 crops are of images that could not be read" in capsys.readouterr().out
    assert "ant/0000:" in caplog.text


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent is not a folder: expected .*absent/val/CLASS/IMAGE.jpg"):
        check(options(tmp_path / "absent"), PatternTeacher())
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"has no folder 'val' \(its folders are train\).*--val-folder"):
        check(options(tmp_path), PatternTeacher())


def test_hard_training_crops_are_pointed_out():
    card = PatternTeacher().card
    said = np.eye(6, dtype=np.int64) * 10
    val = Counts(name="val", said=said, crops=60, top1=60, top5=60)
    train = Counts(name="train", said=said, crops=60, top1=20, top5=60)
    fits, sentences = verdict(val, train, None, match_classes(CLASSES, card), card)
    assert fits
    assert "On training crops its top-1 is 33.3%" in sentences[1]


def test_a_poor_teacher_of_many_classes():
    card = make_card(1000)
    match = match_classes([str(number) for number in range(1000)], card)
    val = Counts(name="val", said=np.ones((1000, 1000), np.int64), crops=1000, top1=200, top5=400)
    fits, sentences = verdict(val, None, None, match, card)
    assert not fits
    assert sentences[0].startswith("FITS POORLY: top-1 20.0%")
