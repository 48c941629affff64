"""SRRL against its formula; its finished student by itself."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from teacherfarm.protos.teacher_card import EnsembleMember
from teacherfarm.student.losses import hard_cross_entropy, kd_divergence
from teacherfarm.student.methods.distiller import Distiller
from teacherfarm.student.methods.method import MethodMismatch, StudentShape
from teacherfarm.student.methods.srrl import SRRL, SRRLSettings
from teacherfarm.student.methods.student_taps import TappedStudent
from tests.methods import make_card, make_outputs, make_setup, make_step, tiny_student
from tests.unit.student.methods.by_gradient import gradient_is_right
from tests.unit.student.methods.by_hand import normalise_batch, values

SETTINGS = SRRLSettings(feature_weight=2.0, regression_weight=0.5)


def parts_for(weight=(1, 1, 1, 1, 1)):
    setup = make_setup()
    torch.manual_seed(0)
    method = SRRL(SETTINGS, setup).double()
    outputs = make_outputs(setup, 5, dtype=torch.float64)
    return method, outputs, make_step(5, setup.card, SRRL.asks(SETTINGS, setup).spec, weight=weight)


@pytest.mark.parametrize("weight", [[1] * 5, [1, 0, 1, 0, 1]])
def test_is_the_squared_error_before_and_behind_the_teachers_classifier(weight):
    method, outputs, step = parts_for(weight)
    head = method.setup.head
    maps = (outputs.embedding.detach().numpy() @ values(method.connector[0]).T)[:, :, None, None]
    connected = np.maximum(normalise_batch(maps), 0)[:, :, 0, 0]
    teacher = step.labels.output("embedding").astype(np.float64)
    feature, regression = [], []
    for n in range(5):
        if weight[n]:
            feature.append(np.mean((connected[n] - teacher[n]) ** 2))
            behind = head.weight.double().numpy() @ (connected[n] - teacher[n])  # the bias goes
            regression.append(np.mean(behind**2))
    parts = method.loss(outputs, step)
    assert parts["feature"].item() == pytest.approx(2.0 * np.mean(feature), rel=1e-6)
    assert parts["regression"].item() == pytest.approx(0.5 * np.mean(regression), rel=1e-6)
    assert method.connector[0].bias is None
    assert parts["kd"].item() == pytest.approx(kd_divergence(outputs.logits, step.labels, 4, t_squared=True).item())
    assert parts["ce"].item() == pytest.approx(hard_cross_entropy(outputs.logits, step.targets).item())


@pytest.mark.parametrize("part", ["feature", "regression"])
def test_gradient(part):
    method, outputs, step = parts_for()
    assert gradient_is_right(method, outputs, step, part, "embedding")


def test_the_gradient_passes_the_frozen_classifier():
    method, outputs, step = parts_for()
    method.loss(outputs, step)["regression"].backward()
    assert method.connector[0].weight.grad.any()
    assert method.classifier.weight.grad is None


def test_the_finished_student_is_the_student_and_exports_to_onnx(tmp_path):
    tapped = TappedStudent(tiny_student())
    setup = make_setup(student=tapped.measure(32, 32))
    distiller = Distiller(tapped, SRRL(SETTINGS, setup))
    finished = distiller.inference().eval()
    assert finished.state_dict().keys() == tiny_student().state_dict().keys()
    pixels = 5 * torch.randn(3, 3, 32, 32)
    path = tmp_path / "student.onnx"
    torch.onnx.export(finished, (pixels,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    (got,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, distiller.predict(pixels).numpy(), rtol=1e-4, atol=1e-5)


def test_refuses_what_it_cannot_use():
    with pytest.raises(MethodMismatch, match="needs the teacher's embedding, 'teacher' has layer3"):
        SRRL.asks(SETTINGS, make_setup(make_card(features={"layer3": (8, 4, 4)})))
    with pytest.raises(MethodMismatch, match=r"reuses the teacher's classifier.*not linear"):
        SRRL.asks(SETTINGS, make_setup(make_card(has_head=False)))
    with pytest.raises(MethodMismatch, match="ends in no linear layer"):
        SRRL.asks(SETTINGS, make_setup(student=StudentShape(num_classes=10)))
    with pytest.raises(MethodMismatch, match="one vector for each crop"):
        SRRL.asks(SETTINGS, make_setup(make_card(features={"embedding": (8, 4, 4)}, has_head=False)))
    with pytest.raises(MethodMismatch, match=r"needs the teacher's embedding, 'teacher' has layer3 \(ends otherwise\)"):
        SRRL.asks(SETTINGS, make_setup(make_card(features={"layer3": (8, 4, 4)}, headless="ends otherwise")))
    members = tuple(EnsembleMember(name=name, source=name, height=32, width=32) for name in ("one", "other"))
    with pytest.raises(MethodMismatch, match="the ensemble 'teacher' has mean_logits: export one of its members"):
        SRRL.asks(SETTINGS, make_setup(make_card(features={"mean_logits": (10,)}, members=members)))
