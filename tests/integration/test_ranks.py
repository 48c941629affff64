"""Students under torch.distributed: disjoint samples, equal steps, and all finish when the teacher of one
falls silent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from teacherfarm.student import TeacherClient, Timeouts
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.losses import soft_cross_entropy
from tests.farm_process import ROOT, wait_for
from tests.long_runs import HUNG_S, long_run
from tests.tiny_teacher import CLASSES
from tests.unit.student.image_folders import write_images

BATCH, SILENT_AFTER = 8, 3


def one_rank(rank, address, folder, crops, pauses):
    """Train one epoch; before step 3 a rank that ``pauses`` lets the test silence its teacher."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    dataset = [{"crops": torch.from_numpy(crop), "index": index} for index, crop in enumerate(crops)]
    sampler = DistributedSampler(dataset)
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Flatten(), nn.Linear(32 * 32 * 3, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    samples, unanswered = [], 0
    try:
        with TeacherClient(address, timeouts=Timeouts(answer_s=0.5), on_starved="skip") as teacher:
            loader = LabelledLoader(
                DataLoader(dataset, batch_size=BATCH, sampler=sampler),
                teacher,
                lambda b: b["crops"],
                prefetch_batches=2,
            )
            loader.set_epoch(4)
            for step, (batch, labels) in enumerate(loader):
                if pauses and step == SILENT_AFTER:
                    (folder / "ready-for-silence").touch()
                    wait_for((folder / "silent").exists)
                assert len(labels) == len(batch["index"]) == BATCH
                optimizer.zero_grad()
                soft_cross_entropy(model(batch["crops"].float() / 255), labels).backward()
                optimizer.step()
                samples += batch["index"].tolist()
                unanswered += int((labels.weight == 0).sum())
    finally:
        distributed.destroy_process_group()
    torch.save(
        {"samples": samples, "unanswered": unanswered, "weights": list(model.parameters())}, folder / f"{rank}.pt"
    )


def run_ranks(addresses, folder, crops, *, pauses):
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=one_rank, args=(rank, address, folder, crops, pauses and rank == 1), daemon=True)
        for rank, address in enumerate(addresses)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def ended(ranks, folder):
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_two_ranks_see_disjoint_samples(tiny_farm, tiny_crops, tmp_path):
    ranks = run_ranks([tiny_farm.zmq, tiny_farm.grpc], tmp_path, tiny_crops[:64], pauses=False)
    one, other = ended(ranks, tmp_path)
    assert sorted(one["samples"] + other["samples"]) == list(range(64))
    assert one["samples"] != sorted(one["samples"])  # set_epoch shuffled them
    assert one["unanswered"] == other["unanswered"] == 0
    torch.testing.assert_close(one["weights"], other["weights"], rtol=0, atol=0)


def test_ranks_finish_together_when_one_of_them_starves(tiny_farm, start_farm, tiny_crops, tmp_path):
    farm = start_farm()
    ranks = run_ranks([tiny_farm.zmq, farm.zmq], tmp_path, tiny_crops[:160], pauses=True)
    wait_for((tmp_path / "ready-for-silence").exists, timeout_s=60)
    farm.pause()
    (tmp_path / "silent").touch()
    fed, starved = ended(ranks, tmp_path)
    assert len(fed["samples"]) == len(starved["samples"]) == 80
    assert not set(fed["samples"]) & set(starved["samples"])
    assert fed["unanswered"] == 0
    # Three batches were consumed and at most three more were answered already.
    assert starved["unanswered"] >= 80 - 6 * BATCH
    torch.testing.assert_close(fed["weights"], starved["weights"], rtol=0, atol=0)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", CLASSES, 4)
    write_images(folder / "val", CLASSES, 1, seed=1)
    return folder


@long_run()
def test_distill_under_torchrun(tiny_farm, images, tmp_path: Path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    distill = ["-m", "teacherfarm.cli", "distill", images, "--teacher-address", tiny_farm.grpc, "--out", tmp_path]
    options = ["--student", "tests.unit.student.pattern_teacher:make_student", "--epochs", 2, "--batch-size", 5]
    more = ["--workers", 1, "--device", "cpu", "--lr", 0.1, "--measure-link", 0.2]
    done = subprocess.run(
        list(map(str, [*command, *distill, *options, *more])),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HUNG_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2  loss") == 1  # one rank speaks
    assert json.loads((tmp_path / "result.json").read_text())["crops"] == 10
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [
        f"step-{step:09}{rank}.pt" for step in (4, 8) for rank in ("", ".rank1")
    ]
