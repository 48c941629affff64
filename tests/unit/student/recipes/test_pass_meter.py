"""The figures of one pass: means of the loss's parts, now and then on TensorBoard, an end where there is no number."""

import math

import pytest
import torch

from teacherfarm.student.recipes.pass_meter import STEPS_PER_READING, PassMeter
from teacherfarm.student.recipes.ranks import Ranks

ALONE = Ranks(rank=0, num_ranks=1, device=torch.device("cpu"))


class Loader:
    stall = 0.25

    def __len__(self):
        return 100


class Log:
    def __init__(self):
        self.steps = []

    def step(self, step, **scalars):
        self.steps.append((step, scalars))


def meter(log=None, steps=0):
    return PassMeter("a pass", loader=Loader(), ranks=ALONE, log=log, steps=steps, done_before=0)


def test_parts_are_means_over_batches():
    counted = meter()
    for batch in range(25):
        counted.batch({"kd": torch.tensor(float(batch)), "ce": torch.tensor(2.0, requires_grad=True)}, 4)
        if batch % 5 == 4:
            counted.step()
    assert counted.finish() == {"ce": 2.0, "kd": 12.0}
    assert counted.steps == 5
    assert counted.images_per_s > 0
    assert meter().finish() == {}


def test_recent_means_are_told_every_so_many_steps():
    log = Log()
    counted = meter(log, steps=STEPS_PER_READING)
    for value in (*range(STEPS_PER_READING), *[100.0] * STEPS_PER_READING):
        counted.batch({"kd": torch.tensor(float(value)), "ce": torch.tensor(1.0)}, 4)
        counted.step()
    counted.close()
    (first, earlier), (second, later) = log.steps
    assert (first, second) == (2 * STEPS_PER_READING, 3 * STEPS_PER_READING)
    assert (earlier["loss/kd"], later["loss/kd"]) == ((STEPS_PER_READING - 1) / 2, 100.0)
    assert (later["loss"], later["loss/ce"], later["stall"]) == (101.0, 1.0, 0.25)


def test_a_loss_that_is_no_number_is_named_by_its_parts():
    counted = meter(steps=STEPS_PER_READING - 1)
    counted.batch({"kd": torch.tensor(math.nan), "ce": torch.tensor(1.0)}, 4)
    with pytest.raises(ValueError, match=r"the loss is nan at step 20 \(kd nan, ce 1\): try a lower --lr"):
        counted.step()
