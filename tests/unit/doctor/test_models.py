"""A model directory with each thing in it broken once."""

import json
import shutil

import numpy as np
import pytest

from teacherfarm import cli
from teacherfarm.doctor.finding import worst
from teacherfarm.doctor.models import check_models


@pytest.fixture
def models(tiny_models, tmp_path):
    """A copy of the tiny teacher's directory that may be broken."""
    return shutil.copytree(tiny_models, tmp_path / "models")


def named(findings, level):
    return {finding.check: finding for finding in findings if finding.level == level}


def test_a_good_one(models):
    findings = check_models(models)
    assert worst(findings) == "ok"
    described, golden = findings
    assert "10 classes, softmax; takes uint8 [N, 32, 32, 3] RGB" in described.found
    assert golden.check == "teacher tiny, golden answers"
    assert "0.001 is allowed" in golden.found


def test_nothing_there(tmp_path):
    (only,) = check_models(tmp_path)
    assert only.level == "problem"
    assert f"teacherfarm export efficientnet-lite0 --out {tmp_path}" in only.do
    (only,) = check_models(tmp_path / "absent")
    assert only.level == "problem"


def break_model(folder):
    model = folder / "1" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-100])


def break_card(folder):
    (folder / "card.json").write_text("{")


def remove_golden(folder):
    (folder / "golden.npz").unlink()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (break_model, "half written or altered"),
        (break_card, "card.json is damaged"),
        (remove_golden, "lacks golden.npz"),
        (lambda folder: (folder / "card.json").unlink(), "no card.json"),
        (lambda folder: (folder / "1" / "model.onnx").unlink(), "lacks 1/model.onnx"),
    ],
)
def test_damage_is_named(models, harm, said):
    harm(models / "tiny")
    (only,) = check_models(models)
    assert (only.level, only.check) == ("problem", "teacher tiny")
    assert said in only.found
    assert "export it again" in only.do


def test_answers_that_are_not_the_exported_teachers(models):
    golden = models / "tiny" / "golden.npz"
    with np.load(golden) as arrays:
        kept = dict(arrays)
    kept["probabilities"] = np.roll(kept["probabilities"], 1, axis=1)
    np.savez(golden, **kept)
    found = named(check_models(models), "problem")["teacher tiny, golden answers"]
    assert "differs from its golden answers" in found.found
    assert "export it again on this machine" in found.do


def test_golden_answers_cut_short(models):
    golden = models / "tiny" / "golden.npz"
    golden.write_bytes(golden.read_bytes()[:-40])
    assert "teacher tiny, golden answers" in named(check_models(models), "problem")


def test_a_model_that_only_triton_runs(models):
    folder = models / "tiny"
    (folder / "1" / "model.onnx").rename(folder / "1" / "model.plan")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "model_file": "1/model.plan"}))
    found = named(check_models(models), "warning")["teacher tiny, golden answers"]
    assert "Triton alone" in found.found


def test_what_triton_would_lack(models):
    (models / "tiny" / "config.pbtxt").unlink()
    assert "config.pbtxt" in named(check_models(models), "warning")["teacher tiny, for Triton"].found


def test_an_export_that_was_cut_off(models):
    shutil.move(models / "tiny", models / ".tiny-xyz")
    unfinished, empty = check_models(models)
    assert (unfinished.level, empty.level) == ("warning", "problem")
    assert ".tiny-xyz" in unfinished.found
    assert f"rm -r {models / '.tiny-xyz'}" in unfinished.do


def test_a_machine_without_onnxruntime(models, monkeypatch):
    monkeypatch.setattr("teacherfarm.doctor.models.installed", lambda name: None)
    assert "not tried" in named(check_models(models), "warning")["teacher tiny, golden answers"].found


def test_the_command_reports_and_ends_by_what_it_found(models, capsys):
    assert cli.main(["doctor", str(models)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("All 2 checks are well.")
    break_model(models / "tiny")
    assert cli.main(["doctor", str(models)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("problem    teacher tiny:")
    assert "\n           -> export it again" in said
    assert said.rstrip().endswith("1 problem and 0 warnings among 1 checks.")
    assert cli.main(["doctor", f"local://{models}", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["level"], report["target"]) == ("problem", f"local://{models}")
    assert report["findings"][0]["check"] == "teacher tiny"


@pytest.mark.parametrize("flags", [["--seconds", "-1"], ["--student-rate", "0"], ["ftp://there"]])
def test_wrong_arguments(flags, capsys):
    assert cli.main(["doctor", *flags]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_examples_of_its_help_are_right():
    from teacherfarm.doctor.command import EPILOG

    lines = [line.split() for line in EPILOG.splitlines() if line.startswith("  teacherfarm ")]
    assert len(lines) == 4
    for words in lines:
        assert cli.make_parser("doctor").parse_args([word.strip('"') for word in words[1:]]).command == "doctor"
