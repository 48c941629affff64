import dataclasses

import numpy as np
import pytest
import torch

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.losses import NO_TARGET
from teacherfarm.student.methods.dkd import DKD, DKDSettings, decoupled_divergences
from teacherfarm.student.methods.method import MethodMismatch
from tests.methods import make_card, make_outputs, make_setup, make_step

torch.set_num_threads(1)
N = 6
SETUP = make_setup()
WEIGHT = [1, 0, 1, 0.5, 1, 1]


def softmax(logits):
    e = np.exp(logits - logits.max())
    return e / e.sum()


def slow(student, teacher, target, temperature):
    """The paper's definitions for one crop: (TCKD, NCKD)."""
    p_s, p_t = softmax(student / temperature), softmax(teacher / temperature)
    b_s, b_t = [p_s[target], 1 - p_s[target]], [p_t[target], 1 - p_t[target]]
    others = [c for c in range(len(p_s)) if c != target]
    h_s, h_t = [p_s[c] / b_s[1] for c in others], [p_t[c] / b_t[1] for c in others]
    return (
        temperature**2 * sum(t * np.log(t / s) for s, t in zip(b_s, b_t, strict=True)),
        temperature**2 * sum(t * np.log(t / s) for s, t in zip(h_s, h_t, strict=True)),
    )


def losses(settings, step, setup=SETUP):
    outputs = make_outputs(setup, len(step.targets), dtype=torch.float64)
    return outputs, DKD(settings, setup).loss(outputs, step)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_both_terms_are_the_formula(temperature):
    step = make_step(N, SETUP.card, LabelSpec(), weight=WEIGHT, epoch=40.0)
    step.targets[4] = NO_TARGET
    outputs, parts = losses(DKDSettings(temperature=temperature, alpha=1.5, beta=3, hard_weight=0), step)
    counts = np.array(WEIGHT) * (step.targets.numpy() != NO_TARGET)
    logits = outputs.logits.detach().numpy()
    teacher = step.labels.log_probabilities.astype(np.float64)
    due = [slow(logits[i], teacher[i], max(int(step.targets[i]), 0), temperature) for i in range(N)]
    mean = (np.array(due) * counts[:, None]).sum(axis=0) / counts.sum()
    assert parts["tckd"].item() == pytest.approx(1.5 * mean[0], rel=1e-9)
    assert parts["nckd"].item() == pytest.approx(3 * mean[1], rel=1e-9)


def test_both_terms_by_hand():
    """p_t = (1/2, 1/4, 1/4) against an undecided student: the halves differ, the others do not."""
    teacher = torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64).log()
    target, others = decoupled_divergences(torch.zeros(1, 3, dtype=torch.float64), teacher, torch.tensor([0]), 1.0)
    assert target.item() == pytest.approx(0.5 * np.log(0.5 / (1 / 3)) + 0.5 * np.log(0.5 / (2 / 3)))
    assert others.item() == pytest.approx(0, abs=1e-12)


def test_alpha_1_and_beta_of_the_rest_are_kd():
    """KL = TCKD + (1 - p_t(target)) NCKD, the paper's decomposition."""
    random = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, N, 7, generator=random, dtype=torch.float64)
    targets = torch.arange(N)
    target, others = decoupled_divergences(student, teacher, targets, 1.0)
    p = teacher.softmax(dim=1)
    divergence = (p * (teacher.log_softmax(dim=1) - student.log_softmax(dim=1))).sum(dim=1)
    torch.testing.assert_close(target + (1 - p[range(N), targets]) * others, divergence)


def test_the_warm_up_grows_evenly_and_leaves_the_hard_labels_alone():
    def parts(epoch, **settings):
        return losses(DKDSettings(**settings), make_step(N, SETUP.card, LabelSpec(), epoch=epoch))[1]

    done = parts(25.0)
    for epoch, share in ((0.0, 0.0), (5.0, 0.25), (20.0, 1.0)):
        early = parts(epoch)
        for term in ("tckd", "nckd"):
            assert early[term].item() == pytest.approx(share * done[term].item())
        assert early["ce"] == done["ce"]
    assert parts(0.0, warm_up_epochs=0)["tckd"] == done["tckd"]


def test_gradients():
    step = make_step(N, SETUP.card, LabelSpec(), weight=WEIGHT, epoch=40.0)
    outputs = make_outputs(SETUP, N, dtype=torch.float64)
    method = DKD(DKDSettings(), SETUP)

    def total(logits):
        return sum(method.loss(dataclasses.replace(outputs, logits=logits), step).values())

    assert torch.autograd.gradcheck(total, (outputs.logits,))


def test_a_certain_student_and_a_certain_teacher_stay_finite():
    student = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    for terms in decoupled_divergences(student, torch.tensor([[0.0, -60000.0, -60000.0]]), torch.tensor([0]), 1.0):
        (gradient,) = torch.autograd.grad(terms.sum(), student, retain_graph=True)
        assert terms.isfinite().all()
        assert gradient.isfinite().all()


def test_what_cannot_be_is_refused():
    with pytest.raises(MethodMismatch, match="dkd needs a teacher of classes that exclude each other"):
        DKD.asks(DKDSettings(), make_setup(make_card(activation="sigmoid")))
    with pytest.raises(MethodMismatch, match="has one class"):
        DKD.asks(DKDSettings(), make_setup(make_card(num_classes=1)))
    with pytest.raises(MethodMismatch, match="the student has 10 classes and the teacher 'teacher' 12"):
        DKD.asks(DKDSettings(), make_setup(make_card(num_classes=12), SETUP.student))
    with pytest.raises(MethodMismatch, match="its top 5 classes"):
        losses(DKDSettings(), make_step(N, SETUP.card, LabelSpec(top_k=5)))
