"""What a teacher's graph reduces gives the loss of whole maps that are reduced on the student, through a server."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from teacherfarm.export import export_teacher
from teacherfarm.protos.soft_label import LABELS
from teacherfarm.student import TeacherClient
from teacherfarm.student.methods.method import MethodMismatch, Setup, Step
from teacherfarm.student.methods.registry import find_method
from teacherfarm.student.methods.student_taps import TappedStudent
from tests.farm_process import FarmProcess

torch.set_num_threads(1)
WHOLE = ("act", "block")
"""16 x 16 and 8 x 8."""
REDUCED = ("act@6x6", "block@3x3", "act@attention6x6", "block@attention3x3")
ASKED = {
    "at": (LABELS, "act@attention6x6", "block@attention3x3"),
    "vid": (LABELS, "act@6x6", "block@3x3"),
    "fitnet": (LABELS, "act@6x6"),
}
SIZE = 12
"""Of the student's pixels: its maps are 6 x 6 and 3 x 3."""


def make_student():
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(taken, given, 3, 2, 1), nn.ReLU()) for taken, given in ((3, 6), (6, 12))]
    model = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))
    return TappedStudent(model, ("0", "1"))


KNOWN = {"whole": WHOLE, "both": (*WHOLE, *REDUCED), "reduced": REDUCED}
"""What the method is told that the teacher has."""


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    models = tmp_path_factory.mktemp("reduced_models")
    export_teacher("tests.tiny_teacher:make", models, taps=KNOWN["both"])
    with FarmProcess(tmp_path_factory.mktemp("reduced_farm"), models) as farm:
        yield farm


def losses_and_spec(address, known, name, feature_type="float16"):
    kind, student = find_method(name), make_student()
    with TeacherClient(address, "tiny") as client:
        features = tuple(output for output in client.card.features if output.name in KNOWN[known])
        card = dataclasses.replace(client.card, features=features)
    setup = Setup(card=card, student=student.measure(SIZE, SIZE), teacher_taps=WHOLE)
    torch.manual_seed(0)
    method = kind(kind.Settings(), setup)
    spec = dataclasses.replace(kind.asks(method.settings, setup).spec, feature_type=feature_type)
    crops = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    pixels = torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with TeacherClient(address, "tiny", spec=spec) as client:
        step = Step(labels=client.label(crops), targets=torch.arange(8), samples=torch.arange(8))
    parts = method.loss(student(pixels), step)
    return {part: value.item() for part, value in parts.items()}, spec


@pytest.mark.parametrize("name", ASKED)
def test_a_reduction_is_asked_where_there_is_one_and_changes_no_loss(name, farm, wire):
    address = getattr(farm, wire)
    whole, spec = losses_and_spec(address, "whole", name)
    assert spec.outputs == (LABELS, *WHOLE[: len(ASKED[name]) - 1])
    for known in ("both", "reduced"):
        losses, spec = losses_and_spec(address, known, name)
        assert spec.outputs == ASKED[name]
        assert losses == pytest.approx(whole, rel=2e-3)
    assert all(value > 0 for value in whole.values())


@pytest.mark.parametrize("name", ["vid", "sp", "fitnet"])
def test_maps_of_eight_bits_are_close(name, farm):
    losses, _ = losses_and_spec(farm.zmq, "whole", name)
    short, _ = losses_and_spec(farm.zmq, "whole", name, feature_type="int8")
    assert short == pytest.approx(losses, rel=0.05)
    assert short != losses


def test_a_reduction_is_not_the_whole_map(farm):
    with pytest.raises(MethodMismatch, match=r"no output 'block'.*--tap block --force$"):
        losses_and_spec(farm.zmq, "reduced", "sp")
