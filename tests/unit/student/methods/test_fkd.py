import dataclasses

import numpy as np
import pytest
import torch

from teacherfarm.crops.mixing import Mix
from teacherfarm.protos.crop import CropBox
from teacherfarm.protos.faults import TemperatureMismatch
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.methods.fkd import FKD, FKDSettings
from teacherfarm.student.methods.label_forms import FORMS
from teacherfarm.student.methods.method import MethodMismatch
from tests.methods import make_answers, make_card, make_outputs, make_setup, make_step

torch.set_num_threads(1)
N, SEED = 6, 5
SETUP = make_setup()
CARD = SETUP.card
WEIGHT = [1, 0, 1, 0.5, 1, 1]
MIXUP = Mix(kind="mixup", partner=(2, 0, 1, 5, 3, 4), own_share=192)
CUTMIX = Mix(kind="cutmix", partner=(2, 0, 1, 5, 3, 4), box=CropBox(top=1, left=2, height=3, width=4))


def softmax(values):
    e = np.exp(values - values.max())
    return e / e.sum()


def decoded(probabilities, form, k):
    """One crop's target, from the formulas of FKD's quantisation."""
    num_classes = len(probabilities)
    order = np.argsort(-probabilities, kind="stable")
    if form == "full":
        return probabilities
    if form == "hard":
        return np.eye(num_classes)[order[0]]
    kept = order[:1] if form == "smoothing" else order[:k]
    mass = probabilities[kept].sum()
    target = (
        np.zeros(num_classes)
        if form == "marginal-renorm"
        else np.full(num_classes, (1 - mass) / (num_classes - len(kept)))
    )
    target[kept] = probabilities[kept] / mass if form == "marginal-renorm" else probabilities[kept]
    return target


def targets_of(form, k=3, temperature=1.0):
    logits = make_answers(N, CARD, SEED)["logits"].astype(np.float64)
    return np.array([decoded(softmax(row / temperature), form, k) for row in logits])


def cross_entropies(targets, outputs, temperature=1.0):
    logits = outputs.logits.detach().numpy() / temperature
    return np.array([-(t * np.log(softmax(z))).sum() for t, z in zip(targets, logits, strict=True)])


def soft_loss(settings, step, setup=SETUP):
    outputs = dataclasses.replace(make_outputs(setup, N, dtype=torch.float64), size=(8, 6))
    (part,) = FKD(settings, setup).loss(outputs, step).values()
    return outputs, part


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("temperature", "student_temperature"), [(1.0, 1.0), (2.0, 1.0), (2.0, 3.0)])
def test_every_form_is_its_formula(form, temperature, student_temperature):
    settings = FKDSettings(form=form, top_k=3, temperature=temperature, student_temperature=student_temperature)
    step = make_step(N, CARD, FKD.asks(settings, SETUP).spec, SEED, weight=WEIGHT)
    outputs, part = soft_loss(settings, step)
    due = cross_entropies(targets_of(form, temperature=temperature), outputs, student_temperature)
    assert part.item() == pytest.approx(np.average(due, weights=WEIGHT), rel=2e-3)


