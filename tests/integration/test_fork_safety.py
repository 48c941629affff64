"""Workers of a DataLoader, however started and whenever, beside a connected client on either wire (guarantee 8)."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest

from tests.farm_process import ROOT

TRAINING_LOOP_S = 90


@pytest.mark.timeout(120 + TRAINING_LOOP_S)
@pytest.mark.parametrize("how", ["fork", "forkserver", "spawn"])
def test_two_epochs_with_workers(how, wire, tiny_farm, tiny_models):
    """One process per way of starting workers: in it persistent or not, before or after the client connects."""
    program = [sys.executable, "-m", "tests.integration.two_epochs", how, getattr(tiny_farm, wire), str(tiny_models)]
    # As a user's shell would start it: nothing that says how grpc must behave.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TRAINING_LOOP_S)
    assert done.returncode == 0, f"exit code {done.returncode}:\n{done.stdout}\n{done.stderr}"
    ways = [f"persistent={p} client_first={c}" for p, c in itertools.product((False, True), repeat=2)]
    assert done.stdout.split("\n") == [f"{way}: 12 batches right" for way in ways] + [""]
