"""``teacherfarm distill --method ...`` with a real server: every method from the command line to a student that runs
alone; resumed runs; two processes; a link that cannot feed a method.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from teacherfarm.cli import main
from teacherfarm.student.methods.registry import METHODS
from teacherfarm.student.recipes import distill as recipe
from teacherfarm.student.recipes.finished import load_student
from teacherfarm.student.recipes.phase_training import PhaseTraining
from tests.farm_process import ROOT, FarmProcess
from tests.long_runs import HUNG_S, long_run
from tests.methods import TAPS
from tests.tiny_teacher import CLASSES
from tests.unit.student.image_folders import write_images

torch.set_num_threads(1)

SEVERAL = {"sigmoid-kd": ["--teacher", "several"]}
TAPPED = ["--teacher", "tiny", "--teacher-taps", *TAPS]
MORE = {"crd": ["--negatives", 16], "tokens": ["--teacher", "tiny"], "embedding": ["--teacher", "tiny"]}


class Student(nn.Module):
    """Two stages with batch normalisation and dropout, which a resumed run must get right, too."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(6, 12, 3, stride=2, padding=1), nn.Dropout(0.1), nn.ReLU())
        self.head = nn.Linear(12, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stage2(self.stage1(pixels)).mean(dim=(2, 3)))
        return logits


def make_student(num_classes: int) -> nn.Module:
    return Student(num_classes)


@pytest.fixture(scope="module")
def farm(method_models, tmp_path_factory):
    with FarmProcess(tmp_path_factory.mktemp("method_farm"), method_models) as farm:
        yield farm


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", CLASSES, 2)
    write_images(folder / "val", CLASSES, 1, seed=1)
    return folder


def arguments(address, data, out, method, *more):
    student = ["--student", "tests.integration.test_distill_methods:make_student", "--student-taps", "stage1", "stage2"]
    short = ["--epochs", 3, "--batch-size", 8, "--workers", 0, "--lr", 0.01, "--device", "cpu", "--measure-link", 0]
    teacher = SEVERAL.get(method, TAPPED) + MORE.get(method, [])
    given = [data, "--out", out, "--teacher-address", address, "--method", method, *student, *short, *teacher, *more]
    return ["distill", *map(str, given)]


def run(*given):
    return main(["--debug", *arguments(*given)])


@pytest.mark.parametrize("method", [name for name in METHODS if name != "relabel"])
def test_a_method_makes_a_student_that_runs_alone(method, farm, data, tmp_path, capsys):
    assert run(farm.zmq, data, tmp_path, method) == 0
    student = load_student(tmp_path)
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert student(pixels).shape == (3, 10)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["method"], result["crops"]) == (method, 10)
    assert 0 <= result["agreement"] <= 1
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    parts = [{key: value for key, value in row.items() if key.startswith("loss/") and value} for row in rows]
    assert all(parts)
    for row, named in zip(rows, parts, strict=True):
        assert float(row["loss"]) == pytest.approx(sum(map(float, named.values())), abs=1e-6)
    assert "<html" in (tmp_path / "report.html").read_text()
    assert f"method: {method}\n" in (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("crd", ["--negatives", 16, "--ema", 0.9]),
        ("semckd", []),
        ("sskd", ["--epochs", 4]),
        ("meal-v2", ["--ema", 0.9]),
        ("simkd", ["--ema", 0.9, "--accumulate", 2, "--amp", "bf16"]),
        ("funmatch", ["--crops-per-image", 2, "--epochs", 4, "--optimizer", "adamw"]),
        ("ferkd", ["--crops-per-image", 2, "--epochs", 4, "--mix", "selfmix"]),
        ("kd", ["--workers", 2]),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(method, more, farm, data, tmp_path, monkeypatch, capsys):
    assert run(farm.zmq, data, tmp_path / "undisturbed", method, *more) == 0
    phases = [line for line in capsys.readouterr().out.splitlines() if line.startswith("phase ")]
    names = ["stage 1: stage1", "stage 2: stage2", "head"] if method == "sskd" else []
    assert phases == [f"phase    {name}" for name in names]
    backward = PhaseTraining.backward
    for stop_at in (2, 5):
        left = stop_at

        def stopping(self, *given, **how):
            nonlocal left
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGTERM)
            return backward(self, *given, **how)

        monkeypatch.setattr(PhaseTraining, "backward", stopping)
        again = ["--resume"] if stop_at > 2 else []
        status = run(farm.zmq, data, tmp_path / "stopped", method, *more, *again)
        assert status == recipe.STOPPED or left > 0
    monkeypatch.setattr(PhaseTraining, "backward", backward)
    assert run(farm.zmq, data, tmp_path / "stopped", method, *more, "--resume") == 0
    one, other = (torch.load(tmp_path / name / "student.pt") for name in ("undisturbed", "stopped"))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    one, other = ((tmp_path / name / "log.csv").read_text().splitlines() for name in ("undisturbed", "stopped"))
    assert len(one) == len(other) > 3


