"""``teacherfarm labels calibrate``: FerKD's rule on recorded labels, image by image."""

import argparse

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from teacherfarm import cli
from teacherfarm.crops.crop_plan import BOX, CropPlan
from teacherfarm.crops.sample_index import index_dataset
from teacherfarm.crops.view_schedule import ViewSchedule
from teacherfarm.label_store.manifest import Manifest
from teacherfarm.label_store.recorded_card import read_card, write_card
from teacherfarm.label_store.recorded_labels import LabelRecorder, RecordedLabels
from teacherfarm.protos.faults import LabelsMismatch
from teacherfarm.protos.soft_label import LabelSpec, log_softmax
from teacherfarm.student.crop_dataset import CropDataset, collate_crops
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.recipes import labels_calibrate_command
from teacherfarm.student.recipes.labels_calibrate import Calibration, ranks
from teacherfarm.student.recorded_boxes import RecordedBoxes
from teacherfarm.student.recorded_teacher import RecordedTeacher
from tests.methods import make_card

CLASSES = ("ape", "bee", "cat", "dog")
VIEWS, PLAN = 10, CropPlan(seed=4)
CARD = make_card(num_classes=4, features={}, classes=CLASSES)
NAMES = ["bee/0", "bee/1", "dog/0", "dog/1", "weasel/0"]
"""Of classes 1, 3 and none of the teacher's."""
RULE = {"low": 0.1, "middle": 0.4, "high": 0.9, "epsilon": 0.2}


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        path = tmp_path / "data" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (30 + number, 50, 3), np.uint8)).save(path)
    return tmp_path / "data"


def record(data, folder, *, top_k=0, has_boxes=False):
    """Random labels of every view but the last of the first image: records by (row, view)."""
    index, spec = index_dataset(data), LabelSpec(top_k=top_k).resolve(CARD)
    manifest = Manifest.of(
        CARD,
        spec,
        plan=None if has_boxes else PLAN,
        rendering=CARD.rendering,
        views=VIEWS,
        samples=index.digest(),
        has_boxes=has_boxes,
    )
    logits = np.random.default_rng(1).normal(size=(len(NAMES) * VIEWS, 4)).astype(np.float32) * 2
    answers = {"log_probabilities": log_softmax(logits).astype(np.float16)}
    rows, views = np.divmod(np.arange(len(NAMES) * VIEWS), VIEWS)
    there = (rows != 0) | (views != VIEWS - 1)
    records = spec.pack(answers, CARD)
    boxes = np.zeros(len(rows), BOX)
    boxes["top"], boxes["height"], boxes["width"] = views, 1 + rows, 1 + views
    with LabelRecorder(str(folder), manifest, index) as recorder:
        recorder.add(rows[there], views[there], records[there], boxes[there] if has_boxes else None)
    write_card(folder, CARD)
    return RecordedLabels.open(str(folder))


def calibrate(labels, out, *more):
    return cli.main(list(map(str, ["labels", "calibrate", labels, "--out", out, *more])))


def flags(**rule):
    return [part for name, value in rule.items() for part in (f"--{name.replace('_', '-')}", value)]


def due(labels, row, target, *, thresholds, confidence, low, middle, high, epsilon, at_least=4):
    """The rule, one crop after the other: (view, distribution) of those that stay."""
    views = [view for view in range(VIEWS) if labels.read(np.array([row]), np.array([view]))[1][0]]
    crops = {view: labels.soft_labels(np.array([row]), np.array([view])).probabilities()[0] for view in views}
    if confidence == "target" and target is None:
        return list(crops.items())
    sure = {view: float(p.max() if confidence == "max" else p[target]) for view, p in crops.items()}
    place = dict(sure)
    if thresholds == "quantile":
        for view in views:
            below = sum(other < sure[view] for other in sure.values())
            equal = sum(other == sure[view] for other in sure.values())
            place[view] = (below + equal / 2) / len(views)
    stay = {view for view in views if low <= place[view] <= high}
    for view in sorted(set(views) - stay, key=lambda view: -sure[view]):
        if len(stay) < at_least:
            stay.add(view)
    softened = np.full(4, epsilon / 3)
    softened[target or 0] = 1 - epsilon
    return [(view, softened if target is not None and place[view] < middle else crops[view]) for view in sorted(stay)]


