import argparse
import csv
import dataclasses

import numpy as np
import pytest

from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.crops.sample_readers import open_samples
from teacherfarm.label_store.recorded_labels import LabelRecorder
from teacherfarm.protos.crop import CropFormat, Rendering
from teacherfarm.protos.faults import UnreadableImage
from teacherfarm.protos.soft_label import log_softmax
from teacherfarm.student.recipes import study
from teacherfarm.student.recipes.study_command import add_arguments
from teacherfarm.student.recipes.study_pixels import CropSample, arrivals, num_ways
from tests.recordings import everything, index_of, manifest_of, records_of
from tests.unit.student.image_folders import write_images
from tests.unit.student.pattern_teacher import CLASSES, SIZE, PatternTeacher


class PatternAnswers(PatternTeacher):
    """The patterns' teacher as a study asks it."""

    precision = "float64 of a test"

    def log_probabilities(self, crops):
        return log_softmax(self.logits(crops) / 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "train", CLASSES, 3)


def options(*arguments):
    parser = argparse.ArgumentParser(prog="study")
    add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def of(data, *more):
    return options(data, "--teacher-address", "zmq://unused:1", *more)


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_study_of_labels_and_crops(data, tmp_path, capsys):
    teacher = PatternAnswers()
    chosen = of(data, "--crops", 20, "--top-k", 1, 3, "--temperatures", 1, 4, "--budget", 0.002, "--out", tmp_path)
    assert study.of_teacher(chosen, teacher) == 0
    said = capsys.readouterr().out
    assert "asked     20 crops of 18 images" in said
    assert "full precision: float64 of a test" in said

    labels = read_csv(tmp_path / "labels.csv")
    assert len(labels) == 2 * (2 * 4 * 2 + 4)
    drifts = {(row["label"], row["numbers"], row["completion"], row["temperature"]): row for row in labels}
    exact = drifts["dense", "float32 log-probabilities", "", "1"]
    rounded = drifts["dense", "float16 log-probabilities", "", "1"]
    assert float(exact["kl_mean"]) < 1e-9 < float(rounded["kl_mean"]) < 1e-5
    assert (exact["bytes"], rounded["bytes"], rounded["setting"]) == ("24.0", "12.0", "LabelSpec()")
    warm = drifts["top-3", "float16 log-probabilities", "smoothing", "4"]
    assert (warm["bytes"], warm["setting"]) == ("12.0", 'LabelSpec(top_k=3, temperature=4), completion="smoothing"')
    assert drifts["top-3", "float16 log-probabilities", "renorm", "4"]["missed_mean"] == "inf"

    # The answer that is named is what the table says.
    within = [row for row in labels if row["setting"] and row["temperature"] == "1" and float(row["kl_mean"]) <= 0.002]
    smallest = min(within, key=lambda row: (float(row["bytes"]), float(row["kl_mean"])))
    assert f"to write: {smallest['setting']}" in said

    crops = read_csv(tmp_path / "crops.csv")
    assert len(crops) == 2 * num_ways(teacher.card.rendering)
    jpegs = {(row["kind"], row["way"]): float(row["kl_mean"]) for row in crops if row["temperature"] == "1"}
    assert jpegs["jpeg 4:4:4", "quality 95"] < jpegs["jpeg 4:4:4", "quality 50"]
    for name in ("labels.png", "crops.png"):
        assert (tmp_path / name).stat().st_size > 10_000
        assert f"![]({name})" in (tmp_path / "report.md").read_text()


def test_a_budget_that_nothing_keeps(data, capsys):
    assert study.of_teacher(of(data, "--crops", 4, "--only", "labels", "--budget", 1e-12), PatternAnswers()) == 0
    assert "no label that can be asked for keeps 1e-12 nats" in capsys.readouterr().out


def test_the_setting_carries_the_temperature(data, capsys):
    chosen = of(data, "--crops", 4, "--only", "labels", "--top-k", 1, "--budget", 9, "--temperature", 2)
    assert study.of_teacher(chosen, PatternAnswers()) == 0
    assert 'to write: LabelSpec(top_k=1, temperature=2), completion="smoothing"' in capsys.readouterr().out


def test_of_recorded_labels(tmp_path, capsys):
    index = index_of(30)
    manifest = manifest_of(index, 2, top_k=0)
    rows, views = everything(30, 2)
    with LabelRecorder(str(tmp_path), manifest, index) as recorder:
        recorder.add(rows[:40], views[:40], records_of(manifest, rows[:40], views[:40]))
    assert study.main(options("--labels", tmp_path, "--top-k", 2)) == 0
    said = capsys.readouterr().out
    assert "40 labels of some-teacher, 8 classes" in said
    assert "float16 log-probabilities at temperature 1 (what travels" in said


