"""SimKD against its formula; its finished student by itself."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from teacherfarm.student.methods.distiller import Distiller
from teacherfarm.student.methods.method import MethodMismatch, StudentShape
from teacherfarm.student.methods.reused_head import Projection
from teacherfarm.student.methods.simkd import SimKD, SimKDSettings
from teacherfarm.student.methods.student_taps import TappedStudent
from tests.methods import (
    STUDENT_TAPS,
    make_card,
    make_head,
    make_output_card,
    make_outputs,
    make_setup,
    make_step,
    tiny_student,
)
from tests.unit.student.methods.by_gradient import gradient_is_right
from tests.unit.student.methods.by_hand import convolve, normalise_batch, pool, values


def setup_of(student_size=4, teacher_size=4, outputs=("layer3",), **fields):
    features = {"embedding": (8,)}
    for name in outputs:
        size = teacher_size if "@" not in name else int(name.rpartition("x")[2])
        features[name] = (8, size, size)
    student = StudentShape(num_classes=10, features={"stage3": (6, student_size, student_size)})
    return make_setup(make_card(features=features), student, **fields)


def method_of(setup, factor=2):
    torch.manual_seed(0)
    return SimKD(SimKDSettings(factor=factor), setup).double()


def step_of(setup, **fields):
    return make_step(4, setup.card, SimKD.asks(SimKDSettings(), setup).spec, **fields)


def projected_by_hand(method, maps):
    for place in (0, 3, 6):
        maps = np.maximum(normalise_batch(convolve(maps, values(method.projection.projector[place]))), 0)
    return maps


@pytest.mark.parametrize(("student_size", "teacher_size"), [(4, 4), (4, 2), (2, 4)])
@pytest.mark.parametrize("weight", [[1, 1, 1, 1], [1, 0, 1, 1]])
def test_is_the_squared_error_of_projected_maps(student_size, teacher_size, weight):
    setup = setup_of(student_size, teacher_size)
    method, step = method_of(setup), step_of(setup, weight=weight)
    outputs = make_outputs(setup, 4, dtype=torch.float64)
    size = min(student_size, teacher_size)
    student = projected_by_hand(method, pool(outputs.features["stage3"].detach().numpy(), size, size))
    teacher = pool(step.labels.output("layer3").astype(np.float64), size, size)
    errors = [np.mean((student[n] - teacher[n]) ** 2) for n in range(4) if weight[n]]
    (part,) = method.loss(outputs, step).values()
    assert part.item() == pytest.approx(np.mean(errors), rel=1e-6)


def test_a_map_reduced_by_the_teacher_is_as_good():
    whole, reduced = setup_of(2, 4), setup_of(2, 4, outputs=("layer3@2x2",))
    assert SimKD.asks(SimKDSettings(), reduced).spec.outputs == ("layer3@2x2",)
    one, other = step_of(whole), step_of(reduced)
    given = torch.from_numpy(one.labels.output("layer3").astype(np.float32))
    other.labels.records["layer3@2x2"] = nn.functional.adaptive_avg_pool2d(given, 2).numpy()
    outputs = make_outputs(whole, 4, dtype=torch.float64)
    expected, got = method_of(whole).loss(outputs, one)["map"], method_of(reduced).loss(outputs, other)["map"]
    assert got.item() == pytest.approx(expected.item(), rel=1e-3)


def test_nobody_answered_is_a_loss_of_zero_with_a_gradient():
    setup = setup_of()
    outputs = make_outputs(setup, 4, dtype=torch.float64)
    loss = method_of(setup).loss(outputs, step_of(setup, weight=[0] * 4))["map"]
    loss.backward()
    assert loss.item() == 0
    assert not outputs.features["stage3"].grad.any()


def test_gradient():
    setup = setup_of(2, 2)
    outputs = make_outputs(setup, 4, dtype=torch.float64)
    assert gradient_is_right(method_of(setup), outputs, step_of(setup), "map", "stage3")


@pytest.mark.parametrize(
    ("taken", "given", "counts"),
    [
        (256, 256, {2: 214_016, 4: 70_400, 8: 26_240}),
        (704, 256, {2: 271_360, 4: 99_072, 8: 40_576}),
        (512, 256, {2: 246_784, 4: 86_784, 8: 34_432}),
    ],
)
def test_the_projector_has_as_many_parameters_as_the_papers(taken, given, counts):
    for factor, count in counts.items():
        plan = {"taken": taken, "given": given, "factor": factor, "size": [8, 8], "num_classes": 2}
        assert sum(weight.numel() for weight in Projection.of(plan).projector.parameters()) == count


def distilled(**card):
    """A student after three steps, whose last map is larger than the teacher's."""
    tapped = TappedStudent(tiny_student(), STUDENT_TAPS)
    teacher = make_card(features={"embedding": (16,), "block": (16, 4, 4)}, **card)
    setup = make_setup(teacher, tapped.measure(32, 32), batch_size=4)
    torch.manual_seed(0)
    distiller = Distiller(tapped, SimKD(SimKDSettings(), setup))
    optimizer = torch.optim.SGD([weight for weight in distiller.parameters() if weight.requires_grad], lr=0.05)
    spec, losses = SimKD.asks(SimKDSettings(), setup).spec, []
    for _ in range(3):
        parts = distiller(pixels(4), make_step(4, teacher, spec))
        optimizer.zero_grad()
        parts["map"].backward()
        optimizer.step()
        losses.append(parts["map"].item())
    assert losses[-1] < losses[0]
    return distiller, setup