@pytest.mark.parametrize("confidence", ["max", "target"])
@pytest.mark.parametrize("thresholds", ["quantile", "absolute"])
@pytest.mark.parametrize(("top_k", "has_boxes"), [(0, False), (2, False), (2, True)])
def test_every_view_is_a_calibrated_crop(data, tmp_path, thresholds, confidence, top_k, has_boxes):
    plain = record(data, tmp_path / "labels", top_k=top_k, has_boxes=has_boxes)
    rule = {**RULE, "thresholds": thresholds, "confidence": confidence}
    if thresholds == "absolute":
        rule |= {"low": 0.05, "middle": 0.5, "high": 0.9}
    assert calibrate(tmp_path / "labels", tmp_path / "out", *flags(**rule)) == 0
    found = RecordedLabels.open(str(tmp_path / "out"))
    every_view = np.arange(VIEWS)
    seen = set()
    for row, target in enumerate([1, 1, 3, 3, None]):
        rows = np.full(VIEWS, row)
        stay = due(plain, row, target, **rule)
        labels, boxes = found.soft_labels(rows, every_view), found.boxes(rows, every_view)
        assert (labels.weight == 1).all()
        old = plain.boxes(rows, every_view)
        if old is None:
            index = plain.index
            old = PLAN.boxes(index.numbers()[row], every_view, index.heights[row], index.widths[row])
        for view in range(VIEWS):
            was, p = stay[view % len(stay)]
            assert boxes[view] == old[was]
            np.testing.assert_allclose(labels.probabilities()[view], p, atol=2e-3)
        seen.add(len(stay))
    assert min(seen) < VIEWS


def test_an_image_keeps_its_most_certain_crops_where_too_few_stay():
    rule = Calibration(confidence="max", thresholds="absolute", low=0.6, middle=0.65, high=0.9, epsilon=0.1, at_least=3)
    places, hard = rule.regions(np.array([0.3, 0.95, 0.7, 0.2, 0.5], np.float32), known=True)
    assert places.tolist() == [1, 2, 4]
    assert hard.tolist() == [False, False, True]


def test_ranks_count_equals_half():
    np.testing.assert_allclose(ranks(np.array([0.5, 0.1, 0.5, 0.9], np.float32)), [0.5, 0.125, 0.5, 0.875])


def test_they_replay_like_any_recorded_labels(data, tmp_path, capsys):
    record(data, tmp_path / "labels", top_k=2)
    assert calibrate(tmp_path / "labels", tmp_path / "out", "--views", 6) == 0
    said = capsys.readouterr().out
    assert "2 of 3 classes of the folder matched" in said
    assert "6 views an image; of the crops recorded" in said
    labels = RecordedLabels.open(str(tmp_path / "out"))
    assert read_card(str(tmp_path / "out"), labels.manifest).name == "teacher, calibrated"
    with pytest.warns(UserWarning, match="views per sample are replayed"):
        dataset = CropDataset(
            data,
            teacher_rendering=None,
            student_rendering=CARD.rendering,
            schedule=ViewSchedule(views=6, order="permute", per_visit=2),
        )
    dataset.plan = RecordedBoxes.of(labels, dataset.source)
    loader = LabelledLoader(
        DataLoader(dataset, batch_size=5, collate_fn=collate_crops),
        RecordedTeacher(labels, dataset),
        samples=lambda batch: batch["samples"],
        views=lambda batch: batch["views"],
    )
    ((_, soft),) = loader
    assert (soft.weight == 1).all()


def test_started_again_it_goes_on_and_with_another_rule_it_refuses(data, tmp_path, capsys):
    record(data, tmp_path / "labels")
    calibrate(tmp_path / "labels", tmp_path / "out")
    assert calibrate(tmp_path / "labels", tmp_path / "out") == 0
    assert "5 images were there already" in capsys.readouterr().out
    with pytest.raises(LabelsMismatch, match="teacher_digest"):
        run(tmp_path, "--middle", "0.5")


def run(tmp_path, *more):
    """The command, its mistakes raised."""
    parser = argparse.ArgumentParser()
    labels_calibrate_command.add_arguments(parser)
    arguments = [str(tmp_path / "labels"), "--out", str(tmp_path / "out"), *more]
    return labels_calibrate_command.main(parser.parse_args(arguments))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--low", "0.5"], "low <= middle <= high"),
        (["--epsilon", "1"], "--epsilon lies from 0 up to 1"),
        (["--at-least", "0"], "--at-least counts crops"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(data, tmp_path, more, words):
    record(data, tmp_path / "labels")
    with pytest.raises(ValueError, match=words):
        run(tmp_path, *more)
