"""Rows of all ranks in one tensor, for losses that couple the crops of a batch. Alone, everything stays as it is.

:func:`teacherfarm.student.losses` scales a mean for DDP's average of gradients; so must whoever uses these.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import nn as distributed


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
    if rows.requires_grad:
        return torch.cat(distributed.all_gather(rows.contiguous()))  # type: ignore[no-untyped-call]
    parts = [torch.empty_like(rows) for _ in range(num_ranks())]
    torch.distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
