import dataclasses
import math

import numpy as np
import pytest
import torch

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.methods.funmatch import FunMatch, FunMatchSettings
from teacherfarm.student.methods.kd import KD, KDSettings
from teacherfarm.student.methods.method import MethodMismatch
from teacherfarm.student.methods.sigmoid_kd import SigmoidKD, SigmoidKDSettings
from tests.methods import make_card, make_outputs, make_setup, make_step

torch.set_num_threads(1)
N, C = 4, 10
SOFTMAX, SIGMOID = make_setup(), make_setup(make_card(activation="sigmoid"))
WEIGHT = [1, 0, 1, 0.5]


def mean(rows):
    return sum(w * row for w, row in zip(WEIGHT, rows, strict=True)) / sum(WEIGHT)


def softmax(logits):
    e = np.exp(logits - logits.max())
    return e / e.sum()


def slow_kd(step, outputs, temperature):
    """T^2 KL(teacher || student), crop by crop."""
    rows = []
    for z_t, z_s in zip(step.labels.log_probabilities.astype(np.float64), outputs.logits.detach().numpy(), strict=True):
        p, q = softmax(z_t / temperature), softmax(z_s / temperature)
        rows.append(temperature**2 * sum(p[c] * math.log(p[c] / q[c]) for c in range(C)))
    return mean(rows)


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_funmatch_is_the_divergence_alone(temperature):
    step, outputs = (
        make_step(N, SOFTMAX.card, LabelSpec(), weight=WEIGHT),
        make_outputs(SOFTMAX, N, dtype=torch.float64),
    )
    parts = FunMatch(FunMatchSettings(temperature=temperature), SOFTMAX).loss(outputs, step)
    assert parts.keys() == {"kd"}
    assert parts["kd"].item() == pytest.approx(slow_kd(step, outputs, temperature), rel=1e-6)


def test_funmatch_asks_for_fresh_crops_that_both_see_mixed():
    asks = FunMatch.asks(FunMatchSettings(), SOFTMAX)
    assert (asks.fresh, asks.mixing, asks.draw, asks.targets) == (True, "crops", "funmatch", False)
    assert FunMatch.asks(FunMatchSettings(mixup=False), SOFTMAX).mixing == "none"


def test_kd_is_both_terms_with_their_factors():
    step, outputs = (
        make_step(N, SOFTMAX.card, LabelSpec(), weight=WEIGHT),
        make_outputs(SOFTMAX, N, dtype=torch.float64),
    )
    parts = KD(KDSettings(soft_weight=0.9, hard_weight=0.1), SOFTMAX).loss(outputs, step)
    assert parts["kd"].item() == pytest.approx(0.9 * slow_kd(step, outputs, 4.0), rel=1e-6)
    hard = [
        -math.log(softmax(z)[y]) for z, y in zip(outputs.logits.detach().numpy(), step.targets.tolist(), strict=True)
    ]
    assert parts["ce"].item() == pytest.approx(0.1 * sum(hard) / N)


@pytest.mark.parametrize(("temperature", "t_squared"), [(1.0, True), (2.0, True), (2.0, False)])
def test_sigmoid_kd_is_the_cross_entropy_of_each_class(temperature, t_squared):
    step, outputs = (
        make_step(N, SIGMOID.card, LabelSpec(), weight=WEIGHT),
        make_outputs(SIGMOID, N, dtype=torch.float64),
    )
    parts = SigmoidKD(SigmoidKDSettings(temperature=temperature, t_squared=t_squared), SIGMOID).loss(outputs, step)
    rows = []
    for z_t, z_s in zip(step.labels.logits.astype(np.float64), outputs.logits.detach().numpy(), strict=True):
        terms = []
        for c in range(C):
            p, q = (1 / (1 + math.exp(-z[c] / temperature)) for z in (z_t, z_s))
            terms.append(-p * math.log(q) - (1 - p) * math.log(1 - q))
        rows.append(sum(terms) / C)
    assert parts["kd"].item() == pytest.approx((temperature**2 if t_squared else 1) * mean(rows), rel=1e-6)


@pytest.mark.parametrize(("method", "setup"), [(FunMatch, SOFTMAX), (KD, SOFTMAX), (SigmoidKD, SIGMOID)])
def test_gradients(method, setup):
    step, outputs = make_step(N, setup.card, LabelSpec(), weight=WEIGHT), make_outputs(setup, N, dtype=torch.float64)
    built = method(method.Settings(), setup)

    def total(logits):
        return sum(built.loss(dataclasses.replace(outputs, logits=logits), step).values())

    assert torch.autograd.gradcheck(total, (outputs.logits,))


def test_the_wrong_kind_of_teacher_is_refused_with_the_right_method():
    with pytest.raises(MethodMismatch, match=r"funmatch needs .*use --method sigmoid-kd"):
        FunMatch.asks(FunMatchSettings(), SIGMOID)
    with pytest.raises(MethodMismatch, match=r"sigmoid-kd needs .*\(softmax\): use --method kd"):
        SigmoidKD.asks(SigmoidKDSettings(), SOFTMAX)
    with pytest.raises(MethodMismatch, match="no classes: use --method embedding or tokens"):
        KD.asks(KDSettings(), make_setup(make_card(activation="none"), SOFTMAX.student))


def test_an_ensembles_labels_hold_at_its_own_temperature():
    ensemble = make_setup(make_card(fixed_temperature=4.0))
    assert KD.asks(KDSettings(temperature=4.0), ensemble).spec is not None
    with pytest.raises(
        MethodMismatch, match=r"asks for temperature 1, the ensemble .* at 4 .*export the ensemble at 1"
    ):
        FunMatch.asks(FunMatchSettings(), ensemble)
