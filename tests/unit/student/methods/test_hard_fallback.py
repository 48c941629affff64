"""Crops without an answer that learn from their own class, beside any method."""

import pytest
import torch
from torch.nn import functional

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.losses import NO_TARGET, soft_cross_entropy
from teacherfarm.student.methods.fkd import FKD, FKDSettings
from teacherfarm.student.methods.hard_fallback import with_hard_fallback
from tests.methods import make_outputs, make_setup, make_step

torch.set_num_threads(1)
SETUP = make_setup()


def parts_of(weight, targets=None):
    step = make_step(4, SETUP.card, LabelSpec(), weight=weight)
    if targets is not None:
        step = make_step(4, SETUP.card, LabelSpec(), weight=weight, targets=torch.tensor(targets))
    outputs = make_outputs(SETUP, 4, dtype=torch.float64)
    method = FKD(FKDSettings(form="full"), SETUP)
    return with_hard_fallback(method.loss(outputs, step), outputs.logits, step), outputs.logits, step


def test_the_sum_is_the_mean_over_both_kinds_of_crops():
    parts, logits, step = parts_of([1, 0, 1, 0])
    due = soft_cross_entropy(logits, step.labels, hard_fallback=step.targets)
    assert sum(parts.values()).item() == pytest.approx(due.item(), rel=1e-6)
    hard = functional.cross_entropy(logits[[1, 3]], step.targets[[1, 3]])
    assert parts["hard fallback"].item() == pytest.approx(hard.item() / 2, rel=1e-6)
    (slope,) = torch.autograd.grad(sum(parts.values()), logits, retain_graph=True)
    (due_slope,) = torch.autograd.grad(due, logits)
    torch.testing.assert_close(slope, due_slope)


def test_answers_alone_and_classes_alone_are_what_they_are():
    parts, logits, step = parts_of([1, 1, 1, 1])
    assert parts["hard fallback"].item() == 0
    assert parts["soft"].item() == pytest.approx(soft_cross_entropy(logits, step.labels).item(), rel=1e-6)
    parts, logits, step = parts_of([0, 0, 0, 0])
    assert parts["soft"].item() == 0
    assert parts["hard fallback"].item() == pytest.approx(
        functional.cross_entropy(logits, step.targets).item(), rel=1e-6
    )


def test_a_crop_with_neither_counts_nothing():
    parts, logits, _ = parts_of([0, 0, 0, 0], [NO_TARGET, 3, NO_TARGET, NO_TARGET])
    due = functional.cross_entropy(logits[1:2], torch.tensor([3]))
    assert parts["hard fallback"].item() == pytest.approx(due.item(), rel=1e-6)
    parts, logits, _ = parts_of([0, 0, 0, 0], [NO_TARGET] * 4)
    assert sum(parts.values()).item() == 0
    sum(parts.values()).backward()
    assert not logits.grad.any()
