import dataclasses

import numpy as np
import pytest
import torch

from teacherfarm.crops.mixing import Mix
from teacherfarm.protos.soft_label import LabelSpec, SoftLabels, complete
from teacherfarm.student.losses import NO_TARGET
from teacherfarm.student.methods.confidence import ConfidenceHistory, confidence
from teacherfarm.student.methods.ferkd import FerKD, FerKDSettings, softened_cross_entropy
from teacherfarm.student.methods.method import MethodMismatch, Step
from tests.methods import make_card, make_outputs, make_setup

torch.set_num_threads(1)
CARD = make_card(num_classes=4)
SETUP = make_setup(CARD)
TARGETS = [0, 1, 2, 3, 0, NO_TARGET, 1]
PROBABILITIES = np.array(
    [
        [0.97, 0.01, 0.01, 0.01],  # too certain
        [0.30, 0.28, 0.22, 0.20],  # background: 0.30 of the best class, 0.28 of the target
        [0.10, 0.20, 0.60, 0.10],  # to be kept
        [0.70, 0.10, 0.15, 0.05],  # to be kept, but of another class: 0.05 of the target
        [0.26, 0.25, 0.25, 0.24],  # too uncertain
        [0.35, 0.30, 0.20, 0.15],  # of no known class
        [0.50, 0.30, 0.15, 0.05],  # no answer
    ]
)
WEIGHT = np.array([1, 1, 1, 0.5, 1, 1, 0], np.float32)
N = len(TARGETS)
ABSOLUTE = {"thresholds": "absolute", "low": 0.28, "middle": 0.4, "high": 0.95, "form": "full"}


def make_step(form="full", k=2, mix=None, weight=WEIGHT, samples=None, probabilities=PROBABILITIES):
    spec = LabelSpec(outputs=("labels",), top_k={"full": 0, "smoothing": 1}.get(form, k))
    records = spec.pack({"logits": np.log(probabilities)} | {"log_probabilities": np.log(probabilities)}, CARD)
    records[weight == 0] = np.zeros((), records.dtype)
    return Step(
        labels=SoftLabels.from_records(records, spec, CARD, weight),
        targets=torch.tensor(TARGETS)[: len(weight)],
        samples=torch.arange(len(weight)) if samples is None else torch.tensor(samples),
        mix=mix,
    )


def log_softmax(values):
    return values - values.max() - np.log(np.exp(values - values.max()).sum())


def calibrated(settings, labels, targets, weight):
    """The paper's rule, one crop after the other: targets [N, C] and weights, by absolute thresholds."""
    due, counts = [], []
    for p, target, answered in zip(labels, targets, weight, strict=True):
        known = target != NO_TARGET
        sure = p.max() if settings.confidence == "max" else p[target] if known else None
        if sure is not None and (sure < settings.low or sure > settings.high):
            due.append(p)
            counts.append(0)
        elif sure is not None and known and sure < settings.middle:
            hard = np.full(len(p), settings.epsilon / (len(p) - 1))
            hard[target] = 1 - settings.epsilon
            due.append(hard)
            counts.append(answered)
        else:
            due.append(p)
            counts.append(answered)
    return np.array(due), np.array(counts)


def ferkd(settings, step, setup=SETUP):
    outputs = dataclasses.replace(make_outputs(setup, len(step.targets), dtype=torch.float64), size=(8, 6))
    return outputs, FerKD(settings, setup).loss(outputs, step)


def mean_loss(targets, counts, outputs):
    logits = outputs.logits.detach().numpy()
    losses = [-(target * log_softmax(z)).sum() for target, z in zip(targets, logits, strict=True)]
    return np.average(losses, weights=counts)


@pytest.mark.parametrize("reading", ["max", "target"])
@pytest.mark.parametrize("form", ["full", "smoothing", "marginal-smoothing", "marginal-renorm"])
def test_labels_are_calibrated_by_absolute_thresholds(form, reading):
    low, middle = (0.28, 0.4) if reading == "max" else (0.04, 0.3)
    settings = FerKDSettings(**{**ABSOLUTE, "form": form, "low": low, "middle": middle}, top_k=2, confidence=reading)
    step = make_step(form)
    outputs, parts = ferkd(settings, step)
    labels = step.labels
    read = labels.probabilities().astype(np.float64)
    # The rule reads what was sent, the loss takes what a form makes of it.
    regions, counts = calibrated(settings, read, TARGETS, WEIGHT)
    soft = read if form != "marginal-renorm" else complete(labels.classes, labels.log_probabilities, 4, "renorm")
    targets = np.where((regions == read).all(axis=1)[:, None], soft, regions)
    assert set(counts.tolist()) == {0, 0.5, 1}
    assert len(parts) == 2
    assert sum(parts.values()).item() == pytest.approx(mean_loss(targets, counts, outputs), rel=2e-3)


