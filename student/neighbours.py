"""How good the vectors of a model without classes are: is a crop's nearest neighbour of its class?

Knows nothing of training or of clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from teacherfarm.student.evaluation import Evaluation, eval_mode
from teacherfarm.student.losses import NO_TARGET

ROWS = 1024
"""Crops that are compared with all others at a time."""


@dataclass(frozen=True, kw_only=True)
class Neighbours(Evaluation):
    """``top1`` is the share of crops whose nearest other crop, by cosine, is of their class; ``top5`` of those with one
    among the five nearest. Crops that are alone in their class do not count.
    """

    names: ClassVar[tuple[str, str]] = ("nearest neighbour of its class", "one of five nearest")

    def __str__(self) -> str:
        return f"{self.names[0]} {self.top1:.2%}, {self.names[1]} {self.top5:.2%} ({self.crops} crops)"


def evaluate_neighbours(
    model: nn.Module,
    loader: Iterable[Any],
    device: torch.device | str,
    *,
    split: Callable[[Any], tuple[Tensor, Tensor]],
    amp_dtype: torch.dtype | None = None,
) -> Neighbours:
    """As :func:`teacherfarm.student.evaluation.evaluate`, of a model that returns vectors [N, D]; no teacher is asked.

    Under torch.distributed each rank shows its own share, and all get the result for all. Keeps all vectors on the
    device.
    """
    device = torch.device(device)
    vectors, targets = [], []
    with eval_mode(model), torch.no_grad():
        for batch in loader:
            pixels, numbers = split(batch)
            with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
                vectors.append(functional.normalize(model(pixels.to(device)).float(), dim=1))
            targets.append(numbers.to(device))
    everything = _of_all_ranks(vectors, device)
    # Float32 counts to 16 million.
    numbers = _of_all_ranks([each.unsqueeze(1).float() for each in targets], device).flatten().long()
    known = numbers != NO_TARGET
    return compare(everything[known], numbers[known])


def compare(vectors: Tensor, targets: Tensor) -> Neighbours:
    """Of vectors [N, D] of length 1 and their class numbers [N]."""
    none = float("nan")
    if len(vectors) < 2:
        return Neighbours(crops=0, top1=none, top5=none, loss=none, calibration_error=none)
    company = targets.bincount()[targets] > 1
    hits = torch.zeros(2, dtype=torch.int64, device=vectors.device)
    for begin in range(0, len(vectors), ROWS):
        alike = vectors[begin : begin + ROWS] @ vectors.T
        own = torch.arange(len(alike), device=vectors.device)
        alike[own, begin + own] = -torch.inf
        nearest = alike.topk(min(5, len(vectors) - 1), dim=1).indices
        same = targets[nearest] == targets[begin : begin + ROWS, None]
        hits += torch.stack([same[:, 0].sum(), same.any(dim=1).sum()])
    crops = int(company.sum())
    top1, top5 = (hit / crops if crops else none for hit in hits.tolist())
    return Neighbours(crops=crops, top1=top1, top5=top5, loss=none, calibration_error=none)


def _of_all_ranks(parts: list[Tensor], device: torch.device) -> Tensor:
    """[n, D] of every rank, one after the other, however many each has."""
    own = torch.cat(parts) if parts else torch.zeros(0, 0, device=device)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return own
    num_ranks = torch.distributed.get_world_size()
    shape = torch.tensor(own.shape, device=device)
    shapes = [torch.zeros_like(shape) for _ in range(num_ranks)]
    torch.distributed.all_gather(shapes, shape)
    rows, columns = torch.stack(shapes).amax(dim=0).tolist()
    padded = torch.zeros(rows, columns, device=device)
    padded[: own.shape[0], : own.shape[1]] = own
    gathered = [torch.empty_like(padded) for _ in range(num_ranks)]
    torch.distributed.all_gather(gathered, padded)
    return torch.cat([each[: int(size[0])] for each, size in zip(gathered, shapes, strict=True)])
