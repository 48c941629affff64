import dataclasses
import math

import numpy as np
import pytest
import torch

from teacherfarm.student.methods.meal_v2 import MEALV2, Discriminator, MEALV2Settings
from teacherfarm.student.methods.method import MethodMismatch
from tests.methods import TEACHER_FEATURES, make_card, make_outputs, make_setup, make_step

torch.set_num_threads(1)
N, C = 5, 16
SINGLE = make_setup(make_card(C))
ENSEMBLE = make_setup(make_card(C, features={**TEACHER_FEATURES, "mean_logits": (C,)}, fixed_temperature=1.0))
WEIGHT = [1, 0, 1, 0.5, 1]


def make(setup, **settings):
    torch.manual_seed(0)
    method = MEALV2(MEALV2Settings(**settings), setup).double()
    if method.discriminator is not None:
        for parameter in method.discriminator.parameters():
            torch.nn.init.uniform_(parameter, 0, 0.5)
    step = make_step(N, setup.card, MEALV2.asks(method.settings, setup).spec, weight=WEIGHT)
    return method, step, make_outputs(setup, N, dtype=torch.float64)


def softmax(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def judged(method, values):
    """The discriminator as 1 x 1 convolutions of a 1 x 1 map, layer by layer."""
    maps = torch.from_numpy(values)[:, :, None, None]
    for layer in method.discriminator.layers[::2]:
        maps = torch.nn.functional.conv2d(maps, layer.weight[:, :, None, None], layer.bias).relu()
    return maps[:, :, 0, 0].detach().numpy()


def slow_discriminator(method, student, teacher):
    """Binary cross-entropy of sigmoid(x) with [1, 0] for the student's and [0, 1] for the teacher's, for each crop."""
    rows = []
    for mine, other in zip(judged(method, student), judged(method, teacher), strict=True):
        terms = []
        for said, truth in zip([*mine, *other], [1, 0, 0, 1], strict=True):
            p = 1 / (1 + math.exp(-said))
            terms.append(-math.log(p if truth else 1 - p))
        rows.append(sum(terms) / 4)
    return sum(w * row for w, row in zip(WEIGHT, rows, strict=True)) / sum(WEIGHT)


def test_the_similarity_is_the_cross_entropy_under_the_teacher():
    method, step, outputs = make(SINGLE, discriminator="none")
    q = softmax(outputs.logits.detach().numpy())
    p = softmax(step.labels.log_probabilities.astype(np.float64))
    rows = [-sum(p[b, c] * math.log(q[b, c]) for c in range(C)) for b in range(N)]
    due = sum(w * row for w, row in zip(WEIGHT, rows, strict=True)) / sum(WEIGHT)
    parts = method.loss(outputs, step)
    assert parts.keys() == {"similarity"}
    assert parts["similarity"].item() == pytest.approx(due, rel=1e-6)
    assert not list(method.parameters())


def test_of_an_ensemble_the_discriminator_sees_logits():
    method, step, outputs = make(ENSEMBLE, discriminator_weight=0.5)
    assert step.labels.spec.outputs == ("labels", "mean_logits")
    teacher = step.labels.output("mean_logits").astype(np.float64)
    due = slow_discriminator(method, outputs.logits.detach().numpy(), teacher)
    assert method.loss(outputs, step)["discriminator"].item() == pytest.approx(0.5 * due, rel=1e-9)


def test_of_one_teacher_the_discriminator_sees_probabilities():
    method, step, outputs = make(SINGLE)
    assert step.labels.spec.outputs == ("labels",)
    teacher = step.labels.probabilities().astype(np.float64)
    due = slow_discriminator(method, softmax(outputs.logits.detach().numpy()), teacher)
    assert method.loss(outputs, step)["discriminator"].item() == pytest.approx(due, rel=1e-9)


def test_top_5_labels_will_do():
    method, step, outputs = make(ENSEMBLE, top_k=5)
    assert step.labels.spec.outputs == ("labels",)
    assert method.tells_apart == "probabilities"
    assert all(part.isfinite() for part in method.loss(outputs, step).values())


def test_the_papers_discriminator_has_127047_parameters():
    assert sum(parameter.numel() for parameter in Discriminator(1000).parameters()) == 127_047


def test_student_and_discriminator_pull_together_or_against_each_other():
    gradients = {}
    for adversarial in (False, True):
        method, step, outputs = make(ENSEMBLE, adversarial=adversarial)
        part = method.loss(outputs, step)["discriminator"]
        gradients[adversarial] = torch.autograd.grad(part, [outputs.logits, *method.discriminator.parameters()])
    (student, *judge), (against, *same_judge) = gradients[False], gradients[True]
    assert student.any()
    torch.testing.assert_close(against, -student)
    torch.testing.assert_close(same_judge, judge)


def test_gradients():
    method, step, outputs = make(ENSEMBLE)

    def total(logits, *_):
        return sum(method.loss(dataclasses.replace(outputs, logits=logits), step).values())

    assert torch.autograd.gradcheck(total, (outputs.logits, *method.parameters()))


def test_mixed_crops_are_asked_mixed():
    asks = MEALV2.asks(MEALV2Settings(cutmix=True), ENSEMBLE)
    assert (asks.mixing, asks.draw) == ("crops", "cutmix")
    assert not asks.targets


def test_what_cannot_be_is_refused():
    with pytest.raises(MethodMismatch, match=r"needs an ensemble's output 'mean_logits'.*--ensemble"):
        MEALV2.asks(MEALV2Settings(discriminator="logits"), SINGLE)
    with pytest.raises(ValueError, match="one of auto, logits, probabilities, none, got 'logit'"):
        MEALV2.asks(MEALV2Settings(discriminator="logit"), SINGLE)
    with pytest.raises(
        MethodMismatch, match="asks for temperature 1, the ensemble 'teacher' averages its members at 4"
    ):
        MEALV2.asks(MEALV2Settings(), make_setup(make_card(C, fixed_temperature=4.0)))