def test_what_becomes_of_each_crop_by_hand():
    _, parts = ferkd(FerKDSettings(**ABSOLUTE), make_step())
    method = FerKD(FerKDSettings(**ABSOLUTE), SETUP)
    step = make_step()
    kept, hard = method.regions(step.labels, step.targets, step.samples, torch.ones(N, dtype=torch.bool))
    assert kept.tolist()[:6] == [False, True, True, True, False, True]
    assert hard.tolist()[:6] == [False, True, False, False, False, False]
    assert parts["hard"] > 0
    assert parts["soft"] > 0


@pytest.mark.parametrize("mix", [Mix(kind="mixup", partner=(1, 2, 3, 0, 4, 6, 5), own_share=192), None])
def test_mixed_crops_have_mixed_calibrated_labels(mix):
    settings = FerKDSettings(**ABSOLUTE, mix="fkd")
    step = make_step(mix=mix)
    outputs, parts = ferkd(settings, step)
    targets, counts = calibrated(settings, step.labels.probabilities().astype(np.float64), TARGETS, WEIGHT)
    if mix is not None:
        partners = list(mix.partner)
        targets, counts = 0.75 * targets + 0.25 * targets[partners], counts * counts[partners]
    assert sum(parts.values()).item() == pytest.approx(mean_loss(targets, counts, outputs), rel=1e-3)


def test_softened_labels_by_hand():
    loss = softened_cross_entropy(torch.zeros(1, 5), torch.tensor([2]), 0.1)
    assert loss.item() == pytest.approx(np.log(5))
    certain = torch.tensor([[2.0, 0.0, 0.0]])
    log_q = [2 - np.log(np.e**2 + 2), -np.log(np.e**2 + 2)]
    loss = softened_cross_entropy(certain, torch.tensor([0]), 0.2)
    assert loss.item() == pytest.approx(-0.8 * log_q[0] - 0.1 * log_q[1] - 0.1 * log_q[1])


@pytest.mark.parametrize("form", ["full", "marginal-smoothing"])
def test_confidence_is_the_best_classs_or_the_targets(form):
    step = make_step(form)
    targets = step.targets
    np.testing.assert_allclose(
        confidence(step.labels, targets, "max", 1.0)[:6], PROBABILITIES.max(axis=1)[:6], atol=1e-3
    )
    of_target = confidence(step.labels, targets, "target", 1.0)[:5].numpy()
    due = PROBABILITIES[range(5), TARGETS[:5]]
    if form != "full":  # the third and the fourth share what the best two leave
        due = np.where([0, 0, 0, 1, 0], (1 - 0.70 - 0.15) / 2, due)
    np.testing.assert_allclose(of_target, due, atol=1e-3)


def test_dense_labels_are_read_at_the_temperature():
    step = make_step()
    p = PROBABILITIES**0.5
    due = (p / p.sum(axis=1, keepdims=True)).max(axis=1)
    np.testing.assert_allclose(confidence(step.labels, step.targets, "max", 2.0)[:6], due[:6], atol=1e-3)


def slow_ranks(seen, samples, confidences, length):
    """A list of what was seen of each image."""
    ranks = []
    for sample, sure in zip(samples, confidences, strict=True):
        known = seen.get(sample, [])[-length:]
        below, equal = sum(value < sure for value in known), sum(value == sure for value in known)
        ranks.append((below + equal / 2) / max(len(known), 1))
    return ranks


def test_a_history_keeps_the_latest_crops_of_each_image():
    random = np.random.default_rng(0)
    history, seen = ConfidenceHistory(6, 4), {}
    for _ in range(12):
        samples = random.integers(0, 6, 5).tolist()
        sure = random.integers(0, 4, 5) / 4
        counts = random.random(5) < 0.8
        for sample, value, counted in zip(samples, sure.tolist(), counts, strict=True):
            if counted:
                seen.setdefault(sample, []).append(value)
        asked = torch.tensor(samples), torch.tensor(sure, dtype=torch.float32)
        history.add(*asked, torch.from_numpy(counts))
        np.testing.assert_allclose(history.ranks(*asked), slow_ranks(seen, samples, sure.tolist(), 4))