def test_smoothing_by_hand():
    """p = (0.8, 0.15, 0.05) keeps 0.8 and halves the rest, under an undecided student: log 3 each."""
    probabilities = np.array([0.8, 0.15, 0.05])
    np.testing.assert_allclose(decoded(probabilities, "smoothing", 5), [0.8, 0.1, 0.1])
    np.testing.assert_allclose(decoded(probabilities, "marginal-smoothing", 2), [0.8, 0.15, 0.05])
    np.testing.assert_allclose(decoded(probabilities, "marginal-renorm", 2), [0.8 / 0.95, 0.15 / 0.95, 0])
    card = make_card(num_classes=3)
    setup = make_setup(card)
    outputs = dataclasses.replace(make_outputs(setup, 2), logits=torch.zeros(2, 3))
    for form in FORMS:
        settings = FKDSettings(form=form, top_k=2)
        step = make_step(2, card, FKD.asks(settings, setup).spec)
        assert FKD(settings, setup).loss(outputs, step)["soft"].item() == pytest.approx(np.log(3), rel=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("held", [LabelSpec(), LabelSpec(top_k=7)])
def test_labels_that_hold_more_are_cut_down(form, held):
    settings = FKDSettings(form=form, top_k=3)
    asked = FKD.asks(settings, SETUP).spec
    if form == "full" and held.top_k:
        with pytest.raises(MethodMismatch, match=r"keep 7 classes, the method wants the whole distribution"):
            soft_loss(settings, make_step(N, CARD, held, SEED))
        return
    _, due = soft_loss(settings, make_step(N, CARD, asked, SEED, weight=WEIGHT))
    _, got = soft_loss(settings, make_step(N, CARD, held, SEED, weight=WEIGHT))
    # Dense labels were rounded to float16 before they were cut.
    assert got.item() == pytest.approx(due.item(), rel=1e-12 if held.top_k else 1e-3)


def test_labels_that_hold_too_little_are_refused():
    with pytest.raises(MethodMismatch, match=r"keep 2 classes, the method wants the 5 best.*at most 2 classes"):
        soft_loss(FKDSettings(), make_step(N, CARD, LabelSpec(top_k=2)))
    with pytest.raises(TemperatureMismatch, match="cut at temperature 2, the method wants 1"):
        soft_loss(FKDSettings(), make_step(N, CARD, LabelSpec(top_k=7, temperature=2)))
    with pytest.raises(TemperatureMismatch, match="cut at temperature 2, the method wants 1"):
        soft_loss(FKDSettings(), make_step(N, CARD, LabelSpec(top_k=5, temperature=2)))


@pytest.mark.parametrize("mix", [MIXUP, CUTMIX])
@pytest.mark.parametrize("form", ["full", "marginal-smoothing"])
def test_mixed_crops_have_mixed_targets(mix, form):
    settings = FKDSettings(form=form, top_k=3, mix="fkd")
    step = make_step(N, CARD, FKD.asks(settings, SETUP).spec, SEED, weight=WEIGHT, mix=mix)
    outputs, part = soft_loss(settings, step)
    own = 0.75 if mix is MIXUP else 1 - 12 / 48
    targets, partners = targets_of(form), list(mix.partner)
    due = cross_entropies(own * targets + (1 - own) * targets[partners], outputs)
    counts = np.array(WEIGHT) * np.array(WEIGHT)[partners]
    assert part.item() == pytest.approx(np.average(due, weights=counts), rel=2e-3)


def test_labels_of_mixed_crops_are_taken_as_they_are():
    settings = FKDSettings(mix="fkd", teacher_sees_mix=True)
    step = make_step(N, CARD, FKD.asks(settings, SETUP).spec, SEED)
    assert soft_loss(settings, dataclasses.replace(step, mix=MIXUP))[1] == soft_loss(settings, step)[1]


def test_gradients():
    settings = FKDSettings(mix="fkd", temperature=2.0, student_temperature=3.0)
    step = make_step(N, CARD, FKD.asks(settings, SETUP).spec, SEED, weight=WEIGHT, mix=MIXUP)
    outputs, _ = soft_loss(settings, step)
    method = FKD(settings, SETUP)
    assert torch.autograd.gradcheck(
        lambda logits: method.loss(dataclasses.replace(outputs, logits=logits), step)["soft"], (outputs.logits,)
    )


def test_half_precision_and_no_answers_at_all_are_numbers():
    step = make_step(N, CARD, FKD.asks(FKDSettings(), SETUP).spec, SEED, weight=[0] * N, mix=MIXUP)
    outputs = make_outputs(SETUP, N, dtype=torch.float16)
    part = FKD(FKDSettings(mix="mixup"), SETUP).loss(outputs, step)["soft"]
    part.backward()
    assert part.dtype == torch.float32
    assert part.item() == 0
    assert (outputs.logits.grad == 0).all()


@pytest.mark.parametrize(
    ("settings", "top_k", "temperature", "mixing", "draw"),
    [
        (FKDSettings(), 5, 1, "none", ""),
        (FKDSettings(form="hard"), 1, 1, "none", ""),
        (FKDSettings(form="full", temperature=3.0), 0, 1, "none", ""),
        (FKDSettings(temperature=3.0), 5, 3, "none", ""),
        (FKDSettings(mix="fkd"), 5, 1, "labels", "fkd"),
        (FKDSettings(mix="selfmix"), 5, 1, "self", "selfmix"),
        (FKDSettings(mix="cutmix", teacher_sees_mix=True), 5, 1, "crops", "cutmix"),
    ],
)
def test_what_it_asks(settings, top_k, temperature, mixing, draw):
    asks = FKD.asks(settings, make_setup(crops_per_image=4))
    assert asks.spec == LabelSpec(outputs=("labels",), top_k=top_k, temperature=temperature)
    assert (asks.mixing, asks.draw, asks.fresh) == (mixing, draw, mixing == "crops")
    assert not asks.targets


@pytest.mark.parametrize(
    ("settings", "fault", "words"),
    [
        (FKDSettings(form="soft"), ValueError, "form is one of full, hard"),
        (FKDSettings(top_k=0), ValueError, "at least one class"),
        (FKDSettings(mix="blend"), ValueError, "mix is one of none, fkd"),
        (FKDSettings(teacher_sees_mix=True), ValueError, "no effect without a mix"),
        (FKDSettings(student_temperature=0.0), ValueError, "student_temperature must be positive"),
        (FKDSettings(mix="selfmix"), MethodMismatch, "this run has one of each"),
    ],
)
def test_what_cannot_be_is_refused(settings, fault, words):
    with pytest.raises(fault, match=words):
        FKD.asks(settings, SETUP)


def test_a_teacher_of_other_classes_is_refused():
    with pytest.raises(MethodMismatch, match="fkd needs a teacher of classes that exclude each other"):
        FKD.asks(FKDSettings(), make_setup(make_card(activation="sigmoid")))
    with pytest.raises(MethodMismatch, match="the student has 10 classes"):
        FKD.asks(FKDSettings(), make_setup(make_card(num_classes=12), SETUP.student))