def pixels(count):
    """Crops so different that a finished student's answers are."""
    random = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 32, 32, generator=random) * torch.linspace(1, 20, count).view(-1, 1, 1, 1)


def test_what_is_not_used_is_not_trained_and_the_teachers_classifier_stays():
    distiller, setup = distilled()
    model = distiller.student.model
    assert {name for name, weight in model.named_parameters() if not weight.requires_grad} == {
        "head.weight",
        "head.bias",
    }
    assert not model.head.training
    assert model.stage1.training
    torch.testing.assert_close(distiller.method.projection.classifier.weight, setup.head.weight, rtol=0, atol=0)


def test_predicts_by_the_teachers_classifier_on_the_mean_of_the_projected_map():
    distiller, setup = distilled()
    distiller.eval()
    projection = distiller.method.projection
    with torch.no_grad():
        maps = distiller.student(pixels(3)).features["stage2"].numpy().astype(np.float64)
        projected = projection.projector(torch.from_numpy(pool(maps, 4, 4)).float()).numpy()
        expected = projected.mean(axis=(2, 3)) @ setup.head.weight.numpy().T + setup.head.bias.numpy()
        np.testing.assert_allclose(distiller.predict(pixels(3)).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_finished_student_is_alone_and_can_be_rebuilt():
    distiller, _ = distilled()
    distiller.eval()
    finished = distiller.inference().eval()
    with torch.no_grad():
        expected = distiller.predict(pixels(3))
        torch.testing.assert_close(finished(pixels(3)), expected)
        rebuilt = SimKD.rebuild(tiny_student(seed=9), distiller.method.inference_plan()).eval()
        rebuilt.load_state_dict(finished.state_dict())
        for weight in distiller.parameters():
            weight.zero_()
        torch.testing.assert_close(rebuilt(pixels(3)), expected)
        torch.testing.assert_close(finished(pixels(3)), expected)


def test_the_finished_student_exports_to_onnx(tmp_path):
    distiller, _ = distilled()
    finished = distiller.inference().eval()
    path = tmp_path / "student.onnx"
    rows = torch.export.Dim("rows", min=1)
    torch.onnx.export(finished, (pixels(2),), path, dynamo=True, dynamic_shapes=({0: rows},), verbose=False)
    session = onnxruntime.InferenceSession(path)
    (got,) = session.run(None, {session.get_inputs()[0].name: pixels(5).numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, finished(pixels(5)).numpy(), rtol=1e-4, atol=1e-5)


def test_refuses_what_cannot_be_reused():
    card = make_card(features={"layer3": (8, 4, 4)}, has_head=False, headless="it has two layers")
    with pytest.raises(MethodMismatch, match=r"reuses the teacher's classifier.*'teacher' has none.*two layers"):
        SimKD.asks(SimKDSettings(), make_setup(card))
    with pytest.raises(MethodMismatch, match=r"takes \[24\] values and is offered 8"):
        SimKD.asks(SimKDSettings(), make_setup(make_card(features={"embedding": (24,), "layer3": (8, 4, 4)})))
    with pytest.raises(MethodMismatch, match=r"--tap layer3@2x2"):
        SimKD.asks(SimKDSettings(), setup_of(2, 4, outputs=("layer3@1x1",)))
    map_before_a_layer = make_output_card("layer3", (8, 4, 4), averages_to_embedding=False)
    setup = make_setup(make_card(features=[make_output_card("embedding", (8,)), map_before_a_layer]))
    with pytest.raises(MethodMismatch, match="takes something else than the average of 'layer3'"):
        SimKD.asks(SimKDSettings(), setup)
    with pytest.raises(ValueError, match="factor=9 of 8"):
        SimKD.asks(SimKDSettings(factor=9), setup_of())
    setup = setup_of(head=make_head(make_card()))
    with pytest.raises(MethodMismatch, match="takes 24 values and is offered 8"):
        SimKD(SimKDSettings(), setup)
