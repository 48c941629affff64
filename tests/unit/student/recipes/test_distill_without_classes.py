"""distill from a teacher without classes: students that return vectors, students that learn the images' own classes."""

import argparse
import json

import pytest
import torch

from teacherfarm.export import export_teacher
from teacherfarm.student import TeacherClient
from teacherfarm.student.recipes.distill import add_arguments, distill
from teacherfarm.student.recipes.finished import load_student
from teacherfarm.student.recipes.kept_labels import KeptLabels
from teacherfarm.student.recipes.ranks import Ranks
from tests.methods import tiny_student
from tests.tiny_tokens import tiny_tokens
from tests.unit.student.image_folders import write_images

torch.set_num_threads(1)
ALONE = Ranks(rank=0, num_ranks=1, device=torch.device("cpu"))
PEOPLE = ("ann", "bob", "cy")
OTHERS = ("dan", "eve")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    export_teacher("tests.tiny_tokens:make", models, taps=["norm"])
    return models


def folder(root, validation):
    write_images(root / "train", PEOPLE, 6)
    write_images(root / "val", validation, 4, seed=1)
    return root


def make_tokens(num_classes):
    return tiny_tokens(3, 8, num_classes)


def make_convolutional(num_classes):
    return tiny_student(classes=num_classes)


def run(data, models, out, *more, teacher="tokens"):
    source = "tests.unit.student.recipes.test_distill_without_classes"
    short = ["--workers", 0, "--batch-size", 6, "--epochs", 2, "--device", "cpu", "--measure-link", 0]
    chosen = [f"{source}:{word}" if str(word).startswith("make_") else word for word in more]
    given = [*map(str, [data, "--out", out, "--teacher-address", f"local://{models}", *short, *chosen])]
    parser = argparse.ArgumentParser()
    add_arguments(parser, given)
    options = parser.parse_args(given)

    def connect(*, spec=None, digest="", by_reference=None):
        return TeacherClient(options.teacher_address, teacher, spec=spec, digest=digest)

    assert distill(KeptLabels(options), ALONE, connect) == 0
    return json.loads((out / "result.json").read_text())


def test_a_student_of_vectors_is_judged_by_neighbours_among_people_never_seen(models, tmp_path, capsys):
    result = run(
        folder(tmp_path / "data", OTHERS),
        models,
        tmp_path / "out",
        "--method",
        "embedding",
        "--student",
        "make_convolutional",
    )
    assert result["crops"] == 8
    assert 0 <= result["top1"] <= result["top5"] <= 1
    assert "NaN" not in (tmp_path / "out" / "result.json").read_text(), "which is no JSON"
    assert result["loss"] is None
    assert "nearest neighbour of its class" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "nearest neighbour of its class" in page
    assert "top-1" not in page
    assert json.loads((tmp_path / "out" / "student.json").read_text())["num_outputs"] == 16, "as the teacher's vectors"
    student = load_student(tmp_path / "out")
    assert student(torch.rand(2, 3, 32, 32)).shape == (2, 16)


def test_a_student_of_vectors_learns_from_a_teacher_that_has_classes(tiny_models, tmp_path):
    arguments = ["--method", "embedding", "--hard-weight", 0, "--student", "make_convolutional"]
    result = run(folder(tmp_path / "data", OTHERS), tiny_models, tmp_path / "out", *arguments, teacher="tiny")
    assert result["crops"] == 8
    assert load_student(tmp_path / "out")(torch.rand(2, 3, 32, 32)).shape == (2, 16)


def test_a_student_learns_the_images_own_classes_where_they_are_asked_for(models, tmp_path, capsys):
    arguments = ["--method", "tokens", "--student-taps", "norm", "--student", "make_tokens", "--hard-weight", 1]
    result = run(folder(tmp_path / "data", PEOPLE), models, tmp_path / "out", *arguments)
    assert result["crops"] == 12
    said = capsys.readouterr().out
    assert "3 of 3 classes of the folder matched to the training images'" in said
    assert "validation top-1" in said
    assert load_student(tmp_path / "out")(torch.rand(2, 3, 32, 32)).shape == (2, 3)
