"""Counts, while a student is evaluated, what single figures hide: who is taken for whom, how sure, and where student
and teacher part. Knows no models and no loaders.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacherfarm.protos.soft_label import LABELS, SoftLabels
from teacherfarm.student.losses import NO_TARGET

BINS = 15
"""Of confidence, equally wide, as expected calibration error takes them (arXiv 1706.04599)."""
MOST_CLASSES = 4096
"""Confusion takes 16 bytes for each pair of classes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """One model's answers to crops whose class is known.

    ``confusion`` int64 [C, C]: rows are the data's classes, columns the model's. ``bins`` float64 [3, 15]: crops, sum
    of their confidence, and how many were right, by confidence.
    """

    confusion: NDArray[np.int64]
    bins: NDArray[np.float64]

    @property
    def crops(self) -> int:
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """NaN without crops."""
        return float(np.trace(self.confusion)) / self.crops if self.crops else float("nan")

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, 0 to 1; NaN without crops."""
        _, confidence, right = self.bins
        return float(np.abs(confidence - right).sum()) / self.crops if self.crops else float("nan")

    def recall(self) -> NDArray[np.float64]:
        """The share of each class's crops that was recognised [C]; NaN for a class without crops."""
        sizes = self.confusion.sum(axis=1)
        return np.where(sizes, np.diag(self.confusion) / np.maximum(sizes, 1), np.nan)


class Tally:
    """``evaluate(..., tally=Tally(num_classes))``; afterwards :attr:`student` and, where labels came along,
    :attr:`teacher` and :attr:`outcomes`. Under torch.distributed every rank has the sums of all.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        if num_classes > MOST_CLASSES:
            raise ValueError(f"a tally is for at most {MOST_CLASSES} classes, got {num_classes}: evaluate without one")
        self.num_classes = num_classes
        self._confusion = torch.zeros(2, num_classes, num_classes, dtype=torch.int64, device=device)
        self._bins = torch.zeros(2, 3, BINS, dtype=torch.float64, device=device)
        self._outcomes = torch.zeros(5, dtype=torch.int64, device=device)

    def count(self, logits: Tensor, targets: Tensor, labels: SoftLabels | None) -> None:
        """One batch: logits float [N, C], class numbers [N], and the teacher's answers to the same crops."""
        device = self._bins.device
        known = (targets != NO_TARGET).to(device)
        targets = targets.to(device)
        confidence, student = logits.detach().to(device).float().softmax(dim=1).max(dim=1)
        self._add(0, confidence[known], student[known], targets[known])
        if labels is None or LABELS not in labels.spec.outputs:
            return
        known &= torch.from_numpy(labels.weight > 0).to(device)
        top1 = labels.top1
        sure = torch.from_numpy(labels.probabilities()[np.arange(len(top1)), top1]).to(device)
        teacher, student, targets = torch.from_numpy(top1).to(device)[known], student[known], targets[known]
        self._add(1, sure[known], teacher, targets)
        right, taught = student == targets, teacher == targets
        wrong = ~right & ~taught
        kinds = (right & taught, right & ~taught, ~right & taught, wrong & (student == teacher))
        rest = wrong & (student != teacher)
        self._outcomes += torch.stack([kind.sum() for kind in (*kinds, rest)])

    def sum_over_ranks(self) -> None:
        """Once, after the last batch."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for counted in (self._confusion, self._bins, self._outcomes):
                torch.distributed.all_reduce(counted)

    @property
    def student(self) -> Answers:
        return self._answers(0)

    @property
    def teacher(self) -> Answers | None:
        """None where no labels came along."""
        return self._answers(1) if self._confusion[1].any() else None

    @property
    def outcomes(self) -> dict[str, int]:
        """Crops that the teacher answered, too, by who was right."""
        names = ("both right", "only the student", "only the teacher", "both wrong alike", "both wrong, differently")
        return dict(zip(names, self._outcomes.tolist(), strict=True))

    def _add(self, model: int, confidence: Tensor, answers: Tensor, targets: Tensor) -> None:
        cells = targets * self.num_classes + answers
        self._confusion[model] += torch.bincount(cells, minlength=self.num_classes**2).view_as(self._confusion[model])
        index = (confidence * BINS).long().clamp(max=BINS - 1)
        values = (torch.ones_like(confidence), confidence, answers == targets)
        for row, value in zip(self._bins[model], values, strict=True):
            row.index_add_(0, index, value.to(row.dtype))

    def _answers(self, model: int) -> Answers:
        return Answers(confusion=self._confusion[model].cpu().numpy(), bins=self._bins[model].cpu().numpy())