def test_quantiles_are_of_an_images_own_crops():
    """Three crops of one image: the middle one is kept, the uncertain one gets its hard label, the certain one nothing;
    the only crop of another image is kept however certain.
    """
    settings = FerKDSettings(low=0.1, middle=0.3, high=0.8)
    method = FerKD(settings, SETUP)
    step = make_step(weight=np.ones(4, np.float32), samples=[7, 7, 7, 3], probabilities=PROBABILITIES[[2, 1, 0, 0]])
    targets = torch.tensor([2, 1, 0, 0])
    kept, hard = method.regions(step.labels, targets, step.samples, torch.ones(4, dtype=torch.bool))
    assert kept.tolist() == [True, True, False, True]
    assert hard.tolist() == [False, True, False, False]
    method.eval()
    before = method.history.seen.clone()
    method.regions(step.labels, targets, step.samples, torch.ones(4, dtype=torch.bool))
    assert torch.equal(method.history.seen, before)


def test_unanswered_crops_are_not_remembered():
    method = FerKD(FerKDSettings(form="full"), SETUP)
    step = make_step()
    method.loss(make_outputs(SETUP, N), step)
    assert method.history.seen[:N].tolist() == [1, 1, 1, 1, 1, 1, 0]
    of_target = FerKD(FerKDSettings(form="full", confidence="target"), SETUP)
    of_target.loss(make_outputs(SETUP, N), step)
    assert of_target.history.seen[:N].tolist() == [1, 1, 1, 1, 1, 0, 0]


def test_a_history_is_saved_and_loaded():
    first, second = (FerKD(FerKDSettings(form="full"), SETUP) for _ in range(2))
    first.loss(make_outputs(SETUP, N), make_step())
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.history.values, second.history.values)
    assert set(first.state_dict()) == set(FerKD.equal_on_ranks)


def test_gradients():
    settings = FerKDSettings(**ABSOLUTE, mix="fkd")
    step = make_step(mix=Mix(kind="mixup", partner=(1, 2, 3, 0, 4, 6, 5), own_share=192))
    outputs, _ = ferkd(settings, step)
    method = FerKD(settings, SETUP)
    assert torch.autograd.gradcheck(
        lambda logits: sum(method.loss(dataclasses.replace(outputs, logits=logits), step).values()),
        (outputs.logits,),
    )


def test_a_batch_without_any_counted_crop_is_zero():
    outputs = make_outputs(SETUP, N, dtype=torch.float16)
    parts = FerKD(FerKDSettings(**{**ABSOLUTE, "low": 1.0, "middle": 1.0, "high": 1.0}), SETUP).loss(
        outputs, make_step()
    )
    sum(parts.values()).backward()
    assert sum(parts.values()).item() == 0
    assert (outputs.logits.grad == 0).all()


def test_what_it_asks():
    asks = FerKD.asks(FerKDSettings(mix="selfmix"), make_setup(CARD, crops_per_image=4))
    assert asks.spec == LabelSpec(outputs=("labels",), top_k=5)
    assert (asks.targets, asks.samples, asks.mixing, asks.draw) == (True, True, "self", "selfmix")
    assert not FerKD.asks(FerKDSettings(thresholds="absolute"), SETUP).samples


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"form": "hard"}, "form 'hard' does not say"),
        ({"confidence": "mean"}, "'max' or 'target'"),
        ({"thresholds": "both"}, "'quantile' or 'absolute'"),
        ({"low": 0.5}, r"low <= middle <= high"),
        ({"high": 1.5}, r"low <= middle <= high"),
        ({"epsilon": 1.0}, "epsilon lies from 0 up to 1"),
        ({"history": 1}, "history holds at least"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        FerKD.asks(FerKDSettings(**settings), SETUP)


def test_teachers_and_data_that_do_not_fit_are_refused():
    with pytest.raises(MethodMismatch, match="ferkd needs a teacher of classes that exclude each other"):
        FerKD.asks(FerKDSettings(), make_setup(make_card(activation="sigmoid")))
    with pytest.raises(MethodMismatch, match="say how many images"):
        FerKD.asks(FerKDSettings(), make_setup(CARD, num_samples=0))
    with pytest.raises(MethodMismatch, match="has one class"):
        FerKD.asks(FerKDSettings(), make_setup(make_card(num_classes=1)))
