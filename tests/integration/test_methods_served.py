"""Every method of the registry trains against a real server, over both wires, as it does with the teacher in its own
process.
"""

from __future__ import annotations

import functools

import pytest
import torch

from tests.farm_process import FarmProcess
from tests.method_runs import STEPS, TRIALS, train_from

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def farm(method_models, tmp_path_factory):
    with FarmProcess(tmp_path_factory.mktemp("method_farm"), method_models) as farm:
        yield farm


@pytest.fixture(scope="module")
def trained_locally(method_models):
    """``trained_locally(trial)``: the losses with the teacher in this process."""
    return functools.cache(lambda trial: train_from(f"local://{method_models}", trial))


@pytest.mark.parametrize("trial", TRIALS)
def test_a_method_trains_over_a_wire_as_it_does_locally(trial, wire, farm, trained_locally):
    over_the_wire, alone = train_from(getattr(farm, wire), trial), trained_locally(trial)
    assert len(over_the_wire) >= STEPS
    assert any(part != 0 for parts in over_the_wire for part in parts.values())
    for there, here in zip(over_the_wire, alone, strict=True):
        assert there == pytest.approx(here, rel=1e-3, abs=1e-6)
