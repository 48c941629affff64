"""distill --record and --labels with a real served teacher: both wires, workers, resumed, two ranks."""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys

import pytest
import torch

from teacherfarm.label_store.recorded_labels import RecordedLabels
from teacherfarm.student.recipes import distill
from teacherfarm.student.recipes.phase_training import PhaseTraining
from tests.farm_process import ROOT
from tests.long_runs import HUNG_S, long_run
from tests.tiny_teacher import CLASSES
from tests.unit.student.image_folders import write_images

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.*views per sample are replayed")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", CLASSES, 4)
    write_images(folder / "val", CLASSES, 1, seed=1)
    return folder


def arguments(data, out, *more):
    student = ["--student", "tests.unit.student.pattern_teacher:make_student", "--device", "cpu"]
    short = ["--epochs", 6, "--batch-size", 10, "--workers", 1, "--lr", 0.1, "--measure-link", 0]
    crops = ["--order", "permute", "--views", 6, "--crops-per-image", 2]
    return list(map(str, [data, "--out", out, *student, *short, *crops, *more]))


def run(data, out, *more):
    parser, given = argparse.ArgumentParser(), arguments(data, out, *more)
    distill.add_arguments(parser, given)
    return distill.main(parser.parse_args(given))


@pytest.fixture
def trained(monkeypatch):
    """Every batch that was trained on: its label records, weights and loss."""
    seen = []
    backward = PhaseTraining.backward

    def noted(self, pixels, step, **how):
        parts = backward(self, pixels, step, **how)
        loss = sum(part.item() for part in parts.values())
        seen.append((step.labels.records.tobytes(), step.labels.weight.tobytes(), loss))
        return parts

    monkeypatch.setattr(PhaseTraining, "backward", noted)
    return seen


def taken(seen):
    batches = list(seen)
    seen.clear()
    return batches


def losses(out):
    with (out / "log.csv").open() as file:
        return [row["loss"] for row in csv.DictReader(file)]


def test_a_run_without_teacher_equals_the_one_that_streamed(data, tiny_farm, wire, tmp_path, trained):
    labels, address = tmp_path / "labels", tiny_farm.addresses[wire]
    assert run(data, tmp_path / "1", "--teacher-address", address, "--record", labels) == 0
    first = taken(trained)
    assert len(first) == 4 * 2 * 2 + 2 * 4
    assert run(data, tmp_path / "2", "--labels", labels) == 0
    assert taken(trained) == first

    kept = RecordedLabels.open(str(labels))
    assert kept.num_sealed == len(kept)

    # Resumed in the middle of an epoch, from a checkpoint of every second step.
    more = ["--labels", labels, "--checkpoint-steps", 2, "--keep", 99]
    assert run(data, tmp_path / "3", *more) == 0
    whole = taken(trained)
    assert whole == first
    newest = sorted((tmp_path / "3").glob("step-*.pt"))
    for checkpoint in newest[5:]:
        checkpoint.unlink()
    (tmp_path / "3" / "student.pt").unlink()
    assert run(data, tmp_path / "3", *more, "--resume") == 0
    assert taken(trained) == first[10:]
    weights = [torch.load(tmp_path / name / "student.pt") for name in "13"]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_nothing_is_asked_twice_of_the_farm(data, start_farm, tmp_path, trained):
    farm, labels = start_farm(), tmp_path / "labels"
    both = ["--teacher-address", farm.zmq, "--labels", labels, "--record", labels]
    assert run(data, tmp_path / "1", *both) == 0
    first, asked = taken(trained), farm.metric("teacherfarm_labels_total")
    there = len(RecordedLabels.open(str(labels)))
    assert asked == there + 10  # the evaluation asks for ten centre crops
    assert there < 40 * 6  # drawn without the others
    assert run(data, tmp_path / "2", *both) == 0
    assert taken(trained) == first
    assert farm.metric("teacherfarm_labels_total") == asked + 10


def test_what_was_recorded_by_reference_replays(data, start_farm, tmp_path, trained):
    farm, labels = (
        start_farm("--dataset", f"ours={data / 'train'}", "--dataset-cache", tmp_path / "cache"),
        tmp_path / "labels",
    )
    streamed = ["--teacher-address", farm.grpc, "--record", labels, "--by-reference", "ours"]
    assert run(data, tmp_path / "1", *streamed) == 0
    first = taken(trained)
    assert run(data, tmp_path / "2", "--labels", labels) == 0
    assert taken(trained) == first


def torchrun(data, out, *more):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*command, "-m", "teacherfarm.cli", "distill", *arguments(data, out, *more)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HUNG_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@long_run(commands=2)
def test_two_ranks_record_one_directory_and_replay_it(data, tiny_farm, tmp_path):
    labels = tmp_path / "labels"
    said = torchrun(data, tmp_path / "1", "--teacher-address", tiny_farm.grpc, "--record", labels)
    assert said.count(f"recorded {labels}: ") == 1
    kept = RecordedLabels.open(str(labels))
    assert kept.num_sealed == len(kept) > 100
    said = torchrun(data, tmp_path / "2", "--labels", labels)
    assert f"labels   {labels}: {len(kept)} of 240" in said
    assert losses(tmp_path / "1") == losses(tmp_path / "2")
    weights = [torch.load(tmp_path / name / "student.pt") for name in "12"]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
