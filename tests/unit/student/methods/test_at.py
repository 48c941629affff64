from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from teacherfarm.student.methods.at import AT, ATSettings
from teacherfarm.student.methods.method import MethodMismatch, Setup, StudentShape
from tests.methods import make_card, make_outputs, make_setup, make_step
from tests.unit.student.methods.by_gradient import gradient_is_right

ALONE = ATSettings(attention_weight=1.0, soft_weight=0.0)


def setup_of(student: dict[str, tuple[int, ...]], teacher: dict[str, tuple[int, ...]]) -> Setup:
    return make_setup(make_card(features=teacher), StudentShape(num_classes=10, features=student))


def halved(maps: NDArray[Any]) -> NDArray[Any]:
    """Averaged over squares of 2 x 2."""
    n, c, h, w = maps.shape
    return maps.reshape(n, c, h // 2, 2, w // 2, 2).mean(axis=(3, 5))


def attention_by_hand(maps: NDArray[Any]) -> NDArray[np.float64]:
    n, c, h, w = maps.shape
    result = np.zeros((n, h * w))
    for crop in range(n):
        for place in range(h * w):
            values = maps[crop, :, place // w, place % w].astype(np.float64)
            result[crop, place] = sum(value**2 for value in values) / c
        result[crop] /= math.sqrt(sum(value**2 for value in result[crop]))
    return result


def test_is_the_squared_difference_of_attention_maps_summed_over_stages() -> None:
    setup = setup_of(
        {"stage1": (3, 4, 4), "stage2": (2, 2, 2), "stage3": (2, 4, 4), "more": (2, 1, 1)},
        {"layer1": (5, 4, 4), "layer2": (6, 4, 4), "layer3": (7, 2, 2)},
    )
    outputs = make_outputs(setup, 3, dtype=torch.float64)
    for maps in outputs.features.values():
        maps.data += 0.01
    spec = AT.asks(ALONE, setup).spec
    assert spec is not None
    assert spec.outputs == ("layer1", "layer2", "layer3")
    step = make_step(3, setup.card, spec)
    student = [outputs.features[f"stage{stage}"].detach().numpy() for stage in (1, 2, 3)]
    teacher = [step.labels.output(f"layer{stage}").astype(np.float64) for stage in (1, 2, 3)]  # type: ignore[union-attr]
    pairs = [(student[0], teacher[0]), (student[1], halved(teacher[1])), (halved(student[2]), teacher[2])]
    expected = sum(((attention_by_hand(s) - attention_by_hand(t)) ** 2).mean() for s, t in pairs)
    assert AT(ALONE, setup).loss(outputs, step)["attention"].item() == pytest.approx(expected, rel=1e-8)


def test_a_known_answer() -> None:
    """All in one place against everywhere alike: over 4 places, (1 - 1/2)^2 + 3 (1/2)^2 = 1, a mean of 1/4."""
    setup = setup_of({"stage": (1, 2, 2)}, {"layer": (1, 2, 2)})
    outputs, step = make_outputs(setup, 1), make_step(1, setup.card, AT.asks(ALONE, setup).spec)
    outputs.features["stage"].data = torch.tensor([[[[9.0, 0.0], [0.0, 0.0]]]])
    step.labels.records["layer"] = 3.0  # type: ignore[union-attr]
    assert AT(ALONE, setup).loss(outputs, step)["attention"].item() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("student", "teacher", "asked"),
    [
        (4, {"layer": (5, 4, 4), "layer@attention": (16,)}, "layer@attention"),
        (4, {"layer": (5, 4, 4), "layer@attention4x4": (16,)}, "layer@attention4x4"),
        (2, {"layer": (5, 4, 4), "layer@attention": (16,), "layer@attention2x2": (4,)}, "layer@attention2x2"),
        (2, {"layer": (5, 4, 4), "layer@attention": (16,)}, "layer"),
        (2, {"layer": (5, 4, 4), "layer@2x2": (5, 2, 2)}, "layer@2x2"),
        (8, {"layer": (5, 4, 4), "layer@attention": (16,)}, "layer@attention"),
        (4, {"layer@attention": (16,)}, "layer@attention"),
        (8, {"layer@attention": (16,)}, "layer@attention"),
        (4, {"layer@4x4": (5, 4, 4)}, "layer@4x4"),
    ],
)
def test_asks_the_least_that_is_exact_for_this_student(
    student: int, teacher: dict[str, tuple[int, ...]], asked: str
) -> None:
    setup = setup_of({"stage": (3, student, student)}, teacher)
    spec = AT.asks(ALONE, setup).spec
    assert spec is not None
    assert spec.outputs == (asked,)
    AT(ALONE, setup).loss(make_outputs(setup, 2), make_step(2, setup.card, spec))["attention"].backward()


@pytest.mark.parametrize(("student", "tap"), [(2, "layer@attention2x2"), (3, "layer@attention3x3")])
def test_attention_of_the_whole_map_is_not_taken_for_that_of_the_averaged_one(student: int, tap: str) -> None:
    with pytest.raises(MethodMismatch, match=f"--tap {tap} --force$"):
        AT.asks(ALONE, setup_of({"stage": (3, student, student)}, {"layer@attention": (16,)}))


def test_the_teachers_own_attention_gives_the_same_loss() -> None:
    whole = setup_of({"stage": (3, 2, 2)}, {"layer": (5, 4, 4)})
    reduced = setup_of({"stage": (3, 2, 2)}, {"layer": (5, 4, 4), "layer@attention2x2": (4,)})
    outputs, step = make_outputs(whole, 3), make_step(3, whole.card, AT.asks(ALONE, whole).spec)
    short = make_step(3, reduced.card, AT.asks(ALONE, reduced).spec)
    maps = step.labels.output("layer").astype(np.float32)  # type: ignore[union-attr]
    short.labels.records["layer@attention2x2"] = attention_by_hand(halved(maps))  # type: ignore[union-attr]
    losses = [
        AT(ALONE, setup).loss(outputs, each)["attention"].item() for setup, each in ((whole, step), (reduced, short))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_crops_without_a_label_do_not_count() -> None:
    setup = make_setup()
    outputs, spec = make_outputs(setup, 4, dtype=torch.float64), AT.asks(ALONE, make_setup()).spec
    losses = [
        AT(ALONE, setup).loss(outputs, make_step(4, setup.card, spec, weight=weight))["attention"].item()
        for weight in ([1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1])
    ]
    assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-9)


def test_a_map_of_zeros_gives_no_nan() -> None:
    setup = setup_of({"stage": (3, 4, 4)}, {"layer": (5, 4, 4)})
    outputs, step = make_outputs(setup, 2), make_step(2, setup.card, AT.asks(ALONE, setup).spec, weight=[1, 0])
    outputs.features["stage"].data.zero_()
    loss = AT(ALONE, setup).loss(outputs, step)["attention"]
    loss.backward()
    assert loss.isfinite()
    assert outputs.features["stage"].grad.isfinite().all()  # type: ignore[union-attr]


@pytest.mark.parametrize("tap", ["stage1", "stage2"])
def test_gradient(tap: str) -> None:
    setup = setup_of({"stage1": (2, 4, 4), "stage2": (2, 2, 2)}, {"layer1": (3, 2, 2), "layer2": (3, 2, 2)})
    step = make_step(2, setup.card, AT.asks(ALONE, setup).spec)
    assert gradient_is_right(AT(ALONE, setup), make_outputs(setup, 2, dtype=torch.float64), step, "attention", tap)
