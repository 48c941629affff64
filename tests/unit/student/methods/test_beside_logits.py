from __future__ import annotations

import math

import pytest
import torch

from teacherfarm.protos.soft_label import LABELS
from teacherfarm.student.methods.beside_logits import asks_beside_logits
from teacherfarm.student.methods.kd import KDSettings, logit_terms
from teacherfarm.student.methods.method import MethodMismatch, StudentShape
from tests.methods import make_card, make_outputs, make_setup, make_step


def test_terms_are_weighted_and_only_those_that_count_are_there() -> None:
    setup, outputs = make_setup(), make_outputs(make_setup(), 1, dtype=torch.float64)
    settings = KDSettings(temperature=2.0, hard_weight=3.0, soft_weight=5.0)
    step = make_step(1, setup.card, asks_beside_logits("x", settings, setup, []).spec)
    teacher = step.labels.log_probabilities[0].astype(float) / 2  # type: ignore[union-attr]
    student = outputs.logits.detach().numpy()[0]

    def softmax(values: list[float]) -> list[float]:
        total = sum(math.exp(value) for value in values)
        return [math.exp(value) / total for value in values]

    p, q = softmax(list(teacher)), softmax(list(student / 2))
    divergence = 4 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    hard = -math.log(softmax(list(student))[int(step.targets[0])])
    parts = logit_terms(settings, outputs, step)
    assert parts["kd"].item() == pytest.approx(5 * divergence, rel=1e-6)
    assert parts["ce"].item() == pytest.approx(3 * hard, rel=1e-6)
    assert list(logit_terms(KDSettings(hard_weight=0.0), outputs, step)) == ["kd"]
    assert list(logit_terms(KDSettings(soft_weight=0.0), outputs, step)) == ["ce"]


def test_labels_and_targets_are_asked_where_their_term_counts() -> None:
    setup = make_setup()
    both = asks_beside_logits("x", KDSettings(), setup, ["layer1", "layer1", "layer2"])
    assert both.spec is not None
    assert (both.spec.outputs, both.targets) == ((LABELS, "layer1", "layer2"), True)
    soft = asks_beside_logits("x", KDSettings(hard_weight=0.0), setup, ["layer1"])
    assert not soft.targets
    faces = make_setup(make_card(activation="none"), StudentShape(num_classes=7))
    hard = asks_beside_logits("x", KDSettings(soft_weight=0.0), faces, ["layer1"])
    assert hard.spec is not None
    assert hard.spec.outputs == ("layer1",)


def test_refuses_other_classes_and_a_classifier_that_nothing_would_train() -> None:
    other = make_setup(make_card(), StudentShape(num_classes=7))
    with pytest.raises(MethodMismatch, match="7 classes"):
        asks_beside_logits("x", KDSettings(), other, [])
    with pytest.raises(MethodMismatch, match="nothing would train"):
        asks_beside_logits("x", KDSettings(hard_weight=0.0, soft_weight=0.0), make_setup(), [])
