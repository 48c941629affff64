"""FKD, FerKD and ReLabel by ``teacherfarm distill``: from a served teacher, from labels that were recorded or
calibrated, from label maps.
"""

from __future__ import annotations

import argparse
import csv
import json

import pytest
import torch

from teacherfarm.student.recipes import distill, labels_calibrate_command
from tests.tiny_teacher import CLASSES
from tests.unit.label_store.test_relabel_files import some_map
from tests.unit.student.image_folders import write_images

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.*views per sample are replayed")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", CLASSES, 4)
    write_images(folder / "val", CLASSES, 1, seed=1)
    return folder


def run(data, out, *more):
    student = ["--student", "tests.unit.student.pattern_teacher:make_student", "--device", "cpu"]
    short = ["--epochs", 4, "--batch-size", 10, "--workers", 0, "--lr", 0.05, "--crops-per-image", 2]
    given = list(map(str, [data, "--out", out, *student, *short, "--measure-link", 0, *more]))
    parser = argparse.ArgumentParser()
    distill.add_arguments(parser, given)
    assert distill.main(parser.parse_args(given)) == 0
    assert (out / "student.pt").exists()
    assert "top1" in json.loads((out / "result.json").read_text())
    with (out / "log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("fkd", ["--top-k", 3, "--mix", "fkd"]),
        ("ferkd", ["--mix", "selfmix", "--history", 4, "--low", 0.1, "--middle", 0.4]),
        ("ferkd", ["--thresholds", "absolute", "--low", 0, "--confidence", "target", "--high", 1]),
    ],
)
def test_recorded_labels_train_like_the_farm_that_gave_them(data, tiny_farm, tmp_path, method, settings):
    views = ["--order", "permute", "--views", 4]
    streamed = run(
        data, tmp_path / "1", "--method", method, *settings, *views,
        "--teacher-address", tiny_farm.zmq, "--record", tmp_path / "labels",
    )  # fmt: skip
    replayed = run(data, tmp_path / "2", "--method", method, *settings, "--labels", tmp_path / "labels")
    assert replayed == streamed
    assert len(set(streamed)) == len(streamed)


def test_calibrated_labels_train_by_fkd(data, tiny_farm, tmp_path, capsys):
    views = ["--order", "permute", "--views", 8]
    run(data, tmp_path / "1", "--method", "fkd", *views, "--teacher-address", tiny_farm.zmq, "--record", tmp_path / "l")
    parser = argparse.ArgumentParser()
    labels_calibrate_command.add_arguments(parser)
    rule = ["--low", "0.2", "--middle", "0.5", "--high", "0.9", "--at-least", "2"]
    # Half of the views were never asked for: they must not be missed afterwards.
    assert labels_calibrate_command.main(parser.parse_args([f"{tmp_path}/l", "--out", f"{tmp_path}/c", *rule])) == 0
    assert "10 of 10 classes of the folder matched" in capsys.readouterr().out
    assert len(run(data, tmp_path / "2", "--method", "fkd", "--labels", tmp_path / "c")) == 3


def test_label_maps_need_no_teacher(data, tmp_path):
    for number, image in enumerate(sorted((data / "train").glob("*/*.png"))):
        target = tmp_path / "maps" / image.parent.name / f"{image.stem}.pt"
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save([*some_map(number, num_classes=len(CLASSES))], target)
    maps = ["--label-maps", tmp_path / "maps", "--student-size", 24]
    losses = run(data, tmp_path / "1", "--method", "relabel", "--mix", "cutmix", *maps)
    assert len(set(losses)) == 3
