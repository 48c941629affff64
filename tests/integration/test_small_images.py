"""From CIFAR's archive to a student, and from that student to the next one's teacher, by the commands alone."""

import json

import numpy as np
import pytest
import torch

from teacherfarm.cli import main
from teacherfarm.protos.teacher_card import TeacherCard
from tests.cifar_archives import CIFAR10_CLASSES, write_cifar10

torch.set_num_threads(1)


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    labels = [n % 10 for n in range(60)]
    brightness = np.array(labels).reshape(-1, 1, 1, 1) * 25
    pixels = (brightness + random.integers(0, 25, (60, 32, 32, 3))).astype(np.uint8)
    write_cifar10(tmp_path / "data", pixels, labels, per_batch=10)
    (tmp_path / "classes").write_text("\n".join(CIFAR10_CLASSES))
    return tmp_path / "data"


def distill(data, models, out, method):
    common = ["--epochs=1", "--batch-size=25", "--workers=0", "--device=cpu", "--measure-link=0"]
    student = ["--student=cifar:resnet8", f"--method={method}", f"--out={out}"]
    assert main(["distill", str(data), f"--teacher-address=local://{models}", *student, *common]) == 0
    return json.loads((out / "result.json").read_text())


def test_a_student_of_cifar_teaches_the_next_one(data, tmp_path):
    models, run = tmp_path / "models", tmp_path / "run"
    exported = ["--classes", str(tmp_path / "classes"), "--out", str(models)]
    assert main(["export", "cifar:resnet14", "--random-weights", *exported]) == 0
    result = distill(data, models, run, "kd")
    assert (result["teacher"], result["crops"]) == ("resnet14", 10)

    second = tmp_path / "second"
    weights = ["--weights", str(run / "student.pt"), "--tap", "layer3", "--name", "second"]
    assert main(["export", "cifar:resnet8", *weights, *exported[:2], "--out", str(second)]) == 0
    card = TeacherCard.from_json((second / "second" / "card.json").read_bytes())
    assert card.classes == tuple(CIFAR10_CLASSES)
    assert [output.name for output in card.features] == ["embedding", "layer3"]
    assert distill(data, second, tmp_path / "next", "simkd")["teacher"] == "second"
