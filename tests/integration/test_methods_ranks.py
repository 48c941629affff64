"""Two gloo processes take the steps of one process with twice the batch, whatever the method and however unevenly the
answers are spread.

The student has no batch normalisation, and what a method adds of it stands in eval mode: its statistics are each
process's own, as everywhere under DDP.
"""

from __future__ import annotations

import datetime
import traceback

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.losses import NO_TARGET
from teacherfarm.student.methods.method import Step
from tests.method_runs import BATCH, STEPS, TRIALS, build, optimizer_of
from tests.methods import make_head, make_step

torch.set_num_threads(1)
RANKS = 2
WEIGHTS = np.array(
    [
        [1, 0, 1, 1, 1, 1, 0.5, 1],
        [0, 0, 0, 0, 1, 1, 0, 1],  # one rank is starved
        [0, 0, 0, 0, 0, 0, 0, 0],  # both are
    ],
    np.float32,
)


def make_inputs(card, phase, seed):
    """All crops of a step."""
    step = make_step(BATCH, card, phase.asks.spec, seed, weight=WEIGHTS[seed % STEPS], epoch=phase.begin + 0.5)
    step.targets[5] = NO_TARGET
    random = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, 3, 32, 32, generator=random, dtype=torch.float64), step


def rows_of(step, rows):
    return Step(
        labels=step.labels and step.labels.take(rows),
        targets=step.targets[rows],
        samples=step.samples[rows],
        epoch=step.epoch,
    )


def train(trial, card, rows, wrap):
    """Losses, and the weights and memories at the end of each phase."""
    head = make_head(card) if card.has_head else None
    distiller, phases = build(trial, card, head)
    distiller.double()
    losses, weights = [], []
    for number, phase in enumerate(phases):
        distiller.enter(number)
        distiller.train()
        for module in distiller.method.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        model, optimizer = wrap(distiller), optimizer_of(distiller)
        for seed in range(STEPS * number, STEPS * (number + 1)):
            pixels, step = make_inputs(card, phase, seed)
            loss = torch.stack(list(model(pixels[rows], rows_of(step, rows)).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        weights.append({name: each.clone() for name, each in distiller.state_dict().items()})
    return losses, weights


def all_methods(rank, folder, cards):
    """A rank's runs, one file each; a process group for each, so that a method that fails disturbs no other."""
    torch.set_num_threads(1)
    rows = slice(rank * BATCH // RANKS, (rank + 1) * BATCH // RANKS)
    for trial in TRIALS:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/{trial.replace('/', '-')}",
            rank=rank,
            world_size=RANKS,
            timeout=datetime.timedelta(seconds=20),
        )
        try:
            found = train(trial, TeacherCard.from_json(cards[TRIALS[trial].teacher]), rows, DistributedDataParallel)
        except Exception:
            found = traceback.format_exc()
        finally:
            distributed.destroy_process_group()
        torch.save(found, f"{folder}/{trial.replace('/', '-')}-{rank}.pt")


@pytest.fixture(scope="module")
def cards(method_models):
    return {path.parent.name: path.read_text() for path in method_models.glob("*/card.json")}


@pytest.fixture(scope="module")
def on_two_ranks(cards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(all_methods, args=(str(folder), cards), nprocs=RANKS)
    return folder


@pytest.mark.parametrize("trial", TRIALS)
def test_two_ranks_equal_one_process(trial, on_two_ranks, cards):
    card = TeacherCard.from_json(cards[TRIALS[trial].teacher])
    losses, weights = train(trial, card, slice(None), nn.Identity())
    found = [torch.load(on_two_ranks / f"{trial.replace('/', '-')}-{rank}.pt") for rank in range(RANKS)]
    for each in found:
        assert not isinstance(each, str), each
    np.testing.assert_allclose(np.mean([each[0] for each in found], axis=0), losses, rtol=1e-9, atol=1e-12)
    for each in found:
        torch.testing.assert_close(each[1], weights, rtol=1e-9, atol=1e-12)
    assert any(losses)
