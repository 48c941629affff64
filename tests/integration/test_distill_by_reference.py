"""``teacherfarm distill --by-reference``: the student that sending pixels gives, and ``teacherfarm dataset index``."""

from __future__ import annotations

import shutil

import pytest
import torch

from teacherfarm.cli import main
from tests.farm_process import FarmProcess
from tests.tiny_teacher import CLASSES
from tests.unit.student.image_folders import write_images


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", CLASSES[:4], 6)
    write_images(folder / "val", CLASSES[:4], 2, seed=1)
    return folder


@pytest.fixture(scope="module")
def farm(tiny_models, data, tmp_path_factory):
    """It has the images, but for one that differs and one that is missing."""
    folder = tmp_path_factory.mktemp("farm")
    shutil.copytree(data / "train", folder / "train")
    shutil.copy(folder / "train/car/0001.png", folder / "train/bird/0002.png")
    (folder / "train/cat/0003.png").unlink()
    flags = (f"--dataset=mine={folder / 'train'}", f"--dataset-cache={folder}")
    with FarmProcess(folder, tiny_models, *flags) as farm:
        yield farm


RECEIVED = "teacherfarm_received_bytes_total"


def distill(farm, data, out, *more) -> int:
    always = ["--teacher-address", farm.zmq, "--student", "tests.unit.student.pattern_teacher:make_student"]
    short = [
        "--workers",
        "0",
        "--batch-size",
        "8",
        "--epochs",
        "4",
        "--crops-per-image",
        "2",
        "--device",
        "cpu",
        "--measure-link",
        "0",
    ]
    return main(["distill", str(data), "--out", str(out), *always, *short, *more])


def test_the_student_is_the_one_that_pixels_make(farm, data, tmp_path, capsys):
    torch.set_num_threads(1)
    assert distill(farm, data, tmp_path / "pixels") == 0
    received = farm.metric(RECEIVED, wire="zmq")
    assert distill(farm, data, tmp_path / "references", "--by-reference", "mine") == 0
    pixels, references = (torch.load(tmp_path / name / "student.pt") for name in ("pixels", "references"))
    assert pixels.keys() == references.keys()
    for name in pixels:
        assert torch.equal(pixels[name], references[name]), name
    # 24 images, 4 epochs: all but those of two images in 20 bytes each, and 8 centre crops to evaluate with.
    crop = 32 * 32 * 3
    received = farm.metric(RECEIVED, wire="zmq") - received
    assert received == 24 * 4 * 20 + (2 * 4 + 8) * crop


def test_crops_that_the_server_mixes_are_measured_beforehand(farm, data, tmp_path, capsys):
    torch.set_num_threads(1)
    asked = ("--method", "funmatch", "--by-reference", "mine", "--measure-link", "0.05")
    assert distill(farm, data, tmp_path, *asked, "--on-refused", "skip") == 0
    assert "link     funmatch asks " in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*replayed again and again")
def test_labels_of_references_are_recorded_and_replayed(farm, data, tmp_path):
    torch.set_num_threads(1)
    kept = str(tmp_path / "labels")
    assert distill(farm, data, tmp_path / "recorded", "--by-reference", "mine", "--record", kept) == 0
    received = farm.metric(RECEIVED, wire="zmq")
    again = ("--labels", kept, "--order", "cycle", "--by-reference", "mine")
    assert distill(farm, data, tmp_path / "replayed", *again) == 0
    recorded, replayed = (torch.load(tmp_path / name / "student.pt") for name in ("recorded", "replayed"))
    for name in recorded:
        assert torch.equal(recorded[name], replayed[name]), name
    assert farm.metric(RECEIVED, wire="zmq") - received == 8 * 32 * 32 * 3, (
        "centre crops to evaluate with, and no other"
    )


def test_what_differs_may_stop_the_run_by_name(farm, data, tmp_path, capsys):
    assert distill(farm, data, tmp_path, "--by-reference", "mine", "--on-refused", "raise") == 1
    assert "cannot be cut by the server" in capsys.readouterr().err
    assert distill(farm, data, tmp_path / "none", "--by-reference", "yours") == 1
    assert "UnknownDataSet: this server has no data set 'yours'" in capsys.readouterr().err


def test_a_data_set_is_listed_and_its_list_kept(data, tmp_path, capsys):
    assert main(["dataset", "index", str(data / "train"), "--out", str(tmp_path / "i.npz")]) == 0
    said = capsys.readouterr().out
    assert "samples       24, read in" in said
    assert "classes       4" in said
    damaged = tmp_path / "damaged"
    shutil.copytree(data / "train", damaged)
    (damaged / "cat" / "0001.png").write_bytes(b"no image")
    assert main(["dataset", "index", str(damaged)]) == 1
    said = capsys.readouterr().out
    assert "unreadable    1\n" in said
    assert "cannot be read: cat/0001" in said
    assert main(["dataset", "index", str(tmp_path / "absent")]) == 1
    assert "no data set at" in capsys.readouterr().err
