"""Rows of all ranks in one tensor, for losses that couple the crops of a batch. Alone, everything stays as it is.

:func:`teacherfarm.student.losses` scales a mean for DDP's average of gradients; so must whoever uses these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def num_ranks() -> int:
    """How many processes train together."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if together else 1


def gather_rows(rows: Tensor) -> Tensor:
    """[N, ...] of every rank, one after the other, with gradients to each rank's own; equally many on all of them.

    The gradient that a rank's own rows get is the sum over ranks, as if the loss of each rank were added up.
    """
    if num_ranks() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(num_ranks())]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # A copy: what comes in may be somebody else's as well.
        total = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total.chunk(num_ranks())[torch.distributed.get_rank()]
