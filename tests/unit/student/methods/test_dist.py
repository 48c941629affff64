import dataclasses

import numpy as np
import pytest
import torch

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.methods.dist import DIST, DISTSettings, correlations
from teacherfarm.student.methods.method import MethodMismatch
from tests.methods import make_outputs, make_setup, make_step

torch.set_num_threads(1)
N = 6
SETUP = make_setup()
WEIGHT = [1, 0, 1, 1, 0, 1]


def softmax(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def pearson(one, other):
    mean_one, mean_other = sum(one) / len(one), sum(other) / len(other)
    both = sum((a - mean_one) * (b - mean_other) for a, b in zip(one, other, strict=True))
    return both / np.sqrt(sum((a - mean_one) ** 2 for a in one) * sum((b - mean_other) ** 2 for b in other))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_both_terms_are_the_formula_over_the_crops_that_count(temperature, weight):
    step = make_step(N, SETUP.card, LabelSpec(), weight=weight)
    outputs = make_outputs(SETUP, N, dtype=torch.float64)
    settings = DISTSettings(temperature=temperature, inter_weight=1.5, intra_weight=0.5, hard_weight=0)
    parts = DIST(settings, SETUP).loss(outputs, step)
    rows = [i for i in range(N) if weight is None or weight[i]]
    student = softmax(outputs.logits.detach().numpy()[rows] / temperature)
    teacher = softmax(step.labels.log_probabilities.astype(np.float64)[rows] / temperature)
    inter = 1 - np.mean([pearson(student[b], teacher[b]) for b in range(len(rows))])
    intra = 1 - np.mean([pearson(student[:, c], teacher[:, c]) for c in range(10)])
    assert parts["inter"].item() == pytest.approx(1.5 * temperature**2 * inter, rel=1e-4)
    assert parts["intra"].item() == pytest.approx(0.5 * temperature**2 * intra, rel=1e-4)


def test_correlations_by_hand():
    rows = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 0.0, 1.0]])
    others = torch.tensor([[10.0, 20.0, 30.0], [3.0, 2.0, 1.0], [1.0, 1.0, 0.0]])
    np.testing.assert_allclose(correlations(rows, others), [1, -1, -0.5], atol=1e-6)


def test_half_a_weight_is_half_a_crop():
    random = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 4, 3, generator=random, dtype=torch.float64)
    twice = torch.cat([one, one[:, :1]], dim=1), torch.cat([other, other[:, :1]], dim=1)
    halves = correlations(one, other, torch.tensor([1.0, 0.5, 0.5], dtype=torch.float64))
    torch.testing.assert_close(halves, correlations(*twice))


def test_a_student_that_only_scales_the_teacher_is_as_good():
    values = torch.rand(4, 10)
    np.testing.assert_allclose(correlations(3 * values + 1, values), np.ones(4), atol=1e-5)


def test_gradients():
    step = make_step(N, SETUP.card, LabelSpec(), weight=WEIGHT)
    outputs = make_outputs(SETUP, N, dtype=torch.float64)
    method = DIST(DISTSettings(), SETUP)

    def total(logits):
        return sum(method.loss(dataclasses.replace(outputs, logits=logits), step).values())

    assert torch.autograd.gradcheck(total, (outputs.logits,))


@pytest.mark.parametrize("weight", [[0] * N, [1] + [0] * (N - 1)])
def test_hardly_any_answers_give_no_nan(weight):
    step = make_step(N, SETUP.card, LabelSpec(), weight=weight)
    outputs = make_outputs(SETUP, N)
    parts = DIST(DISTSettings(hard_weight=0), SETUP).loss(outputs, step)
    sum(parts.values()).backward()
    assert outputs.logits.grad.isfinite().all()
    if not any(weight):
        assert parts == {"inter": 0, "intra": 0}
        assert not outputs.logits.grad.any()


def test_one_crop_alone_has_no_correlation():
    with pytest.raises(MethodMismatch, match="batches have one crop"):
        DIST.asks(DISTSettings(), make_setup(batch_size=1))
