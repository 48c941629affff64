"""KD against its formula, and the student alone as its border case."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.methods.kd import KD, KDSettings
from tests.methods import make_outputs, make_setup, make_step

torch.set_num_threads(1)
SETUP = make_setup()


def softmax(logits):
    e = np.exp(logits - logits.max())
    return e / e.sum()


def test_both_terms_are_the_formula():
    settings = KDSettings(temperature=3, hard_weight=0.5, soft_weight=2)
    step = make_step(5, SETUP.card, KD.asks(settings, SETUP).spec, weight=[1, 1, 0, 1, 1])
    outputs = make_outputs(SETUP, 5, dtype=torch.float64)
    parts = KD(settings, SETUP).loss(outputs, step)
    due = 0.0
    for crop in (0, 1, 3, 4):
        teacher = softmax(step.labels.log_probabilities[crop].astype(np.float64) / 3)
        student = softmax(outputs.logits[crop].detach().numpy() / 3)
        due += 3**2 * sum(t * np.log(t / s) for t, s in zip(teacher, student, strict=True)) / 4
    assert parts["kd"].item() == pytest.approx(2 * due, rel=1e-5)
    assert parts["ce"].item() == pytest.approx(
        0.5 * functional.cross_entropy(outputs.logits, step.targets).item(), rel=1e-5
    )


def test_without_soft_labels_it_is_the_student_alone_and_no_teacher_is_asked():
    settings = KDSettings(soft_weight=0)
    asks = KD.asks(settings, SETUP)
    assert asks.spec is None
    assert asks.targets
    step = make_step(5, SETUP.card, asks.spec)
    outputs = make_outputs(SETUP, 5)
    parts = KD(settings, SETUP).loss(outputs, step)
    assert parts.keys() == {"ce"}
    torch.testing.assert_close(parts["ce"], functional.cross_entropy(outputs.logits, step.targets))


def test_weights_of_nothing_are_refused():
    with pytest.raises(ValueError, match="kd learns nothing"):
        KD.asks(KDSettings(soft_weight=0, hard_weight=0), SETUP)


def test_a_student_with_hard_labels_off_needs_none():
    asks = KD.asks(KDSettings(hard_weight=0), SETUP)
    assert (asks.spec, asks.targets) == (LabelSpec(), False)