def test_recorded_top_k_labels_are_no_reference(tmp_path):
    index = index_of(3)
    manifest = manifest_of(index, 1)
    rows, views = everything(3, 1)
    with LabelRecorder(str(tmp_path), manifest, index) as recorder:
        recorder.add(rows, views, records_of(manifest, rows, views))
    with pytest.raises(ValueError, match=r"these recorded labels are top-10: record some with LabelSpec\(\)"):
        study.main(options("--labels", tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "sigmoid"}, "gives no distribution over classes .sigmoid."),
        ({"crop_format": CropFormat(height=SIZE, width=SIZE, channels=1)}, "are cut from images as uint8 with 3 ch"),
    ],
)
def test_teachers_that_cannot_be_studied(data, change, message):
    teacher = PatternAnswers()
    teacher.card = dataclasses.replace(teacher.card, **change)
    with pytest.raises(ValueError, match=message):
        study.of_teacher(of(data), teacher)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DATA"], "either --teacher-address ADDRESS"),
        (["--teacher-address", "local://m"], "DATA, the images, goes with --teacher-address"),
        (["DATA", "--labels", "DIR"], "recorded labels .--labels. need none"),
        (["--labels", "DIR", "--only", "crops"], "asks a teacher about other pixels"),
        (["--labels", "DIR", "--crops", "1"], "--crops is at least 2, got 1"),
        (["--labels", "DIR", "--budget", "0"], "--budget is a mean divergence in nats above 0"),
        (["--labels", "DIR", "--temperature", "-1"], "temperature must be positive"),
        (["--labels", "DIR", "--top-k", "0"], "--top-k counts classes"),
    ],
)
def test_arguments_that_do_not_go_together(arguments, message):
    with pytest.raises(ValueError, match=message):
        study.main(options(*arguments))


def test_crops_of_a_sample(data):
    reader = open_samples(data)
    rendering = Rendering(height=SIZE, width=SIZE)
    sample = CropSample(reader, num_crops=40, plan=CropPlan(seed=1))
    crops, seconds = sample.cut(rendering)
    assert crops.shape == (40, SIZE, SIZE, 3)
    assert seconds > 0
    assert sample.num_images == 18, "two crops of each image, three of some"
    assert len(np.unique(crops.reshape(40, -1), axis=0)) == 40
    fewer, _ = CropSample(reader, num_crops=5, plan=CropPlan(seed=1)).cut(rendering)
    assert len(fewer) == 5


def test_what_arrives_by_each_way(data):
    sample = CropSample(open_samples(data), num_crops=6, plan=CropPlan())
    rendering = Rendering(height=SIZE, width=SIZE)
    native, *others = arrivals(sample, rendering, CropFormat(height=SIZE, width=SIZE))
    assert len(others) + 1 == num_ways(rendering)
    assert native.crop_bytes == SIZE * SIZE * 3
    assert (native.pixels == sample.cut(rendering)[0]).all()
    assert all(other.pixels.shape == native.pixels.shape for other in others)
    assert not any((other.pixels == native.pixels).all() for other in others)
    assert {other.way.advice for other in others if other.way.group.startswith("jpeg")} == {"", 'codec="jpeg"'}
    by_name = {(other.way.group, other.way.name): other for other in others}
    good, poor = by_name["jpeg 4:4:4", "quality 98"], by_name["jpeg 4:4:4", "quality 50"]
    assert good.crop_bytes > poor.crop_bytes
    assert by_name["smaller", "8 px, enlarged"].crop_bytes == 8 * 8 * 3


def test_unreadable_images_are_left_out_and_named(tmp_path, caplog):
    folder = write_images(tmp_path / "train", CLASSES[:2], 2)
    (folder / CLASSES[0] / "0000.png").write_bytes(b"no image")
    sample = CropSample(open_samples(folder), num_crops=4, plan=CropPlan())
    assert len(sample.cut(Rendering(height=8, width=8))[0]) == 3
    assert sample.num_images == 3
    assert "cannot read ant/0000" in caplog.text
    for file in folder.glob("*/*"):
        file.write_bytes(b"")
    with pytest.raises(UnreadableImage, match="none of 4 images can be read"):
        CropSample(open_samples(folder), num_crops=4, plan=CropPlan()).cut(Rendering(height=8, width=8))
