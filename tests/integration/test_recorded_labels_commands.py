"""`teacherfarm labels stats | verify | seal | push` on labels of a real (tiny) teacher."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch

from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.crops.cutting import decode_and_cut
from teacherfarm.crops.sample_index import index_dataset
from teacherfarm.crops.sample_readers import open_samples
from teacherfarm.label_store.label_recorder import LabelRecorder
from teacherfarm.label_store.recorded_labels import Manifest, RecordedLabels
from teacherfarm.protos.faults import LabelsMismatch
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student import TeacherClient
from teacherfarm.student.recipes import labels_push, labels_seal, recorded_stats, recorded_verify
from tests.unit.student.image_folders import write_images

torch.set_num_threads(1)

VIEWS = 12
PLAN = CropPlan(seed=5)
NAMES = ("ant", "bee")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), NAMES, 5)


@pytest.fixture(scope="module", params=[3, 0], ids=["top-3", "dense"])
def recorded(request, images, tiny_models, tmp_path_factory):
    """Labels of 10 images x 12 views by the tiny teacher."""
    folder = tmp_path_factory.mktemp("recorded") / "labels"
    record(images, f"local://{tiny_models}", folder, LabelSpec(top_k=request.param))
    return folder


def record(images, address, folder, spec, *, plan=PLAN, told=PLAN):
    """Record by ``plan``; the manifest says ``told``."""
    index, samples = index_dataset(images), open_samples(images)
    with TeacherClient(address, spec=spec) as teacher:
        manifest = Manifest.of(
            teacher.card,
            spec,
            plan=told,
            rendering=teacher.card.rendering,
            views=VIEWS,
            samples=index.digest(),
        )
        with LabelRecorder(str(folder), manifest, index) as recorder:
            views = np.arange(VIEWS)
            for row in range(len(index)):
                boxes = plan.boxes(index.numbers()[row], views, index.heights[row], index.widths[row])
                labels = teacher.label(decode_and_cut(samples.read(row), boxes, manifest.rendering))
                recorder.add(np.full(VIEWS, row), views, labels.records)


def run(location, *more):
    parser = argparse.ArgumentParser()
    parser.add_argument("location")
    recorded_verify.add_arguments(parser)
    return recorded_verify.main(parser.parse_args([str(location), *map(str, more)]))


def test_labels_that_are_the_teachers(recorded, images, tiny_models, capsys):
    assert run(recorded, "--teacher-address", f"local://{tiny_models}", "--data", images, "--share", 0.6) == 0
    said = capsys.readouterr().out
    assert "checksums: all of 120 sealed labels are what was written" in said
    assert re.search(r"teacher: 72 labels asked again \(60.00%\), 0 differ by more than 0.001", said)
    assert "verdict: these labels are what this teacher says" in said


def test_labels_of_other_crops_are_found_out_and_named(images, tiny_models, tmp_path, capsys):
    address = f"local://{tiny_models}"
    record(images, address, tmp_path / "labels", LabelSpec(top_k=3), plan=CropPlan(seed=6))
    assert run(tmp_path / "labels", "--teacher-address", address, "--data", images, "--share", 1) == 1
    said = capsys.readouterr().out
    differing = int(re.search(r"asked again .*, (\d+) differ", said)[1])
    assert 100 < differing <= 120
    assert len(re.findall(r"differs: view \d+ of (?:ant|bee)/\d+ by 0\.\d+", said)) == 10
    assert "verdict: do not train" in said


def test_one_wrong_label_is_found_and_named(recorded, images, tiny_models, tmp_path, capsys):
    labels = RecordedLabels.open(str(recorded))
    rows, views = np.tile(np.arange(10), VIEWS), np.repeat(np.arange(VIEWS), 10)
    records = labels.read(rows, views)[0].copy()
    records[37] = records[38]
    with LabelRecorder(str(tmp_path / "labels"), labels.manifest, labels.index) as recorder:
        recorder.add(rows, views, records)
    address = f"local://{tiny_models}"
    assert run(tmp_path / "labels", "--teacher-address", address, "--data", images, "--share", 1) == 1
    said = capsys.readouterr().out
    assert f"differs: view 3 of {labels.index.name(7)} by" in said
    assert "1 differ by more than" in said


def test_boxes_of_their_own_are_cut_again(recorded, images, tiny_models, tmp_path, capsys):
    labels = RecordedLabels.open(str(recorded))
    index = labels.index
    manifest = dataclasses.replace(labels.manifest, plan=None, has_boxes=True)
    rows, views = np.tile(np.arange(10), VIEWS), np.repeat(np.arange(VIEWS), 10)
    boxes = PLAN.boxes(index.numbers()[rows], views, index.heights[rows], index.widths[rows])
    with LabelRecorder(str(tmp_path / "labels"), manifest, index) as recorder:
        recorder.add(rows, views, labels.read(rows, views)[0], boxes)
    address = f"local://{tiny_models}"
    assert run(tmp_path / "labels", "--teacher-address", address, "--data", images, "--share", 1) == 0
    assert "120 labels asked again (100.00%), 0 differ" in capsys.readouterr().out


def test_images_that_changed_are_named_and_not_asked(recorded, images, tiny_models, tmp_path, capsys):
    shutil.copytree(images, tmp_path / "images")
    shutil.copy(tmp_path / "images" / "ant" / "0000.png", tmp_path / "images" / "ant" / "0001.png")
    (tmp_path / "images" / "bee" / "0002.png").unlink()
    address = f"local://{tiny_models}"
    assert run(recorded, "--teacher-address", address, "--data", tmp_path / "images", "--share", 1) == 1
    said = capsys.readouterr().out
    assert "images: 2 are missing or not those that were recorded, and were not asked: ant/0001, bee/0002" in said
    assert "96 labels asked again (100.00%), 0 differ" in said


def test_another_teacher_is_refused(recorded, images, tiny_models, tmp_path):
    labels = RecordedLabels.open(str(recorded))
    other = dataclasses.replace(labels.manifest.teacher, teacher_digest="another")
    with LabelRecorder(
        str(tmp_path / "labels"), dataclasses.replace(labels.manifest, teacher=other), labels.index
    ) as recorder:
        recorder.add(np.array([0]), np.array([0]), labels.read(np.array([0]), np.array([0]))[0])
    with pytest.raises(LabelsMismatch, match=r"teacher_digest 'another'.*serves '"):
        run(tmp_path / "labels", "--teacher-address", f"local://{tiny_models}", "--data", images)


def test_damage_is_named_and_can_be_dropped(recorded, tmp_path, capsys):
    shutil.copytree(recorded, tmp_path / "labels")
    path = next(tmp_path.rglob("*.labels"))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    assert run(tmp_path / "labels") == 1
    said = capsys.readouterr().out
    assert f"{path.name}, block 0: 120 labels, from view 0 of 'ant/0000' to view 11 of 'bee/0004'" in said
    assert "--drop-damaged" in said
    assert run(tmp_path / "labels", "--drop-damaged") == 1
    assert "dropped: 120 labels count as never recorded" in capsys.readouterr().out
    assert run(tmp_path / "labels") == 0


def test_damage_in_a_journal_is_named(recorded, tmp_path, capsys):
    labels = RecordedLabels.open(str(recorded))
    recorder = LabelRecorder(str(tmp_path), labels.manifest, labels.index)
    for row in (1, 2):
        recorder.add(np.array([row]), np.array([0]), labels.read(np.array([row]), np.array([0]))[0])
    recorder.close(seal=False)
    assert run(tmp_path) == 0
    assert "journals: 2 labels in 1 journal are intact" in capsys.readouterr().out
    (path,) = (tmp_path / "journals").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert run(tmp_path) == 1
    assert f"damaged: {path}: 1 labels in bytes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--teacher-address", "zmq://x:1"], "takes both"),
        (["--data", "x"], "takes both"),
        (["--share", "0"], "--share lies above 0"),
        (["--share", "1.5"], "--share lies above 0"),
    ],
)
def test_mistakes_are_refused(recorded, more, match):
    with pytest.raises(ValueError, match=match):
        run(recorded, *more)
    with pytest.raises(ValueError, match="is no folder"):
        run("memory://x", "--drop-damaged")


def test_stats_is_a_table_for_people(recorded, tmp_path, capsys):
    labels = RecordedLabels.open(str(recorded))
    kept = np.arange(0, 120, 3)
    rows, views = kept % 10, kept // 10
    folder = tmp_path / "labels"
    with LabelRecorder(str(folder), labels.manifest, labels.index) as recorder:
        recorder.add(rows, views, labels.read(rows, views)[0])
    living = LabelRecorder(str(folder), labels.manifest, labels.index)
    living.add(np.array([1]), np.array([0]), labels.read(np.array([1]), np.array([0]))[0])
    ended = LabelRecorder(str(folder), labels.manifest, labels.index)
    ended.add(np.array([2]), np.array([0]), labels.read(np.array([2]), np.array([0]))[0])
    ended.close(seal=False)
    assert recorded_stats.main(str(folder)) == 0
    said = capsys.readouterr().out
    assert "42 of 120 (35.0 %)" in said
    assert "10 samples x 12 views" in said
    assert "10 classes, softmax" in said
    assert ("the 3 best classes at T=1" if labels.manifest.spec.top_k else "all classes at T=1") in said
    assert "plan of seed 5: scale 0.08..1" in said
    assert "in 1 shard and 2 journals" in said
    assert "40, 2 not yet" in said
    assert said.count("writing now") == 1
    assert said.count("`teacherfarm labels seal` takes its labels in") == 1
    assert re.search(r"views +0-1  #{8,12}\.+  (30|35|40|45)\.0 %", said)
    living.close()


def test_seal_and_push(recorded, tmp_path, capsys):
    labels = RecordedLabels.open(str(recorded))
    folder = tmp_path / "labels"
    recorder = LabelRecorder(str(folder), labels.manifest, labels.index)
    recorder.add(np.array([1]), np.array([0]), labels.read(np.array([1]), np.array([0]))[0])
    recorder.close(seal=False)
    url = f"file://{tmp_path}/published"
    for module, arguments in (
        (labels_push, [str(folder), url]),
        (labels_seal, [str(folder)]),
        (labels_push, [str(folder), url]),
    ):
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        assert module.main(parser.parse_args(arguments)) == 0
    said = capsys.readouterr().out
    assert "not pushed: what is not sealed" in said
    assert "sealed: 1 new labels from 1 journal" in said
    assert "pushed: 1 labels to file://" in said
    assert len(RecordedLabels.open(url)) == 1
