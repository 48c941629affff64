"""Two gloo processes with unevenly spread answers take the same steps as one process with all crops."""

import numpy as np
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.losses import NO_TARGET, soft_cross_entropy, with_hard_labels
from tests.unit.student.fake_teacher import make_labels

STEPS, N, INPUTS, CLASSES = 3, 8, 5, 7


def crops(step):
    generator = np.random.default_rng(step)
    inputs = torch.tensor(generator.normal(size=(N, INPUTS)), dtype=torch.float32)
    logits = generator.normal(size=(N, CLASSES)) * 2
    weight = (generator.random(N) > 0.4).astype(np.float32)
    if step == 1:
        weight[: N // 2] = 0  # rank 0 is starved
    if step == 2:
        weight[:] = 0  # everybody is
    targets = torch.tensor(generator.integers(CLASSES, size=N))
    targets[generator.random(N) > 0.7] = NO_TARGET
    return inputs, make_labels(logits, LabelSpec(top_k=3), weight=weight), targets


def train(model, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(STEPS):
        inputs, labels, targets = crops(step)
        optimizer.zero_grad()
        logits = model(inputs[rows])
        loss = soft_cross_entropy(logits, labels.take(rows))
        with_hard_labels(loss, logits, targets[rows], hard_weight=0.3).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def make_model():
    torch.manual_seed(0)
    return nn.Linear(INPUTS, CLASSES)


def one_rank(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        weights = train(DistributedDataParallel(make_model()), slice(rank * N // 2, (rank + 1) * N // 2))
        torch.save(weights, f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path):
    torch.set_num_threads(1)
    multiprocessing.spawn(one_rank, args=(str(tmp_path),), nprocs=2)
    alone = train(make_model(), slice(None))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone)
