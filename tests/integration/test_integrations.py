"""The examples, each with the real library on two processes (gloo), a real server, and what they were trained with."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from torch import nn

from teacherfarm.student import TeacherClient
from teacherfarm.student.integrations.distillation import IMAGENET_MEAN, IMAGENET_STD
from teacherfarm.student.recipes.finished import load_student
from tests.farm_process import ROOT
from tests.long_runs import HUNG_S, long_run
from tests.tiny_teacher import CLASSES
from tests.unit.student.image_folders import write_images

pytestmark = long_run()

STUDENT = "tests.unit.student.pattern_teacher:make_student"
BATCH, PER_CLASS, EPOCHS = 4, 4, 2


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", CLASSES, PER_CLASS)
    write_images(folder / "val", CLASSES, 1, seed=1)
    return folder


def run(folder, name, images, farm, *options, processes=2, watch="watch"):
    """What each rank kept (tests.integration.watched_example), and what was printed."""
    (folder / watch).mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", processes, "--standalone"]
    command += [ROOT / "tests/integration/watched_example.py", folder / watch, ROOT / f"examples/{name}_student.py"]
    command += [images, "--farm", farm, "--student", STUDENT, "--epochs", EPOCHS, "--batch-size", BATCH]
    command += ["--workers", 1, "--out", folder / "out", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=HUNG_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [np.load(folder / watch / f"{rank}.npz") for rank in range(processes)], done.stdout + done.stderr


def check_trained(ranks, models):
    """Own samples and equal weights on each rank, other crops in each epoch, and each crop with its own label."""
    one, other = ranks
    num_images = len(CLASSES) * PER_CLASS
    seen = {}
    for epoch in range(EPOCHS):
        rows = [np.floor(rank["epochs"]) == epoch for rank in ranks]
        parts = [rank["samples"][row] for rank, row in zip(ranks, rows, strict=True)]
        assert sorted(np.concatenate(parts)) == list(range(num_images))
        seen[epoch] = {
            int(sample): pixels
            for rank, row in zip(ranks, rows, strict=True)
            for sample, pixels in zip(rank["samples"][row], rank["pixels"][row], strict=True)
        }
    assert not any(np.array_equal(seen[0][sample], seen[1][sample]) for sample in seen[0])
    assert list(one["samples"][: num_images // 2]) != list(one["samples"][num_images // 2 :])
    assert np.array_equal(one["weights"], other["weights"])
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    with TeacherClient(f"local://{models}") as teacher:
        for rank in ranks:
            pixels = np.rint((rank["pixels"] * std + mean) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
            right = teacher.label(np.ascontiguousarray(pixels)).log_probabilities
            np.testing.assert_allclose(rank["labels"], right, rtol=0, atol=2e-2)


EXAMPLES = {
    "lightning": ("val_top1", ["--devices", 2]),
    "transformers": ("eval_top1", []),
    "accelerate": ("student  top-1", []),
    "timm": ("averaged student  top-1", []),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_on_two_processes(name, tiny_farm, tiny_models, images, tmp_path):
    words, options = EXAMPLES[name]
    farm = tiny_farm.zmq if name in ("lightning", "accelerate") else tiny_farm.grpc
    ranks, printed = run(tmp_path, name, images, farm, *options)
    check_trained(ranks, tiny_models)
    assert words in printed
    student = load_student(tmp_path / "out")
    weights = nn.utils.parameters_to_vector(student.parameters()).detach().numpy()
    # timm's example keeps the average.
    assert np.array_equal(weights, ranks[0]["weights"]) == (name != "timm")
    assert np.abs(weights - ranks[0]["weights"]).max() < 0.5
