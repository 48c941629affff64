"""teacherfarm label: a whole data set, from a real server; killed, in parts, by reference, by Ray."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.crops.view_schedule import ViewSchedule
from teacherfarm.label_store.recorded_labels import RecordedLabels
from teacherfarm.protos.faults import LabelsMismatch, RecordingStopped
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student import TeacherClient
from teacherfarm.student.crop_dataset import CropDataset
from teacherfarm.student.recipes import label
from tests.farm_process import ROOT, FarmProcess, wait_for
from tests.long_runs import HUNG_S, long_run
from tests.tiny_teacher import CLASSES
from tests.unit.student.image_folders import write_images

VIEWS = 5
pytestmark = pytest.mark.filterwarnings("ignore:.*views per sample are replayed")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", CLASSES, 3)
    write_images(folder / "val", CLASSES, 1, seed=1)
    return folder


def options(data, farm, out, *more):
    parser = argparse.ArgumentParser()
    label.add_arguments(parser)
    address = ["--teacher-address", farm if isinstance(farm, str) else farm.zmq]
    short = ["--views", VIEWS, "--top-k", 3, "--workers", 0, "--batch-size", 16]
    return parser.parse_args(list(map(str, [data, *address, "--out", out, *short, *more])))


def everything(folder):
    """All records in order of sample and view, all of which must be there and sealed."""
    labels = RecordedLabels.open(str(folder))
    images, views = len(labels.index), labels.manifest.views
    records, present = labels.read(np.repeat(np.arange(images), views), np.tile(np.arange(views), images))
    assert present.all()
    assert labels.num_sealed == len(labels) == images * views
    return records.tobytes()


@pytest.fixture(scope="module")
def right(data, tiny_models):
    """What the teacher says of each sample's views, asked without any recording."""
    plan = {"plan": CropPlan(), "schedule": ViewSchedule(views=VIEWS, order="cycle", per_visit=VIEWS)}
    with TeacherClient(f"local://{tiny_models}", spec=LabelSpec(top_k=3)) as teacher:
        dataset = CropDataset(data / "train", teacher_rendering=teacher.card.rendering, **plan)
        return b"".join(teacher.label(dataset[place]["crops"]).records.tobytes() for place in range(len(dataset)))


def test_labels_are_the_teachers_and_the_summary_says_how_to_train(data, tiny_farm, wire, right, tmp_path, capsys):
    address = tiny_farm.addresses[wire]
    assert label.main(options(data, address, tmp_path / "labels", "--workers", 1)) == 0
    assert everything(tmp_path / "labels") == right
    said = capsys.readouterr().out
    assert f"data     {data}/train: 30 of 30 images, 5 views" in said
    assert f"labels   150 of 150 in {tmp_path / 'labels'}, 12." in said
    assert f"train    teacherfarm distill {data} --labels {tmp_path / 'labels'} --student torchvision:resnet18" in said
    # Nothing is left to do, and nothing is asked.
    assert label.main(options(data, address, tmp_path / "labels")) == 0
    said = capsys.readouterr().out
    assert "going on 150 of 150 labels are there already" in said
    assert "speed" not in said


def test_files_beside_each_other_are_trained_from_where_they_are(tmp_path):
    (tmp_path / "train-000.tar").touch()
    asked = argparse.Namespace(data=str(tmp_path), train_folder="train", out="labels")
    assert label.train_command(asked, 2).startswith(f"teacherfarm distill {tmp_path} --labels labels ")
    asked.data = str(tmp_path / "train-000.tar")
    assert f"distill {tmp_path} --train-folder train-000.tar " in label.train_command(asked, 2)


def test_dense_and_the_best_classes_are_not_both(capsys):
    parser = argparse.ArgumentParser()
    label.add_arguments(parser)
    needed = ["DATA", "--teacher-address", "zmq://127.0.0.1:7001", "--out", "labels", "--dense"]
    assert parser.parse_args(needed).top_k == 10
    with pytest.raises(SystemExit):
        parser.parse_args([*needed, "--top-k", "10"])
    assert "--top-k: not allowed with argument --dense" in capsys.readouterr().err


def test_by_reference_labels_are_the_same(data, tiny_models, right, tmp_path):
    with FarmProcess(tmp_path, tiny_models, "--dataset", f"ours={data / 'train'}", "--dataset-cache", tmp_path) as farm:
        assert label.main(options(data, farm, tmp_path / "labels", "--by-reference", "ours")) == 0
        received = farm.metric("teacherfarm_received_bytes_total")
    assert everything(tmp_path / "labels") == right
    assert 150 * 20 <= received < 150 * 100


