"""The accuracy study from pictures to page, in a few steps of training; what is finished is not done again."""

import json

from bench.accuracy import main
from tests.unit.student.image_folders import write_images


def test_a_study_is_trained_kept_and_written(tmp_path, capsys):
    classes = ("cat", "dog", "owl")
    write_images(tmp_path / "data" / "train", classes, 8, size=32)
    write_images(tmp_path / "data" / "test", classes, 2, size=32)
    few = ["--teacher=resnet8", "--teacher-epochs=1", "--epochs=1", "--seeds=1", "--jobs=1", "--only", "kd"]
    arguments = ["--data", str(tmp_path / "data"), "--out", str(tmp_path), "--write", str(tmp_path / "page.md"), *few]
    assert main(arguments) == 0
    cell = json.loads((tmp_path / "cells" / "kd-0.json").read_text())
    assert 0 <= cell["top1"] <= 1
    page = (tmp_path / "page.md").read_text()
    # 24 crops to train on and 6 to test, 16 x 16 x 3 each, and for each a 2-byte log-probability of 3 classes
    assert cell["crop_mb"] * 1e6 == 30 * 16 * 16 * 3
    assert "| kd | " in page
    assert "24 images to train on, 6 to test" in page
    assert main(arguments) == 0
    assert "runs     0 to do, 1 done" in capsys.readouterr().out
