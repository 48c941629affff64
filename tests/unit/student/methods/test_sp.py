from __future__ import annotations

import numpy as np
import pytest
import torch

from teacherfarm.student.methods.method import MethodMismatch, StudentShape
from teacherfarm.student.methods.sp import SP, SPSettings
from tests.methods import make_card, make_outputs, make_setup, make_step
from tests.unit.student.methods.by_gradient import gradient_is_right

ALONE = SPSettings(similarity_weight=1.0, soft_weight=0.0)


def gram(maps: np.ndarray) -> np.ndarray:
    rows = maps.reshape(len(maps), -1).astype(np.float64)
    table = np.zeros((len(rows), len(rows)))
    for i in range(len(rows)):
        for j in range(len(rows)):
            table[i, j] = (rows[i] * rows[j]).sum()
        table[i] /= np.sqrt((table[i] ** 2).sum())
    return table


def by_hand(student: np.ndarray, teacher: np.ndarray) -> float:
    total = 0.0
    for row_s, row_t in zip(gram(student), gram(teacher), strict=True):
        for s, t in zip(row_s, row_t, strict=True):
            total += (t - s) ** 2
    return total / len(student) ** 2


def test_is_the_difference_of_the_last_stages_gram_matrices() -> None:
    setup = make_setup()
    spec = SP.asks(ALONE, setup).spec
    assert spec is not None
    assert spec.outputs == ("layer3",)
    outputs, step = make_outputs(setup, 6, dtype=torch.float64), make_step(6, setup.card, spec)
    expected = by_hand(outputs.features["stage3"].detach().numpy(), step.labels.output("layer3"))  # type: ignore[union-attr]
    assert SP(ALONE, setup).loss(outputs, step)["similarity"].item() == pytest.approx(expected, rel=1e-9)
    tripled = SP(SPSettings(similarity_weight=3.0, soft_weight=0.0), setup).loss(outputs, step)["similarity"]
    assert tripled.item() == pytest.approx(3 * expected, rel=1e-9)


def test_nothing_is_lost_where_the_student_is_the_teacher_at_another_scale() -> None:
    setup = make_setup(student=StudentShape(num_classes=10, features={"stage": (24, 2, 2)}))
    step = make_step(5, setup.card, SP.asks(ALONE, setup).spec)
    outputs = make_outputs(setup, 5)
    outputs.features["stage"].data = 7 * torch.from_numpy(step.labels.output("layer3")).float()  # type: ignore[union-attr]
    assert SP(ALONE, setup).loss(outputs, step)["similarity"].item() == pytest.approx(0, abs=1e-10)


def test_crops_without_a_label_take_no_part_in_either_matrix() -> None:
    setup = make_setup()
    outputs = make_outputs(setup, 6, dtype=torch.float64)
    step = make_step(6, setup.card, SP.asks(ALONE, setup).spec, weight=[1, 0, 1, 1, 0, 1])
    kept = [0, 2, 3, 5]
    expected = by_hand(
        outputs.features["stage3"].detach().numpy()[kept],
        step.labels.output("layer3")[kept],  # type: ignore[union-attr]
    )
    loss = SP(ALONE, setup).loss(outputs, step)["similarity"]
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    gradient = outputs.features["stage3"].grad
    assert gradient is not None
    assert gradient[kept].abs().sum() > 0
    assert not gradient[[1, 4]].any()


def test_a_pair_counts_by_both_its_crops() -> None:
    setup = make_setup()
    outputs, weight = make_outputs(setup, 3, dtype=torch.float64), np.array([1, 0.5, 0.25])
    whole = make_step(3, setup.card, SP.asks(ALONE, setup).spec)
    partly = make_step(3, setup.card, whole.labels.spec, weight=weight)  # type: ignore[union-attr]
    student, teacher = outputs.features["stage3"].detach().numpy(), whole.labels.output("layer3")  # type: ignore[union-attr]
    pairs = np.outer(weight, weight)
    expected = (pairs * (gram(student) - gram(teacher)) ** 2).sum() / pairs.sum()
    assert SP(ALONE, setup).loss(outputs, partly)["similarity"].item() == pytest.approx(expected, rel=1e-9)


def test_no_label_at_all_gives_nothing_and_no_nan() -> None:
    setup = make_setup()
    outputs, step = make_outputs(setup, 3), make_step(3, setup.card, SP.asks(ALONE, setup).spec, weight=[0, 0, 0])
    loss = SP(ALONE, setup).loss(outputs, step)["similarity"]
    loss.backward()
    assert loss.item() == 0
    assert not outputs.features["stage3"].grad.any()  # type: ignore[union-attr]


def test_gradient() -> None:
    setup = make_setup()
    outputs = make_outputs(setup, 4, dtype=torch.float64)
    step = make_step(4, setup.card, SP.asks(ALONE, setup).spec, weight=[1, 1, 0, 1])
    assert gradient_is_right(SP(ALONE, setup), outputs, step, "similarity", "stage3")


def test_large_maps_do_not_overflow_under_autocast() -> None:
    setup = make_setup()
    outputs = make_outputs(setup, 4, dtype=torch.float16)
    outputs.features["stage3"].data *= 300
    with torch.autocast("cpu", dtype=torch.float16):
        step = make_step(4, setup.card, SP.asks(ALONE, setup).spec)
        assert SP(ALONE, setup).loss(outputs, step)["similarity"].isfinite()


def test_a_reduced_map_is_not_taken_for_the_whole_one() -> None:
    setup = make_setup(make_card(features={"layer3@1x1": (24, 1, 1)}))
    with pytest.raises(MethodMismatch, match=r"no output 'layer3'.*--tap layer3 --force$"):
        SP.asks(ALONE, setup)
    assert SP.asks(ALONE, make_setup(setup.card, teacher_taps=("layer3@1x1",))).spec is not None
