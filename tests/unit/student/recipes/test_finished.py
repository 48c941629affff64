"""A finished student is saved, and loads, runs and exports without teacher, farm or their libraries."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from teacherfarm.protos.crop import Rendering
from teacherfarm.student.methods.distiller import Distiller
from teacherfarm.student.methods.registry import find_method
from teacherfarm.student.methods.student_taps import TappedStudent
from teacherfarm.student.recipes.finished import StudentCard, load_student, read_student_card, save_student
from teacherfarm.student.recipes.students import make_student
from tests.methods import make_card, make_setup

SOURCE = "cifar:resnet8"
TEACHER = make_card(features={"embedding": (32,), "layer3": (32, 4, 4)})


def pixels():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def saved(folder, method_name="simkd"):
    """A finished run in a folder, and what its student answers."""
    torch.manual_seed(0)
    tapped = TappedStudent(make_student(SOURCE, 10), ["layer3"])
    method = find_method(method_name)
    distiller = Distiller(tapped, method(method.Settings(), make_setup(TEACHER, tapped.measure(32, 32)))).eval()
    card = StudentCard(
        source=SOURCE,
        num_outputs=10,
        method=method_name,
        plan=distiller.method.inference_plan(),
        rendering=Rendering(height=32, width=32),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        classes=(*"abcdefghé", "caf\udce9"),  # the last: a folder named in Latin-1, as Python reads it
        teacher="teacher",
        teacher_digest="digest",
    )
    save_student(folder, distiller.inference(), card)
    with torch.no_grad():
        return card, distiller.predict(pixels())


@pytest.mark.parametrize("method", ["simkd", "srrl", "kd"])
def test_loads_as_it_was_saved(tmp_path, method):
    card, expected = saved(tmp_path, method)
    assert read_student_card(tmp_path) == card
    student = load_student(tmp_path)
    assert not student.training
    with torch.no_grad():
        torch.testing.assert_close(student(pixels()), expected)


ALONE = """
import sys
for absent in ("grpc", "zmq", "onnxruntime", "onnx", "lmdb", "tritonclient", "teacherfarm.teacher_server"):
    sys.modules[absent] = None
from pathlib import Path
import torch
from teacherfarm.student.recipes.finished import load_student
pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    torch.save(load_student(Path(sys.argv[1]))(pixels), sys.argv[2])
"""


def test_runs_where_nothing_of_a_farm_is_installed(tmp_path):
    _, expected = saved(tmp_path)
    subprocess.run([sys.executable, "-c", ALONE, str(tmp_path), str(tmp_path / "got.pt")], check=True, timeout=60)
    torch.testing.assert_close(torch.load(tmp_path / "got.pt"), expected)


def test_a_run_again_replaces_the_former(tmp_path):
    saved(tmp_path, "kd")
    _, expected = saved(tmp_path, "simkd")
    with torch.no_grad():
        torch.testing.assert_close(load_student(tmp_path)(pixels()), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.json", "student.pt"]


def test_damage_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*student.json: expected the folder of a finished run"):
        load_student(tmp_path)
    saved(tmp_path)
    path = tmp_path / "student.json"
    text = path.read_text()
    for change, words in (
        ({"card_version": 9}, "card version 9"),
        ({"mean": "grey"}, "student.mean must be a list"),
        ({"plan": []}, "plan must be an object"),
        ({"plan": {"tap": "layer3"}}, "the plan of method 'simkd' is damaged"),
        ({"plan": {**json.loads(text)["plan"], "tap": "layer9"}}, "layer9"),
        ({"method": "kd", "plan": {}}, "holds no weights of cifar:resnet8 by kd"),
        ({"method": "kt"}, "no method 'kt'"),
    ):
        path.write_text(json.dumps({**json.loads(text), **change}))
        with pytest.raises(ValueError, match=words):
            load_student(tmp_path)
    for damaged in (text[:50], "[" * 100_000):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="is no student's card"):
            load_student(tmp_path)
    path.write_text(text)
    (tmp_path / "student.pt").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"student.pt holds no weights"):
        load_student(tmp_path)
