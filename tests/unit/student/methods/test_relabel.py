import dataclasses

import numpy as np
import pytest
import torch

from teacherfarm.crops.mixing import Mix
from teacherfarm.protos.faults import TemperatureMismatch
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.methods.method import MethodMismatch
from teacherfarm.student.methods.relabel import ReLabel, ReLabelSettings
from tests.methods import make_card, make_outputs, make_setup, make_step

torch.set_num_threads(1)
N = 4
SETUP = make_setup()
CARD = SETUP.card
WEIGHT = [1, 0.5, 1, 0]


def due(targets, outputs, weight):
    log_q = outputs.logits.detach().log_softmax(dim=1).numpy()
    return np.average(-(targets * log_q).sum(axis=1), weights=weight)


@pytest.mark.parametrize("spec", [LabelSpec(), LabelSpec(top_k=3)])
@pytest.mark.parametrize("mix", [None, Mix(kind="mixup", partner=(1, 2, 0, 3), own_share=64)])
def test_labels_are_taken_as_they_come(spec, mix):
    step = make_step(N, CARD, spec, weight=WEIGHT, mix=mix)
    outputs = make_outputs(SETUP, N, dtype=torch.float64)
    loss = ReLabel(ReLabelSettings(mix="mixup"), SETUP).loss(outputs, step)["soft"]
    targets, weight = step.labels.probabilities().astype(np.float64), np.array(WEIGHT)
    if mix is not None:
        partners = list(mix.partner)
        targets, weight = 0.25 * targets + 0.75 * targets[partners], weight * weight[partners]
    assert loss.item() == pytest.approx(due(targets, outputs, weight), rel=1e-5)


def test_gradients():
    step = make_step(N, CARD, LabelSpec(), weight=WEIGHT)
    outputs = make_outputs(SETUP, N, dtype=torch.float64)
    method = ReLabel(ReLabelSettings(), SETUP)
    assert torch.autograd.gradcheck(
        lambda logits: method.loss(dataclasses.replace(outputs, logits=logits), step)["soft"], (outputs.logits,)
    )


def test_what_it_asks_and_refuses():
    asks = ReLabel.asks(ReLabelSettings(mix="cutmix"), SETUP)
    assert (asks.spec, asks.mixing, asks.draw) == (LabelSpec(outputs=("labels",)), "labels", "cutmix")
    with pytest.raises(MethodMismatch, match="relabel needs a teacher of classes that exclude each other"):
        ReLabel.asks(ReLabelSettings(), make_setup(make_card(activation="sigmoid")))
    step = make_step(N, CARD, LabelSpec(top_k=3, temperature=4))
    with pytest.raises(TemperatureMismatch, match="cut at temperature 4, the method wants 1"):
        ReLabel(ReLabelSettings(), SETUP).loss(make_outputs(SETUP, N), step)
