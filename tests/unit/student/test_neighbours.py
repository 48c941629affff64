"""Nearest neighbours against a loop over all pairs, and in several processes."""

import math

import pytest
import torch
from torch import distributed, multiprocessing, nn

from teacherfarm.student.losses import NO_TARGET
from teacherfarm.student.neighbours import Neighbours, compare, evaluate_neighbours

torch.set_num_threads(1)


def by_hand(vectors, targets):
    """(crops, nearest right, one of five right)"""
    crops = first = five = 0
    for i, own in enumerate(vectors):
        if targets.count(targets[i]) < 2:
            continue
        crops += 1
        others = [(float(own @ other / (own.norm() * other.norm())), j) for j, other in enumerate(vectors) if j != i]
        nearest = [j for _, j in sorted(others, reverse=True)[:5]]
        first += targets[nearest[0]] == targets[i]
        five += any(targets[j] == targets[i] for j in nearest)
    return crops, first / crops, five / crops


def batches(vectors, targets, size=7):
    return list(zip(vectors.split(size), torch.tensor(targets).split(size), strict=True))


def test_counts_the_nearest_other_crops_of_the_same_class(monkeypatch):
    monkeypatch.setattr("teacherfarm.student.neighbours.ROWS", 4)
    random = torch.Generator().manual_seed(0)
    vectors = torch.randn(30, 6, generator=random) + torch.eye(6)[torch.arange(30) % 4]
    targets = [*(number % 4 for number in range(28)), 8, 9]
    model = nn.Identity().train()
    found = evaluate_neighbours(model, batches(3 * vectors, targets), "cpu", split=lambda batch: batch)
    crops, top1, top5 = by_hand(vectors, targets)
    assert 0 < top1 < top5 < 1
    assert (found.crops, found.top1, found.top5) == (crops, pytest.approx(top1), pytest.approx(top5))
    assert model.training
    assert f"nearest neighbour of its class {top1:.2%}" in str(found)


def test_crops_without_a_class_are_nobodys_neighbours():
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.01], [0.0, 1.0], [0.1, 1.0]])
    targets = [0, 0, NO_TARGET, 1, 1]
    found = evaluate_neighbours(nn.Identity(), batches(vectors, targets), "cpu", split=lambda batch: batch)
    assert (found.crops, found.top1) == (4, 1.0)


def test_nothing_to_compare_is_no_number():
    assert math.isnan(compare(torch.ones(1, 2), torch.tensor([0])).top1)
    assert math.isnan(compare(torch.eye(2), torch.tensor([0, 1])).top1)
    assert isinstance(compare(torch.eye(2), torch.tensor([0, 1])), Neighbours)


def one_rank(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    try:
        vectors, targets = torch.load(f"{folder}/all.pt")
        # The last rank has nothing.
        rows = (slice(0, 9), slice(9, 20), slice(20, 20))[rank]
        own = batches(vectors[rows], targets[rows]) if rank < 2 else []
        found = evaluate_neighbours(nn.Identity(), own, "cpu", split=lambda batch: batch)
        torch.save([found.crops, found.top1, found.top5], f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


def test_ranks_with_unequal_shares_get_the_result_of_all(tmp_path):
    vectors = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    targets = [number % 3 for number in range(20)]
    torch.save((vectors, targets), tmp_path / "all.pt")
    multiprocessing.spawn(one_rank, args=(str(tmp_path),), nprocs=3)
    for rank in range(3):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(by_hand(vectors, targets))
