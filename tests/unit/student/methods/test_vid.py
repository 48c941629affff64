from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from teacherfarm.student.methods.method import Setup, StudentShape
from teacherfarm.student.methods.vid import VID, VIDSettings
from tests.methods import make_card, make_outputs, make_setup, make_step
from tests.unit.student.methods.by_gradient import gradient_is_right

ALONE = VIDSettings(soft_weight=0.0)


def small_setup(**card: tuple[int, ...]) -> Setup:
    features = {
        "layer1": (4, 4, 4),
        "layer2": (5, 2, 2),
        "layer3": (4, 2, 2),
        **{name.replace("_", "@"): s for name, s in card.items()},
    }
    student = StudentShape(num_classes=10, features={"stage1": (3, 4, 4), "stage2": (2, 1, 1), "stage3": (2, 4, 4)})
    return make_setup(make_card(features=features), student)


def by_hand(maps: NDArray[np.float64], teacher: NDArray[np.float64], weights: list, variance: NDArray) -> float:  # type: ignore[type-arg]
    total, count = 0.0, 0
    for n in range(len(maps)):
        for y in range(maps.shape[2]):
            for x in range(maps.shape[3]):
                hidden = maps[n, :, y, x]
                for number, weight in enumerate(weights):
                    hidden = weight @ hidden
                    if number < 2:
                        hidden = np.maximum(hidden, 0)
                for channel in range(teacher.shape[1]):
                    difference = hidden[channel] - teacher[n, channel, y, x]
                    total += 0.5 * (difference**2 / variance[channel] + math.log(variance[channel]))
                    count += 1
    return total / count


def test_is_the_gaussians_negative_log_likelihood_of_every_stage() -> None:
    setup = small_setup()
    method = VID(ALONE, setup).double()
    with torch.no_grad():
        for raw in method.variances:
            raw.copy_(torch.linspace(-1, 3, len(raw)))
    outputs = make_outputs(setup, 3, dtype=torch.float64)
    step = make_step(3, setup.card, VID.asks(ALONE, setup).spec)
    expected = 0.0
    for tap, name, mean, raw in zip(
        ("stage1", "stage2", "stage3"), ("layer1", "layer2", "layer3"), method.means, method.variances, strict=True
    ):
        teacher = step.labels.output(name).astype(np.float64)  # type: ignore[union-attr]
        maps = outputs.features[tap].detach().numpy()
        if name == "layer2":
            teacher = teacher.mean(axis=(2, 3), keepdims=True)
        if tap == "stage3":
            maps = maps.reshape(3, 2, 2, 2, 2, 2).mean(axis=(3, 5))
        weights = [mean[place].weight.detach().numpy()[:, :, 0, 0] for place in (0, 2, 4)]  # type: ignore[index]
        expected += by_hand(maps, teacher, weights, np.log1p(np.exp(raw.detach().numpy())) + 1e-5)
    assert method.loss(outputs, step)["information"].item() == pytest.approx(expected, rel=1e-7)


def test_begins_with_a_variance_of_five_and_regressors_as_wide_as_the_teacher() -> None:
    method = VID(ALONE, small_setup())
    variance = torch.nn.functional.softplus(method.variances[0]) + 1e-5
    assert torch.allclose(variance, torch.tensor(5.0))
    shapes = [tuple(weight.shape[:2]) for weight in method.means[1].parameters()]
    assert shapes == [(5, 2), (5, 5), (5, 5)]


def test_a_reduced_map_serves_where_the_student_is_smaller_and_is_the_same() -> None:
    whole, reduced = small_setup(), small_setup(layer2_1x1=(5, 1, 1))
    assert VID.asks(ALONE, whole).spec.outputs == ("layer1", "layer2", "layer3")  # type: ignore[union-attr]
    spec = VID.asks(ALONE, reduced).spec
    assert spec is not None
    assert spec.outputs == ("layer1", "layer2@1x1", "layer3")
    outputs = make_outputs(whole, 3)
    steps = [make_step(3, reduced.card, asked) for asked in (VID.asks(ALONE, whole).spec, spec)]
    for one, other in [steps]:
        values = one.labels.output("layer2").astype(np.float32).mean(axis=(2, 3), keepdims=True)  # type: ignore[union-attr]
        other.labels.records["layer2@1x1"] = values  # type: ignore[union-attr]
    method, same = VID(ALONE, whole), VID(ALONE, reduced)
    same.load_state_dict(method.state_dict())
    losses = [m.loss(outputs, step)["information"].item() for m, step in zip((method, same), steps, strict=True)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_crops_without_a_label_do_not_count() -> None:
    setup = small_setup()
    method = VID(ALONE, setup).double()
    outputs = make_outputs(setup, 4, dtype=torch.float64)
    spec = VID.asks(ALONE, setup).spec
    all_four = method.loss(outputs, make_step(4, setup.card, spec))["information"]
    half = method.loss(outputs, make_step(4, setup.card, spec, weight=[1, 1, 0, 0]))["information"]
    other = method.loss(outputs, make_step(4, setup.card, spec, weight=[0, 0, 1, 1]))["information"]
    assert all_four.item() == pytest.approx((half.item() + other.item()) / 2, rel=1e-9)


@pytest.mark.parametrize("tap", ["stage1", "stage2"])
def test_gradient(tap: str) -> None:
    setup = small_setup()
    step = make_step(2, setup.card, VID.asks(ALONE, setup).spec)
    outputs = make_outputs(setup, 2, dtype=torch.float64)
    outputs.features[tap].data += 0.1  # Where a place is zero, the ReLUs have no gradient to compare.
    assert gradient_is_right(VID(ALONE, setup).double(), outputs, step, "information", tap)


def test_variances_learn() -> None:
    setup = small_setup()
    method = VID(ALONE, setup)
    method.loss(make_outputs(setup, 2), make_step(2, setup.card, VID.asks(ALONE, setup).spec))["information"].backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in method.variances)


def test_refuses_variances_that_are_none() -> None:
    with pytest.raises(ValueError, match="first_variance"):
        VID.asks(VIDSettings(first_variance=0.0), small_setup())
