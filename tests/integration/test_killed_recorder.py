"""kill -9 of a recorder, and of sealing, at random moments: nothing committed is lost, nothing torn, replays identical.

TEACHERFARM_KILLS sets how often (default 12; 100 takes a few minutes).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from teacherfarm.label_store.recorded_labels import RecordedLabels
from teacherfarm.label_store.sealing import seal
from tests.farm_process import ROOT
from tests.recordings import everything, records_of

KILLS = int(os.environ.get("TEACHERFARM_KILLS", "12"))
SAMPLES, VIEWS = 3000, 3
ROWS, PLACES_VIEWS = everything(SAMPLES, VIEWS)
PLACES = PLACES_VIEWS * SAMPLES + ROWS


def replay(folder):
    """What is there, after checking that all of it is right."""
    labels = RecordedLabels.open(str(folder))
    records, present = labels.read(ROWS, PLACES_VIEWS)
    assert (records[present] == records_of(labels.manifest, ROWS, PLACES_VIEWS)[present]).all(), "a torn label"
    assert not labels.damaged
    return set(PLACES[present].tolist())


def start(folder, seed):
    command = [sys.executable, "-m", "tests.recordings", str(folder), str(SAMPLES), str(VIEWS), str(seed)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.timeout(60 + 20 * KILLS)
def test_no_committed_label_is_lost_or_torn(tmp_path):
    chance = random.Random(os.urandom(8) if "CI" not in os.environ else 1)
    committed: set[int] = set()
    for number in range(KILLS):
        writers = [start(tmp_path, seed) for seed in ((number,) if number % 3 else (number, 1000 + number))]
        for writer in writers:
            assert writer.stdout.readline(), "the recorder ended by itself"
        time.sleep(chance.uniform(0, 0.5))
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
        for writer in writers:
            told = writer.communicate()[0]
            # The last line may be cut, in the middle of a number.
            committed |= {int(place) for line in told.split("\n")[:-1] for place in line.split()}
        there = replay(tmp_path)
        assert committed <= there, f"kill {number}: {len(committed - there)} committed labels are lost"
        if number % 4 == 3:
            seal(tmp_path)
            assert replay(tmp_path) == there
    assert len(committed) > 500


SEAL = """
import sys, logging
from teacherfarm.label_store.sealing import seal
print("sealing", flush=True)
seal(sys.argv[1])
"""


@pytest.mark.timeout(60 + 20 * KILLS)
def test_sealing_killed_at_any_moment_changes_no_label(tmp_path):
    """Each round adds a journal, and kills a sealing of it; then one is let through."""
    chance = random.Random(os.urandom(8) if "CI" not in os.environ else 2)
    from teacherfarm.label_store.label_recorder import LabelRecorder
    from tests.recordings import index_of, manifest_of

    index = index_of(SAMPLES)
    manifest = manifest_of(index, VIEWS)
    before: set[int] = set()
    unfinished = 0
    for number in range(KILLS):
        part = np.random.default_rng(number).permutation(len(ROWS))[:700]
        recorder = LabelRecorder(str(tmp_path), manifest, index)
        recorder.add(ROWS[part], PLACES_VIEWS[part], records_of(manifest, ROWS[part], PLACES_VIEWS[part]))
        recorder.close(seal=False)
        before |= set(PLACES[part].tolist())
        sealer = subprocess.Popen([sys.executable, "-c", SEAL, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
        sealer.stdout.readline()
        time.sleep(chance.uniform(0, 0.03))
        sealer.kill()
        sealer.communicate()
        unfinished += sealer.returncode != 0
        assert replay(tmp_path) == before, f"kill {number}"
    assert unfinished, "no sealing was killed: they are faster than this test"
    seal(tmp_path)
    assert replay(tmp_path) == before
    assert len(list((tmp_path / "shards").iterdir())) == 2
    assert not list(tmp_path.rglob("*.part*"))
