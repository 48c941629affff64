"""One process, or one of several under torchrun: the device, the rank, and which samples are this rank's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch

PATIENCE = timedelta(days=1)
"""How long a collective may take: a rank that waits for its teacher must not make the others give up."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that train together."""

    rank: int
    num_ranks: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank; all ranks ask together."""
        if self.num_ranks == 1:
            return here
        flag = torch.tensor(float(here), device=self.device)
        torch.distributed.all_reduce(flag)
        return bool(flag.item())

    def sum(self, here: Sequence[int]) -> list[int]:
        """The sums over all ranks, which ask together."""
        counts = torch.tensor(here, dtype=torch.int64, device=self.device)
        if self.num_ranks > 1:
            torch.distributed.all_reduce(counts)
        return [int(count) for count in counts.tolist()]

    def meet(self) -> None:
        """Wait until all ranks are here."""
        if self.num_ranks > 1:
            torch.distributed.barrier()

    def share(self, num_samples: int) -> range:
        """This rank's part of a data set to evaluate: disjoint, nothing twice, at most one sample more than
        others.
        """
        return range(self.rank, num_samples, self.num_ranks)


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the others that torchrun started, if it did; NCCL on GPUs, gloo on CPUs. ``device``: "auto",
    "cpu", "cuda".
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch {torch.__version__} finds no GPU here; use --device cpu")
    if "TORCHELASTIC_RUN_ID" not in os.environ and "RANK" not in os.environ:
        yield Ranks(rank=0, num_ranks=1, device=torch.device(device))
        return
    here = torch.device(device, int(os.environ.get("LOCAL_RANK", "0"))) if device == "cuda" else torch.device(device)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    torch.distributed.init_process_group("nccl" if here.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(rank=torch.distributed.get_rank(), num_ranks=torch.distributed.get_world_size(), device=here)
    finally:
        torch.distributed.destroy_process_group()
