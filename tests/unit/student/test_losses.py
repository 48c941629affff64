import dataclasses

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from teacherfarm.protos.faults import BadLabelSpec, TemperatureMismatch, WrongBatchSize
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.losses import (
    NO_TARGET,
    hard_cross_entropy,
    kd_divergence,
    sigmoid_cross_entropy,
    soft_cross_entropy,
    with_hard_labels,
)
from tests.unit.student.fake_teacher import make_labels

torch.set_num_threads(1)
N, C = 6, 12
GENERATOR = np.random.default_rng(0)
TEACHER = GENERATOR.normal(size=(N, C)) * 3
STUDENT = GENERATOR.normal(size=(N, C)) * 2
WEIGHT = np.array([1, 0, 1, 0.5, 1, 0], np.float32)


def softmax(logits):
    e = np.exp(logits - logits.max())
    return e / e.sum()


def completed(teacher_logits, temperature, top_k, completion):
    """FKD's definitions, class by class."""
    p = softmax(teacher_logits / temperature)
    if not top_k:
        return p
    kept = sorted(range(len(p)), key=lambda c: -p[c])[:top_k]
    full = np.zeros(len(p))
    for c in range(len(p)):
        if c in kept:
            full[c] = p[c] / sum(p[k] for k in kept) if completion == "renorm" else p[c]
        elif completion == "smoothing":
            full[c] = (1 - sum(p[k] for k in kept)) / (len(p) - top_k)
    return full


def slow_mean(per_crop, weight):
    return sum(w * x for w, x in zip(weight, per_crop, strict=True)) / sum(weight)


def slow_cross_entropy(temperature=1.0, top_k=0, completion="smoothing", weight=(1,) * N):
    rows = []
    for t, s in zip(TEACHER, STUDENT, strict=True):
        p, q = completed(t, temperature, top_k, completion), softmax(s / temperature)
        rows.append(-sum(p[c] * np.log(q[c]) for c in range(C)))
    return slow_mean(rows, weight)


def slow_divergence(temperature=1.0, top_k=0, completion="smoothing", weight=(1,) * N):
    rows = []
    for t, s in zip(TEACHER, STUDENT, strict=True):
        p, q = completed(t, temperature, top_k, completion), softmax(s / temperature)
        rows.append(sum(p[c] * np.log(p[c] / q[c]) for c in range(C) if p[c] > 0))
    return slow_mean(rows, weight)


def labels_for(top_k=0, temperature=1.0, weight=None):
    return make_labels(TEACHER, LabelSpec(top_k=top_k, temperature=temperature if top_k else 1.0), weight=weight)


def student(dtype=torch.float32):
    return torch.tensor(STUDENT, dtype=dtype, requires_grad=True)


KINDS = [(0, "smoothing"), (5, "smoothing"), (5, "renorm"), (C, "smoothing"), (C, "renorm"), (1, "smoothing")]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("top_k", "completion"), KINDS)
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_soft_cross_entropy_is_the_formula(temperature, top_k, completion, weight):
    loss = soft_cross_entropy(student(), labels_for(top_k, temperature, weight), temperature, completion=completion)
    expected = slow_cross_entropy(temperature, top_k, completion, np.ones(N) if weight is None else weight)
    assert loss.item() == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("top_k", "completion"), KINDS)
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_kd_divergence_is_the_formula_with_t_squared_only_when_asked(temperature, top_k, completion, weight):
    labels = labels_for(top_k, temperature, weight)
    expected = slow_divergence(temperature, top_k, completion, np.ones(N) if weight is None else weight)
    plain = kd_divergence(student(), labels, temperature, t_squared=False, completion=completion)
    scaled = kd_divergence(student(), labels, temperature, t_squared=True, completion=completion)
    assert plain.item() == pytest.approx(expected, rel=5e-3, abs=1e-4)
    assert scaled.item() == pytest.approx(expected * temperature**2, rel=5e-3, abs=1e-4)


def test_divergence_from_itself_is_zero():
    logits = torch.tensor(TEACHER, dtype=torch.float32)
    assert kd_divergence(logits, labels_for(), 4.0, t_squared=True).item() == pytest.approx(0, abs=1e-4)


def test_cross_entropy_and_divergence_have_the_same_gradient():
    one, other = student(), student()
    soft_cross_entropy(one, labels_for(5, 4.0), 4.0).backward()
    kd_divergence(other, labels_for(5, 4.0), 4.0, t_squared=False).backward()
    torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(("top_k", "completion"), KINDS)
def test_gradients_are_right(top_k, completion):
    labels = labels_for(top_k, 2.0, WEIGHT)
    targets = torch.tensor([0, 1, 2, 3, 4, NO_TARGET])
    logits = student(torch.float64)

    def cross_entropy(z):
        return soft_cross_entropy(z, labels, 2.0, completion=completion, hard_fallback=targets)

    def divergence(z):
        return kd_divergence(z, labels, 2.0, t_squared=True, completion=completion)

    assert torch.autograd.gradcheck(cross_entropy, (logits,))
    assert torch.autograd.gradcheck(divergence, (logits,))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_sigmoid_cross_entropy_is_the_formula(temperature):
    p, q = 1 / (1 + np.exp(-TEACHER / temperature)), 1 / (1 + np.exp(-STUDENT / temperature))
    rows = (-(p * np.log(q) + (1 - p) * np.log(1 - q))).mean(axis=1)
    labels = make_labels(TEACHER, activation="sigmoid", weight=WEIGHT)
    loss = sigmoid_cross_entropy(student(), labels, temperature)
    assert loss.item() == pytest.approx(slow_mean(rows, WEIGHT), rel=1e-3)
    assert torch.autograd.gradcheck(lambda z: sigmoid_cross_entropy(z, labels, temperature), student(torch.float64))


