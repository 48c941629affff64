from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from teacherfarm.student.methods.fitnet import FitNet, FitNetSettings
from teacherfarm.student.methods.method import MethodMismatch, Setup, StudentShape
from tests.methods import make_card, make_outputs, make_setup, make_step
from tests.unit.student.methods.by_gradient import gradient_is_right

ALONE = FitNetSettings(hint_weight=1.0, soft_weight=0.0)


def setup_of(student: tuple[int, int, int], **teacher: tuple[int, ...]) -> Setup:
    card = make_card(features={name.replace("_", "@"): shape for name, shape in teacher.items()})
    return make_setup(card, StudentShape(num_classes=10, features={"stage": student}))


def by_hand(maps: NDArray[Any], teacher: NDArray[Any], regressor: Any) -> float:
    """Valid convolution, batch normalisation by the batch's own statistics, ReLU, mean squared error."""
    conv, norm, _ = regressor
    weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    guess = np.zeros((len(maps), *teacher.shape[1:]))
    size = weight.shape[2]
    for n, c, y, x in np.ndindex(*guess.shape):
        guess[n, c, y, x] = bias[c] + (maps[n, :, y : y + size, x : x + size] * weight[c]).sum()
    total = 0.0
    for c in range(guess.shape[1]):
        channel = guess[:, c]
        normal = (channel - channel.mean()) / np.sqrt(channel.var() + norm.eps)
        total += ((np.maximum(normal, 0) - teacher[:, c]) ** 2).sum()
    return float(total / guess.size)


@pytest.mark.parametrize("size", [4, 6])
def test_is_the_squared_error_of_the_regressed_map(size: int) -> None:
    setup = setup_of((3, size, size), layer1=(5, 4, 4))
    method = FitNet(ALONE, setup).double()
    outputs = make_outputs(setup, 4, dtype=torch.float64)
    step = make_step(4, setup.card, FitNet.asks(ALONE, setup).spec)
    teacher = step.labels.output("layer1").astype(np.float64)  # type: ignore[union-attr]
    expected = by_hand(outputs.features["stage"].detach().numpy(), teacher, method.regressor)
    assert method.loss(outputs, step)["hint"].item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "kernel", "compared"),
    [
        (8, 8, nn.Conv2d, 1, 8),
        (8, 4, nn.Conv2d, 3, 4),
        (4, 8, nn.ConvTranspose2d, 4, 8),
        (7, 4, nn.Conv2d, 4, 4),
        (3, 8, nn.Conv2d, 3, 3),
    ],
)
def test_the_regressor_follows_the_ratio_of_the_sizes(
    student: int, teacher: int, kind: type[nn.Module], kernel: int, compared: int
) -> None:
    setup = setup_of((3, student, student), layer1=(5, teacher, teacher))
    method = FitNet(ALONE, setup)
    layer: Any = method.regressor[0]
    assert type(layer) is kind
    assert layer.kernel_size == (kernel, kernel)
    assert layer.bias is not None
    assert method.teacher.shape == (5, compared, compared)
    step = make_step(2, setup.card, FitNet.asks(ALONE, setup).spec)
    method.loss(make_outputs(setup, 2), step)["hint"].backward()


def test_asks_the_averaged_map_where_the_loss_would_average_it() -> None:
    def asked(student: int, **teacher: tuple[int, ...]) -> tuple[str, ...]:
        spec = FitNet.asks(ALONE, setup_of((3, student, student), **teacher)).spec
        assert spec is not None
        return spec.outputs

    whole, small = (5, 8, 8), {"layer1_3x3": (5, 3, 3), "layer1_4x4": (5, 4, 4)}
    assert asked(3, layer1=whole, **small) == ("layer1@3x3",)
    assert asked(4, layer1=whole, **small) == ("layer1",), "twice as large: the student is enlarged instead"
    assert asked(8, layer1=whole, **small) == ("layer1",)
    assert asked(4, **small) == ("layer1@4x4",)
    with pytest.raises(MethodMismatch, match="--tap layer1@2x2"):
        asked(2, **small)


def test_takes_the_stage_that_was_chosen() -> None:
    setup = make_setup()
    settings = FitNetSettings(stage=2)
    assert FitNet.asks(settings, setup).spec.outputs == ("labels", "layer2")  # type: ignore[union-attr]
    assert FitNet(settings, setup).tap == "stage2"
    for stage in (0, 4):
        with pytest.raises(MethodMismatch, match=f"stage={stage} of 3"):
            FitNet.asks(FitNetSettings(stage=stage), setup)


def test_refuses_shapes_that_cannot_be_aligned() -> None:
    with pytest.raises(MethodMismatch, match=r"cannot align 'stage' \[3, 8, 2\].*'layer1' \[5, 4, 4\]"):
        FitNet.asks(ALONE, setup_of((3, 8, 2), layer1=(5, 4, 4)))


def test_crops_without_a_label_do_not_count() -> None:
    setup = setup_of((3, 4, 4), layer1=(5, 4, 4))
    method = FitNet(ALONE, setup).double().eval()
    outputs = make_outputs(setup, 4, dtype=torch.float64)
    spec = FitNet.asks(ALONE, setup).spec
    losses = [
        method.loss(outputs, make_step(4, setup.card, spec, weight=weight))["hint"].item()
        for weight in ([1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1])
    ]
    assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-9)


def test_gradient() -> None:
    setup = setup_of((2, 3, 3), layer1=(3, 3, 3))
    step = make_step(3, setup.card, FitNet.asks(ALONE, setup).spec)
    outputs = make_outputs(setup, 3, dtype=torch.float64)
    assert gradient_is_right(FitNet(ALONE, setup).double(), outputs, step, "hint", "stage")


def test_carries_the_toolboxs_terms_on_logits() -> None:
    setup = make_setup()
    spec = FitNet.asks(FitNetSettings(), setup).spec
    parts = FitNet(FitNetSettings(), setup).loss(make_outputs(setup, 4), make_step(4, setup.card, spec))
    assert list(parts) == ["hint", "kd", "ce"]
    with pytest.raises(MethodMismatch, match="nothing would train"):
        FitNet.asks(FitNetSettings(hard_weight=0, soft_weight=0), setup)
