import numpy as np
import pytest

from teacherfarm.crops.counter_random import random_words


@pytest.mark.parametrize(
    ("seed", "sample", "view", "draw", "words"),
    [
        # The known answers that the generator's authors publish for philox4x32-10.
        (0, 0, 0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, 2**64 - 1, 2**32 - 1, 2**32 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x299F31D0A4093822,
            0x85A308D3243F6A88,
            0x13198A2E,
            0x03707344,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_published_answers(seed, sample, view, draw, words):
    assert tuple(random_words(seed, sample, view, draw).tolist()) == words


def test_many_counters_at_once_equal_one_by_one():
    samples = np.array([3, 2**40 + 1, 2**64 - 1], np.uint64)
    together = random_words(5, samples[:, None], np.arange(4), 9)
    assert together.shape == (4, 3, 4)
    for row, sample in enumerate(samples):
        for view in range(4):
            np.testing.assert_array_equal(together[:, row, view], random_words(5, sample, view, 9))
