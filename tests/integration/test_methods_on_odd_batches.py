"""What every method of the registry owes to any run: the same loss under autocast, and nothing from crops without an
answer, whatever stands in their records.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from teacherfarm.protos.teacher_card import TeacherCard
from tests.method_runs import BATCH, TRIALS, build
from tests.methods import make_head, make_step

torch.set_num_threads(1)
SOME = [1, 0, 1, 1, 0, 1, 0.5, 1]


@pytest.fixture(scope="module")
def cards(method_models):
    return {path.parent.name: TeacherCard.from_json(path.read_text()) for path in method_models.glob("*/card.json")}


def run_step(trial, card, weight, *, garbage=False, autocast=False):
    """Each phase's parts and gradients in one step. ``garbage``: crops without an answer hold another's, not zeros."""
    distiller, phases = build(trial, card, make_head(card) if card.has_head else None)
    results = []
    for number, phase in enumerate(phases):
        distiller.enter(number)
        distiller.train()
        step = make_step(BATCH, card, phase.asks.spec, seed=number, weight=weight, epoch=phase.begin + 0.5)
        if step.labels is not None and garbage:
            records = step.labels.records.copy()
            records[np.asarray(weight) == 0] = records[0]
            step = dataclasses.replace(step, labels=dataclasses.replace(step.labels, records=records))
        pixels = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(number))
        outputs = distiller.student(pixels)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            parts = distiller.method.loss(outputs, step)
        distiller.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        gradients = {name: each.grad for name, each in distiller.named_parameters() if each.requires_grad}
        results.append(({name: part.detach() for name, part in parts.items()}, gradients))
    return results


@pytest.mark.parametrize("trial", TRIALS)
def test_autocast_changes_no_loss(trial, cards):
    card = cards[TRIALS[trial].teacher]
    half, whole = (run_step(trial, card, SOME, autocast=autocast) for autocast in (True, False))
    torch.testing.assert_close(half, whole, rtol=1e-5, atol=1e-7)
    assert {part.dtype for parts, _ in half for part in parts.values()} == {torch.float32}


@pytest.mark.parametrize("trial", TRIALS)
def test_what_stands_in_a_record_without_an_answer_counts_nothing(trial, cards):
    card = cards[TRIALS[trial].teacher]
    zeros, others = (run_step(trial, card, SOME, garbage=garbage) for garbage in (False, True))
    torch.testing.assert_close(zeros, others, rtol=0, atol=0)


@pytest.mark.parametrize("trial", TRIALS)
def test_no_answer_at_all_gives_gradients_that_are_numbers(trial, cards):
    for parts, gradients in run_step(trial, cards[TRIALS[trial].teacher], [0] * BATCH):
        assert all(part.isfinite() for part in parts.values())
        missing = [name for name, gradient in gradients.items() if gradient is None]
        assert not missing, f"without a gradient, DDP would wait for {missing}"
        assert all(gradient.isfinite().all() for gradient in gradients.values())
