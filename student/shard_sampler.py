"""A rank's share of a data set, in an order of (seed, epoch) alone, whose next pass can start late without
reading.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset, DistributedSampler


class ShardSampler(DistributedSampler[Any]):
    """Every rank has its own samples and equally many; the few that do not divide are left out, others each
    epoch.

    LabelledLoader calls ``skip_samples`` on a resume, so that consumed batches are not read again. Use it
    where samples do not depend on the order they are read in (crop_dataset's do not).
    """

    def __init__(self, dataset: Dataset[Any], *, rank: int = 0, num_ranks: int = 1, seed: int = 0) -> None:
        super().__init__(dataset, num_replicas=num_ranks, rank=rank, shuffle=True, seed=seed, drop_last=True)
        self._skip = 0

    def skip_samples(self, num_samples: int) -> None:
        """Leave out so many of this rank's samples at the beginning of the next pass."""
        self._skip = num_samples

    def __iter__(self) -> Iterator[Any]:
        skip, self._skip = self._skip, 0
        return itertools.islice(super().__iter__(), skip, None)
