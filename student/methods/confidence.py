"""How sure a teacher is of its crops, and how that compares with the other crops of the same image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from teacherfarm.protos.soft_label import SoftLabels
from teacherfarm.student.methods.across_ranks import gather_rows
from teacherfarm.student.methods.teacher_values import beside

Reading = Literal["max", "target"]


def confidence(labels: SoftLabels, targets: Tensor, reading: Reading, temperature: float) -> Tensor:
    """What the teacher gives to its best class, or to the data's own, float32 [N], on ``targets``' device.

    ``temperature``: of dense labels; top-k ones have their own. A class that was not kept gets an even share of the
    rest. Unknown targets: any number.
    """
    like = torch.empty(0, device=targets.device)
    log_p = beside(labels.log_probabilities, like)
    if not labels.is_top_k:
        p = functional.softmax(log_p / labels.divisor(temperature), dim=1)
        return p.amax(dim=1) if reading == "max" else p.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
    p = log_p.exp()
    if reading == "max":
        return p[:, 0]
    found = beside(labels.classes, like).long() == targets.unsqueeze(1)
    rest = (1 - p.sum(dim=1)).clamp(min=0) / max(labels.num_classes - labels.spec.top_k, 1)
    return torch.where(found.any(dim=1), (p * found).sum(dim=1), rest)


class ConfidenceHistory(nn.Module):
    """The last ``length`` confidences of each of ``num_samples`` images, float32, equal in all processes."""

    values: Tensor
    seen: Tensor

    def __init__(self, num_samples: int, length: int) -> None:
        super().__init__()
        self.length = length
        # One row more, for crops that do not count: their number need not be known before they are written.
        self.register_buffer("values", torch.zeros(num_samples + 1, length))
        self.register_buffer("seen", torch.zeros(num_samples + 1, dtype=torch.int64))

    @torch.no_grad()
    def add(self, samples: Tensor, confidences: Tensor, counts: Tensor) -> None:
        """Take in the crops [N] of every process that ``counts`` (bool [N])."""
        rows = torch.where(counts, samples, len(self.seen) - 1)
        rows, confidences = gather_rows(rows), gather_rows(confidences)
        # Crops of one image go into slots of their own: the nth of them into the nth after those seen before.
        order = torch.argsort(rows, stable=True)
        ordered = rows[order]
        nth = torch.arange(len(rows), device=rows.device) - torch.searchsorted(ordered, ordered)
        self.values[ordered, (self.seen[ordered] + nth) % self.length] = confidences[order].to(self.values)
        self.seen.index_add_(0, rows, torch.ones_like(rows))

    @torch.no_grad()
    def ranks(self, samples: Tensor, confidences: Tensor) -> Tensor:
        """The share of an image's known crops that are less sure, from 0 to 1 [N]; equally sure ones count half."""
        known = torch.arange(self.length, device=samples.device) < self.seen[samples].unsqueeze(1)
        values, asked = self.values[samples], confidences.unsqueeze(1)
        below = (known & (values < asked)).sum(dim=1)
        equal = (known & (values == asked)).sum(dim=1)
        return (below + equal / 2) / known.sum(dim=1).clamp(min=1)
