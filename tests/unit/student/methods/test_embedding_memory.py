"""CRD's memory and the images that it draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from teacherfarm.student.methods.embedding_memory import EmbeddingMemory, _scramble, draw_other_classes
from tests.unit.student.methods.by_hand import unit


def test_begins_as_uniform_noise_that_is_the_same_everywhere():
    memory, same = EmbeddingMemory(400, 128, seed=3), EmbeddingMemory(400, 128, seed=3)
    bound = 1 / (128 / 3) ** 0.5
    assert -bound <= memory.rows.min() < -0.99 * bound
    assert 0.99 * bound < memory.rows.max() <= bound
    assert torch.equal(memory.rows, same.rows)
    assert not torch.equal(memory.rows, EmbeddingMemory(400, 128, seed=4).rows)


def test_a_row_moves_halfway_and_stays_of_length_one():
    memory = EmbeddingMemory(5, 3, seed=0)
    before = memory.rows.clone().double().numpy()
    vectors = np.array([unit(np.array(v)) for v in ([1.0, 2, 3], [-1, 0, 1], [0, 1, 0], [3, 0, 0])])
    # Image 4 comes twice; image 1 got no answer, image 2 does not come.
    memory.move(torch.tensor([4, 0, 1, 4]), torch.tensor(vectors), torch.tensor([1.0, 1, 0, 1]).double(), 0.25)
    after = memory.rows.numpy()
    np.testing.assert_allclose(after[4], unit(0.25 * before[4] + 0.75 * (vectors[0] + vectors[3]) / 2), atol=1e-6)
    np.testing.assert_allclose(after[0], unit(0.25 * before[0] + 0.75 * vectors[1]), atol=1e-6)
    np.testing.assert_array_equal(after[1:4], before[1:4])


def test_exponentials_are_those_of_the_chosen_rows():
    memory = EmbeddingMemory(6, 4, seed=0)
    vectors = torch.randn(2, 4, dtype=torch.float64)
    chosen = torch.tensor([[5, 0, 0], [1, 2, 3]])
    got = memory.exponentials(vectors, chosen, 0.5)
    for n in range(2):
        for k in range(3):
            expected = np.exp(float(vectors[n] @ memory.rows[chosen[n, k]].double()) / 0.5)
            assert got[n, k].item() == pytest.approx(expected)


def test_draws_every_other_class_evenly_and_never_its_own():
    classes = torch.tensor([0, 1, 2, 0, 1, 2, -1, 1])
    drawn = draw_other_classes(classes, torch.tensor([1, 0, 6]), torch.tensor([1, 0, -100]), 6000, seed=5)
    for row, allowed in enumerate(([0, 2, 3, 5, 6], [1, 2, 4, 5, 6, 7], range(8))):
        counts = np.bincount(drawn[row].numpy(), minlength=8)
        assert set(np.flatnonzero(counts)) == set(allowed)
        due = 6000 / len(allowed)
        assert abs(counts[list(allowed)] - due).max() < 5 * due**0.5


def test_a_draw_follows_from_seed_and_image_not_from_its_place_in_the_batch():
    classes = torch.arange(100) % 7
    images = torch.tensor([3, 50, 8])
    drawn = draw_other_classes(classes, images, classes[images], 20, seed=1)
    assert torch.equal(draw_other_classes(classes, images[1:], classes[images[1:]], 20, seed=1), drawn[1:])
    assert not torch.equal(draw_other_classes(classes, images, classes[images], 20, seed=2), drawn)
    assert not torch.equal(drawn[0], drawn[2])


def test_noise_is_splitmix64s():
    golden_ratio = 0x9E3779B97F4A7C15
    numbers = torch.tensor([(n * golden_ratio + 2**63) % 2**64 - 2**63 for n in (1, 2)])
    assert [n % 2**64 for n in _scramble(numbers).tolist()] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