def test_killed_and_run_again_it_goes_on_where_it_was(data, tiny_farm, right, tmp_path, capsys):
    more = ["--views", 300, "--batch-size", 8]
    arguments = ["label", data, "--teacher-address", tiny_farm.zmq, "--out", tmp_path / "labels", "--top-k", 3, *more]
    command = [sys.executable, "-m", "teacherfarm.cli", *map(str, arguments), "--workers", "0"]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})

    def some_are_there():
        assert process.poll() is None, "it ended before it was killed"
        return any(path.stat().st_size > 20_000 for path in (tmp_path / "labels" / "journals").glob("*.journal"))

    try:
        wait_for(some_are_there, timeout_s=40)
    finally:
        process.kill()
        process.wait()
    before = len(RecordedLabels.open(str(tmp_path / "labels")))
    assert 100 < before < 30 * 300
    assert label.main(options(data, tiny_farm, tmp_path / "labels", *more, "--batch-size", 128)) == 0
    said = capsys.readouterr().out
    assert f"going on {before} of 9000 labels" in said
    assert f"speed    {9000 - before} labels" in said
    records = np.frombuffer(everything(tmp_path / "labels"), f"V{4 * 3}").reshape(30, 300)
    assert records[:, :VIEWS].tobytes() == right


def test_parts_make_a_whole_and_the_last_one_seals(data, tiny_farm, right, tmp_path, capsys):
    assert label.main(options(data, tiny_farm, tmp_path / "labels", "--part", "2/3")) == 0
    said = capsys.readouterr().out
    assert "10 of 30 images" in said
    assert "50 of 150" in said
    assert "other parts are not done yet" in said
    for part in ("1/3", "3/3"):
        assert label.main(options(data, tiny_farm, tmp_path / "labels", "--part", part)) == 0
    assert everything(tmp_path / "labels") == right
    assert capsys.readouterr().out.count("other parts") == 1  # of the last one there are none


@long_run()
def test_ray_spreads_it_over_actors(data, tiny_farm, right, tmp_path):
    arguments = ["label", data, "--teacher-address", tiny_farm.zmq, "--out", tmp_path / "labels", "--top-k", 3]
    more = ["--views", VIEWS, "--engine", "ray", "--workers", 2]
    done = subprocess.run(
        [sys.executable, "-m", "teacherfarm.cli", *map(str, [*arguments, *more])],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HUNG_S,
    )
    assert done.returncode == 0, done.stderr
    assert "labels   150 of 150" in done.stdout
    assert "speed    150 labels" in done.stdout
    assert "unsealed" not in done.stdout
    assert everything(tmp_path / "labels") == right


def test_images_that_cannot_be_read_are_named_and_left_out(tiny_farm, tmp_path, capsys):
    write_images(tmp_path / "images", CLASSES[:2], 2)
    (tmp_path / "images" / "car" / "0001.png").write_bytes(b"no image")
    assert label.main(options(tmp_path / "images", tiny_farm, tmp_path / "labels")) == 0
    said = capsys.readouterr().out
    assert "labels   15 of 20" in said
    assert "left out 1 images that cannot be read: car/0001" in said


def test_what_cannot_be_is_refused(data, tiny_farm, tmp_path, monkeypatch):
    out = tmp_path / "labels"
    assert label.main(options(data, tiny_farm, out)) == 0
    with pytest.raises(LabelsMismatch, match=r"spec.top_k 3, wanted is 4"):
        label.main(options(data, tiny_farm, out, "--top-k", 4))
    with pytest.raises(LabelsMismatch, match=r"plan.seed 0, wanted is 1"):
        label.main(options(data, tiny_farm, out, "--seed", 1))
    with pytest.raises(ValueError, match="--part is I/N"):
        label.main(options(data, tiny_farm, out, "--part", "5/4"))
    with pytest.raises(ValueError, match="--dense labels take any temperature later"):
        label.main(_dense(options(data, tiny_farm, out)))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("teacherfarm.label_store.journal.JournalWriter.append", full)
    began_s = time.monotonic()
    with pytest.raises(RecordingStopped, match="No space left"):
        label.main(options(data, tiny_farm, tmp_path / "other"))
    assert time.monotonic() - began_s < 20


def _dense(chosen):
    chosen.dense, chosen.temperature = True, 2.0
    return chosen