def test_a_run_is_repeated_from_its_own_config(farm, data, tmp_path):
    assert run(farm.zmq, data, tmp_path / "1", "simkd", "--factor", 4, "--seed", 3) == 0
    assert main(["distill", "--config", str(tmp_path / "1" / "config.yaml"), "--out", str(tmp_path / "2")]) == 0
    one, other = (torch.load(tmp_path / name / "student.pt") for name in "12")
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_run_begins_with_the_weights_of_another(farm, data, tmp_path, capsys):
    assert run(farm.zmq, data, tmp_path / "1", "kd") == 0
    first = str(tmp_path / "1" / "student.pt")
    assert run(farm.zmq, data, tmp_path / "2", "kd", "--init", first, "--lr", 0, "--epochs", 1) == 0
    one, other = (torch.load(tmp_path / name / "student.pt") for name in "12")
    for name, value in one.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(value, other[name]), name
    assert main(arguments(farm.zmq, data, tmp_path / "3", "kd", "--init", str(data / "train"))) == 2
    assert "no weights of tests.integration.test_distill_methods:make_student" in capsys.readouterr().err


@long_run()
@pytest.mark.parametrize(
    ("method", "more"), [("simkd", ["--accumulate", 2, "--ema", 0.9]), ("crd", []), ("sskd", ["--amp", "bf16"])]
)
def test_two_processes_train_together(method, more, farm, data, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    given = arguments(farm.grpc, data, tmp_path, method, "--batch-size", 5, "--epochs", 3, "--measure-link", 0.1, *more)
    done = subprocess.run(
        [*command, "-m", "teacherfarm.cli", *given],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HUNG_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 3/3  loss") == 1
    assert f"link     {method} asks " in done.stdout
    assert json.loads((tmp_path / "result.json").read_text())["crops"] == 10
    load_student(tmp_path)


def test_a_teacher_of_another_kind_is_refused_by_name(farm, data, tmp_path, capsys):
    assert main(arguments(farm.zmq, data, tmp_path, "kd", "--teacher", "several")) == 2
    assert "use --method sigmoid-kd" in capsys.readouterr().err
    assert main(arguments(farm.zmq, data, tmp_path, "simkd", "--teacher", "pair")) == 2
    assert "teacherfarm distill: " in capsys.readouterr().err
    assert main(arguments(farm.zmq, data, tmp_path, "fitnet", "--teacher-taps", "layer9")) == 2
    assert "gives no output 'layer9" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_methods_are_listed_for_a_served_teacher(farm, capsys):
    about = ["--teacher-address", farm.grpc, "--teacher", "tiny", "--student", "cifar:resnet8x4"]
    assert main(["methods", *about]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert {*METHODS} <= lines.keys()
    assert " 20  " in lines["kd"]  # ten classes
    assert main(["methods", "simkd", *about]) == 0
    assert "the teacher's classifier, once" in capsys.readouterr().out