def test_mixed_targets_may_be_a_tensor():
    p = torch.tensor(np.stack([softmax(row) for row in TEACHER]), dtype=torch.float32)
    assert soft_cross_entropy(student(), p).item() == pytest.approx(slow_cross_entropy(), rel=1e-5)
    one_hot = torch.eye(C)[:N]
    assert kd_divergence(student(), one_hot, 1.0, t_squared=False).item() == pytest.approx(
        torch.nn.functional.cross_entropy(student(), torch.arange(N)).item(), rel=1e-5
    )


class AutocastSeen(TorchFunctionMode):
    """Notes under which autocast state the log-softmax and the binary cross-entropy ran."""

    def __init__(self):
        super().__init__()
        self.states = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in ("log_softmax", "binary_cross_entropy_with_logits"):
            self.states.append(torch.is_autocast_enabled("cpu"))
        return function(*args, **(kwargs or {}))


def test_autocast_does_not_reach_the_loss():
    logits = student()
    with torch.autocast("cpu", dtype=torch.bfloat16), AutocastSeen() as seen:
        soft_cross_entropy(logits, labels_for(), 4.0)
        kd_divergence(logits, labels_for(), 4.0, t_squared=True)
        sigmoid_cross_entropy(logits, make_labels(TEACHER, activation="sigmoid"))
    assert len(seen.states) >= 3
    assert not any(seen.states)
    exact = soft_cross_entropy(logits, labels_for(), 4.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = soft_cross_entropy(logits, labels_for(), 4.0)
        half_logits = soft_cross_entropy(logits.bfloat16(), labels_for(), 4.0)
    assert under_autocast.dtype == half_logits.dtype == torch.float32
    assert under_autocast.item() == exact.item()
    assert half_logits.item() == pytest.approx(exact.item(), rel=1e-2)


def test_no_weight_at_all_is_zero_with_a_graph():
    logits = student()
    for top_k in (0, 5):
        loss = soft_cross_entropy(logits, labels_for(top_k, weight=np.zeros(N, np.float32)))
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(logits.grad, torch.zeros(N, C))


def test_unanswered_crops_get_no_gradient_or_their_hard_label():
    logits = student()
    soft_cross_entropy(logits, labels_for(weight=WEIGHT)).backward()
    assert torch.equal(logits.grad[WEIGHT == 0], torch.zeros(2, C))
    assert (logits.grad[WEIGHT > 0] != 0).any(dim=1).all()

    targets = torch.tensor([3, 7, 3, 3, 3, NO_TARGET])
    loss = soft_cross_entropy(student(), labels_for(weight=WEIGHT), hard_fallback=targets)
    soft = slow_cross_entropy(weight=WEIGHT) * WEIGHT.sum()
    hard = -np.log(softmax(STUDENT[1])[7])
    assert loss.item() == pytest.approx((soft + hard) / (WEIGHT.sum() + 1), rel=2e-3)


def test_hard_labels_mix_in_by_their_weight():
    targets = torch.tensor([0, 1, NO_TARGET, 3, 4, 5])
    logits = student()
    soft = soft_cross_entropy(logits, labels_for())
    hard = torch.nn.functional.cross_entropy(logits, targets)
    assert hard_cross_entropy(logits, targets).item() == pytest.approx(hard.item())
    mixed = with_hard_labels(soft, logits, targets, hard_weight=0.25)
    assert mixed.item() == pytest.approx(0.75 * soft.item() + 0.25 * hard.item())
    assert with_hard_labels(soft, logits, targets, hard_weight=0) is soft
    with pytest.raises(ValueError, match="from 0 to 1"):
        with_hard_labels(soft, logits, targets, hard_weight=1.5)


def test_read_only_records_are_accepted():
    labels = labels_for(5)
    labels.records.flags.writeable = False
    assert soft_cross_entropy(student(), labels).isfinite()


def test_mistakes_are_named():
    with pytest.raises(TemperatureMismatch, match=r"cut at temperature 4, the loss is asked at 1"):
        soft_cross_entropy(student(), labels_for(5, 4.0))
    with pytest.raises(WrongBatchSize, match="6 soft labels"):
        soft_cross_entropy(student()[:5], labels_for())
    with pytest.raises(ValueError, match="11 classes and the teacher 12"):
        soft_cross_entropy(student()[:, :11], labels_for())
    with pytest.raises(BadLabelSpec, match="use sigmoid_cross_entropy"):
        soft_cross_entropy(student(), make_labels(TEACHER, activation="sigmoid"))
    with pytest.raises(BadLabelSpec, match="use soft_cross_entropy"):
        sigmoid_cross_entropy(student(), labels_for())
    with pytest.raises(ValueError, match="completion"):
        soft_cross_entropy(student(), labels_for(5), completion="zeros")
    with pytest.raises(ValueError, match="temperature must be positive"):
        soft_cross_entropy(student(), labels_for(), 0.0)


def test_an_ensembles_labels_are_used_at_their_temperature():
    labels = dataclasses.replace(make_labels(np.random.default_rng(2).normal(size=(3, 5))), fixed_temperature=4.0)
    logits = torch.from_numpy(np.random.default_rng(3).normal(size=(3, 5)))
    averaged = torch.from_numpy(np.exp(labels.log_probabilities.astype(np.float64)))
    averaged /= averaged.sum(dim=1, keepdim=True)
    expected = -(averaged * torch.log_softmax(logits / 4, dim=1)).sum(dim=1).mean()
    assert torch.allclose(soft_cross_entropy(logits, labels, 4.0), expected, atol=1e-6)
    with pytest.raises(TemperatureMismatch, match="averaged at temperature 4"):
        kd_divergence(logits, labels, 2.0, t_squared=True)
