"""Labels that came through a server equal PyTorch's own, on photographs, at two temperatures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from teacherfarm.export import export_teacher
from teacherfarm.student import LabelSpec, TeacherClient
from tests.farm_process import FarmProcess
from tests.lite0 import lite0, photographs, probabilities

TEMPERATURES = (1.0, 4.0)
TOLERANCE = 1e-3

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def crops():
    found = photographs()
    assert len(found) >= 20
    return found


@pytest.fixture(scope="module")
def expected(crops):
    torch.set_num_threads(1)
    module = lite0()
    return {temperature: probabilities(module, crops, temperature) for temperature in TEMPERATURES}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lite0")
    export_teacher("efficientnet-lite0", folder)
    return folder


@pytest.fixture(scope="module")
def farm(models, tmp_path_factory):
    with FarmProcess(tmp_path_factory.mktemp("lite0_farm"), models) as farm:
        yield farm


def check(labels, expected):
    assert (labels.top1 == expected[1.0].argmax(axis=1)).all()
    for temperature in TEMPERATURES:
        difference = np.abs(labels.probabilities(temperature) - expected[temperature]).max()
        assert difference <= TOLERANCE, f"differs by {difference:.2g} at temperature {temperature:g}"


def test_labels_of_both_wires_equal_pytorchs(wire, farm, crops, expected):
    with TeacherClient(getattr(farm, wire), "efficientnet-lite0") as teacher:
        check(teacher.label(crops), expected)


def test_labels_of_the_local_transport_equal_pytorchs(models, crops, expected):
    with TeacherClient(f"local://{models}") as teacher:
        check(teacher.label(crops), expected)


def test_top_k_labels_equal_pytorchs(wire, farm, crops, expected):
    with TeacherClient(getattr(farm, wire), spec=LabelSpec(top_k=10, temperature=4.0)) as teacher:
        labels = teacher.label(crops)
    assert (labels.top1 == expected[1.0].argmax(axis=1)).all()
    kept = np.take_along_axis(expected[4.0], labels.classes.astype(np.int64), axis=1)
    assert np.abs(np.exp(labels.log_probabilities.astype(np.float32)) - kept).max() <= TOLERANCE
