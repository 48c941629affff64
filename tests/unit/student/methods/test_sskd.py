"""Stage-by-stage distillation: what each phase trains, on which loss, and what stands still."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from teacherfarm.student.losses import hard_cross_entropy
from teacherfarm.student.methods.distiller import Distiller
from teacherfarm.student.methods.method import MethodMismatch
from teacherfarm.student.methods.sskd import SSKD, SSKDSettings
from teacherfarm.student.methods.student_taps import TappedStudent
from tests.methods import make_card, make_outputs, make_setup, make_step
from tests.unit.student.methods.by_gradient import gradient_is_right
from tests.unit.student.methods.by_hand import pool, values

STAGES = (("stage1", "layer1"), ("stage2", "layer2"), ("stage3", "layer3"))
CARD = make_card(features={"layer1": (6, 8, 8), "layer2": (16, 4, 4), "layer3": (24, 4, 4)})


class Student(nn.Module):
    """Three stages with batch normalisation and dropout; more layers behind the last."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        for number, (taken, given) in enumerate(((3, 6), (6, 10), (10, 12)), 1):
            layers = nn.Conv2d(taken, given, 3, 2, 1), nn.BatchNorm2d(given), nn.ReLU(inplace=True), nn.Dropout(0.1)
            setattr(self, f"stage{number}", nn.Sequential(*layers))
        self.neck = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 10)

    def forward(self, pixels):
        return self.head(self.neck(self.stage3(self.stage2(self.stage1(pixels))).mean(dim=(2, 3))))


def distiller_of(settings=None, epochs=8):
    tapped = TappedStudent(Student(), [tap for tap, _ in STAGES])
    setup = make_setup(CARD, tapped.measure(16, 16), epochs=epochs)
    return Distiller(tapped, SSKD(settings or SSKDSettings(), setup))


def test_phases_share_the_epochs_and_ask_for_their_own_stage():
    phases = SSKD.phases(SSKDSettings(), make_setup(CARD, epochs=10))
    assert [(phase.begin, phase.end) for phase in phases] == [(0, 2), (2, 5), (5, 8), (8, 10)]
    # The student's last map is 2 x 2 and the teacher's was exported as it is: it is pooled here.
    assert [phase.asks.spec and phase.asks.spec.outputs for phase in phases] == [
        ("layer1",),
        ("layer2",),
        ("layer3",),
        None,
    ]
    assert [phase.asks.targets for phase in phases] == [False, False, False, True]
    phases = SSKD.phases(SSKDSettings(head_epochs=4), make_setup(CARD, epochs=10))
    assert [phase.end for phase in phases] == [2, 4, 6, 10]


@pytest.mark.parametrize("error", ["mean", "sum"])
@pytest.mark.parametrize("phase", [0, 1, 2])
def test_a_stage_is_the_squared_error_of_its_adapted_map(phase, error):
    setup = make_setup(CARD)
    method = SSKD(SSKDSettings(error=error), setup).double()
    method.enter(phase, nn.Identity())
    tap, name = STAGES[phase]
    outputs = make_outputs(setup, 4, dtype=torch.float64)
    step = make_step(
        4, CARD, SSKD.phases(method.settings, make_setup(CARD, epochs=4))[phase].asks.spec, weight=[1, 0, 1, 1]
    )
    maps, teacher = outputs.features[tap].detach().numpy(), step.labels.output(name).astype(np.float64)
    if phase:  # other widths: a convolution of 1 x 1
        weight, bias = values(method.adapters[phase]), values(method.adapters[phase], "bias")
        maps = np.einsum("oc,nchw->nohw", weight[:, :, 0, 0], maps) + bias[None, :, None, None]
    else:
        assert isinstance(method.adapters[0], nn.Identity)
    teacher = pool(teacher, *maps.shape[2:])
    squares = [np.square(maps[n] - teacher[n]) for n in (0, 2, 3)]
    expected = np.mean([s.mean() if error == "mean" else s.sum() for s in squares])
    assert method.loss(outputs, step)["map"].item() == pytest.approx(expected, rel=1e-6)
    assert gradient_is_right(method, outputs, step, "map", tap)


def test_the_last_phase_is_the_datas_labels_alone():
    setup = make_setup(CARD)
    method = SSKD(SSKDSettings(), setup)
    method.enter(3, nn.Identity())
    outputs, step = make_outputs(setup, 4), make_step(4, CARD, None)
    assert method.loss(outputs, step) == {"ce": hard_cross_entropy(outputs.logits, step.targets)}


def test_each_phase_trains_its_part_and_nothing_else_moves():
    distiller = distiller_of()
    phases = SSKD.phases(SSKDSettings(), distiller.method.setup)
    moved = []
    for number, phase in enumerate(phases):
        distiller.enter(number)
        distiller.train()
        before = copy.deepcopy(distiller.state_dict())
        trained = [weight for weight in distiller.parameters() if weight.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1, weight_decay=0.1)
        (loss,) = distiller(torch.rand(4, 3, 16, 16), make_step(4, CARD, phase.asks.spec)).values()
        loss.backward()
        assert all(weight.grad is not None for weight in trained), "DDP would wait for it"
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after = distiller.state_dict()
        moved.append({name for name in after if not torch.equal(after[name], before[name])})
    parts = [{name.rpartition(".")[0] for name in names} for names in moved]
    assert parts == [
        {"student.model.stage1.0", "student.model.stage1.1"},
        {"student.model.stage2.0", "student.model.stage2.1", "method.adapters.1"},
        {"student.model.stage3.0", "student.model.stage3.1", "method.adapters.2"},
        {"student.model.neck", "student.model.head"},
    ]
    assert not distiller.student.model.stage2[3].training  # a finished stage's dropout is off


def test_a_finished_stage_answers_the_same_in_later_phases():
    distiller = distiller_of()
    pixels = torch.rand(4, 3, 16, 16)
    distiller.enter(1)
    first = distiller.student(pixels).features["stage1"]
    torch.testing.assert_close(distiller.student(pixels).features["stage1"], first, rtol=0, atol=0)


def test_an_adapter_everywhere_where_asked():
    method = SSKD(SSKDSettings(adapter="always"), make_setup(CARD))
    assert [type(adapter) for adapter in method.adapters] == [nn.Conv2d] * 3


def test_refuses_what_does_not_fit():
    with pytest.raises(MethodMismatch, match=r"student has 3 .* teacher 1 .*--student-taps and --teacher-taps"):
        SSKD.asks(SSKDSettings(), make_setup(make_card(features={"layer1": (8, 8, 8)})))
    with pytest.raises(MethodMismatch, match="3 epochs with head_epochs=0 are too few"):
        SSKD.phases(SSKDSettings(), make_setup(CARD, epochs=3))
    with pytest.raises(ValueError, match="error is one of mean, sum, got 'max'"):
        SSKD.asks(SSKDSettings(error="max"), make_setup(CARD))
    tapped = TappedStudent(Student(), ["stage2", "stage1"])
    card = make_card(features={"layer1": (6, 8, 8), "layer2": (16, 4, 4)})
    with pytest.raises(MethodMismatch, match="stage 'stage1' of the student has no parameters"):
        SSKD.asks(SSKDSettings(), make_setup(card, tapped.measure(16, 16)))
