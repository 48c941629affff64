"""``teacherfarm labels study`` and ``teacherfarm plan`` as a user runs them, with a real teacher and a real server."""

import csv
import json

import pytest

from teacherfarm import cli
from tests.tiny_teacher import CLASSES
from tests.unit.student.image_folders import write_images


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "train", CLASSES[:4], 3)


def read(path):
    with path.open() as file:
        return {
            (row["label"], row["numbers"], row["completion"], row["temperature"]): float(row["kl_mean"])
            for row in csv.DictReader(file)
        }


def test_a_study_here_and_of_a_farm_agree(tiny_models, tiny_farm, data, tmp_path, capsys):
    """A farm's labels are the local teacher's, rounded to float16: too little to move any format but dense."""
    tables = {}
    for where, address in (("here", f"local://{tiny_models}"), ("farm", tiny_farm.zmq)):
        arguments = [str(data), "--teacher-address", address, "--crops", "24", "--out", str(tmp_path / where)]
        assert cli.main(["labels", "study", *arguments]) == 0
        said = capsys.readouterr().out
        assert ("float32 logits of ONNX Runtime in this process" in said) == (where == "here")
        assert ("float16 log-probabilities at temperature 1 (what travels" in said) == (where == "farm")
        assert (tmp_path / where / "crops.png").stat().st_size > 10_000
        tables[where] = read(tmp_path / where / "labels.csv")
    dense = "dense", "float16 log-probabilities", "", "1"
    assert 1e-10 < tables["here"][dense] < 1e-5
    assert tables["farm"][dense] < 1e-9, "a study of a farm cannot see what rounding costs"
    for key, kl_mean in tables["here"].items():
        assert tables["farm"][key] == pytest.approx(kl_mean, abs=1e-4), key


def test_a_study_refuses_another_teacher(tiny_models, data, capsys):
    arguments = [str(data), "--teacher-address", f"local://{tiny_models}", "--digest", "beef"]
    assert cli.main(["labels", "study", *arguments]) == 1
    assert "DigestMismatch: teacher 'tiny' is " in capsys.readouterr().err


def test_a_plan_with_a_farm_that_is_measured(tiny_farm, data, capsys):
    arguments = [str(data), "--student-rate", "1e6", "--teacher-address", tiny_farm.zmq, "--measure", "3", "--json"]
    assert cli.main(["plan", *arguments, "--images", "1000", "--epochs", "100", "--top-k", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    figures = {figure["name"]: figure for figure in told["figures"]}
    assert figures["one teacher"]["value"] > 100
    assert figures["one teacher"]["source"].startswith("measured: this machine got ")
    assert (figures["teachers"]["value"], figures["teachers"]["source"]) == (1, "the farm's")
    assert figures["classes"]["value"] == 10
    assert figures["a label (top-3)"]["value"] == 12
    ways = {way["name"]: way for way in told["ways"]}
    assert len(ways) == 6
    assert ways["record, then replay"]["labels"] == 50_000
    assert ways["stream by reference"]["labels"] == 100_000
