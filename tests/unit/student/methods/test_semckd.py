"""SemCKD against its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from teacherfarm.student.methods.method import MethodMismatch, StudentShape
from teacherfarm.student.methods.semckd import SemCKD, SemCKDSettings
from tests.methods import make_card, make_outputs, make_setup, make_step
from tests.unit.student.methods.by_gradient import gradient_is_right
from tests.unit.student.methods.by_hand import convolve, normalise_batch, pool, unit, values

BATCH = 8
SETTINGS = SemCKDSettings(map_weight=3.0, attention_temperature=0.5)


def parts_for(weight=(1,) * BATCH):
    student = StudentShape(num_classes=10, features={"stage1": (3, 4, 4), "stage2": (4, 2, 2), "stage3": (2, 2, 2)})
    setup = make_setup(make_card(features={"layer1": (4, 4, 4), "layer2": (5, 2, 2)}), student, batch_size=BATCH)
    torch.manual_seed(0)
    method = SemCKD(SETTINGS, setup).double()
    outputs = make_outputs(setup, BATCH, dtype=torch.float64)
    return method, outputs, make_step(BATCH, setup.card, SemCKD.asks(SETTINGS, setup).spec, weight=weight)


def embed_by_hand(embedder, gram):
    first, _, second = embedder
    hidden = np.maximum(values(first) @ gram + values(first, "bias"), 0)
    return unit(values(second) @ hidden + values(second, "bias"))


def by_hand(method, outputs, step, weight):
    students = [outputs.features[tap].detach().numpy() for tap in ("stage1", "stage2", "stage3")]
    teachers = [step.labels.output(name).astype(np.float64) for name in ("layer1", "layer2")]
    black = [np.array([maps[n] * weight[n] for n in range(BATCH)]) for maps in students]
    errors = np.empty((3, 2), object)
    for i, maps in enumerate(students):
        for j, theirs in enumerate(teachers):
            size = min(maps.shape[2], theirs.shape[2])
            projection = method.projections[i][j]
            projected = pool(maps, size, size)
            for place in (0, 3):
                projected = np.maximum(normalise_batch(convolve(projected, values(projection[place]))), 0)
            projected = convolve(projected, values(projection[6]))
            errors[i, j] = (projected - pool(theirs, size, size)) ** 2
    total = 0.0
    for b in range(BATCH):
        if not weight[b]:
            continue
        keys = [
            embed_by_hand(method.keys[j], np.array([np.sum(maps[b] * other) for other in maps]))
            for j, maps in enumerate(teachers)
        ]
        for i, maps in enumerate(black):
            query = embed_by_hand(method.queries[i], np.array([np.sum(maps[b] * other) for other in maps]))
            shares = np.array([math.exp(float(query @ key) / 0.5) for key in keys])
            for j, share in enumerate(shares / shares.sum()):
                total += share * np.mean(errors[i, j][b])
    return 3.0 * total / (sum(weight) * 3)


@pytest.mark.parametrize("weight", [(1,) * BATCH, (1, 0, 1, 1, 0, 1, 1, 1)])
def test_is_attention_between_stages_on_squared_errors(weight):
    method, outputs, step = parts_for(weight)
    expected = by_hand(method, outputs, step, weight)
    assert method.loss(outputs, step)["map"].item() == pytest.approx(expected, rel=1e-6)


def test_attention_sums_to_one_and_differs_from_crop_to_crop():
    method, outputs, step = parts_for()
    students = [outputs.features[tap] for tap in method.taps]
    teachers = [torch.from_numpy(step.labels.output(name).astype(np.float64)) for name in ("layer1", "layer2")]
    attention = method._attention(students, teachers, torch.ones(BATCH, dtype=torch.float64))
    torch.testing.assert_close(attention.sum(dim=2), torch.ones(BATCH, 3, dtype=torch.float64))
    assert (attention.std(dim=0) > 0).all()


@pytest.mark.parametrize("tap", ["stage1", "stage3"])
def test_gradient(tap):
    method, outputs, step = parts_for()
    assert gradient_is_right(method, outputs, step, "map", tap)


def test_nobody_answered_is_a_loss_of_zero_with_a_gradient():
    method, outputs, step = parts_for([0] * BATCH)
    loss = method.loss(outputs, step)["map"]
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(outputs.features["stage1"].grad).all()


def test_refuses_batches_that_its_layers_do_not_fit():
    method, _, _ = parts_for()
    outputs = make_outputs(method.setup, 5, dtype=torch.float64)
    step = make_step(5, method.setup.card, SemCKD.asks(SETTINGS, method.setup).spec)
    with pytest.raises(MethodMismatch, match=r"batches of 8 crops, this one has 5.*drop_last"):
        method.loss(outputs, step)
    with pytest.raises(MethodMismatch, match="needs 4 crops at least, got a batch of 3"):
        SemCKD.asks(SETTINGS, make_setup(batch_size=3))
    with pytest.raises(MethodMismatch, match="whole batches of 8 crops, and there are 7 images"):
        SemCKD.asks(SETTINGS, make_setup(batch_size=8, num_samples=7))


def test_asks_for_whole_maps():
    reduced = make_card(features={"layer1@2x2": (4, 2, 2)})
    with pytest.raises(MethodMismatch, match="gives no output 'layer1'"):
        SemCKD.asks(SETTINGS, make_setup(reduced))
