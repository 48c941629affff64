"""How good a student is on a labelled data set: accuracy, loss, calibration, agreement with its teacher.

Knows nothing of training or of clients; soft labels come along when the loader is a LabelledLoader.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from teacherfarm.protos.soft_label import SoftLabels
from teacherfarm.student.losses import NO_TARGET
from teacherfarm.student.tally import BINS as CALIBRATION_BINS
from teacherfarm.student.tally import Tally


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Shares from 0 to 1 over ``crops`` crops that had a target; NaN where there were none.

    ``calibration_error`` is the expected calibration error over 15 equal bins of confidence (arXiv 1706.04599).
    ``agreement``: share of the answered crops whose most probable class is the teacher's, too.
    """

    names: ClassVar[tuple[str, str]] = ("top-1", "top-5")
    """What ``top1`` and ``top5`` are called."""

    crops: int
    top1: float
    top5: float
    loss: float
    calibration_error: float
    agreement: float = float("nan")
    teacher_top1: float = float("nan")

    def __str__(self) -> str:
        words = f"top-1 {self.top1:.2%}, top-5 {self.top5:.2%}, loss {self.loss:.4f}, ECE {self.calibration_error:.3f}"
        if self.agreement == self.agreement:
            words += f", agrees with the teacher (top-1 {self.teacher_top1:.2%}) on {self.agreement:.2%}"
        return f"{words} ({self.crops} crops)"


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    device: torch.device | str,
    *,
    split: Callable[[Any], tuple[Tensor, Tensor]] | None = None,
    amp_dtype: torch.dtype | None = None,
    tally: Tally | None = None,
) -> Evaluation:
    """Evaluate in eval mode, without gradients, and restore the mode.

    ``split(batch)`` gives the student's input and the class numbers [N] (NO_TARGET does not count); by default a batch
    is that pair. A LabelledLoader's labels give the agreement. Under torch.distributed each rank evaluates its own
    share, which may be of any size, and all get the same result; pass the bare module, not the DDP wrapper. ``tally``
    keeps what the figures are made of.
    """
    device = torch.device(device)
    sums = torch.zeros(8, dtype=torch.float64, device=device)
    bins = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64, device=device)
    with eval_mode(model), torch.no_grad():
        for item in loader:
            batch, labels = item if len(item) == 2 and isinstance(item[1], SoftLabels) else (item, None)
            inputs, targets = split(batch) if split is not None else batch
            targets = targets.to(device)
            with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
                logits = model(inputs.to(device))
            _count(logits.float(), targets, labels, sums, bins)
            if tally is not None:
                tally.count(logits.float(), targets, labels)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
        torch.distributed.all_reduce(bins)
    if tally is not None:
        tally.sum_over_ranks()
    crops, top1, top5, loss, agreed, answered, teacher_right, teacher_counted = sums.tolist()
    in_bin, confidence, correct = bins.cpu()
    error = float((confidence - correct).abs().sum()) / crops if crops else float("nan")
    return Evaluation(
        crops=int(in_bin.sum()),
        top1=_share(top1, crops),
        top5=_share(top5, crops),
        loss=_share(loss, crops),
        calibration_error=error,
        agreement=_share(agreed, answered),
        teacher_top1=_share(teacher_right, teacher_counted),
    )


def _count(logits: Tensor, targets: Tensor, labels: SoftLabels | None, sums: Tensor, bins: Tensor) -> None:
    """Add one batch to the sums (see evaluate) and to the calibration bins."""
    top1 = logits.argmax(dim=1)
    counted = targets != NO_TARGET
    if labels is not None:
        answered = torch.from_numpy(labels.weight > 0).to(logits.device)
        teachers = torch.from_numpy(labels.top1).to(logits.device)
        sums[4] += ((top1 == teachers) & answered).sum()
        sums[5] += answered.sum()
        sums[6] += ((teachers == targets) & answered & counted).sum()
        sums[7] += (answered & counted).sum()
    logits, targets, top1 = logits[counted], targets[counted], top1[counted]
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    correct = (top1 == targets).double()
    sums[0] += len(targets)
    sums[1] += correct.sum()
    sums[2] += (best == targets[:, None]).any(dim=1).sum()
    sums[3] += functional.cross_entropy(logits, targets, reduction="sum")
    confidence = logits.softmax(dim=1).amax(dim=1).double()
    if confidence.isnan().any():
        raise ValueError(
            "the student's outputs are not numbers (NaN): its training diverged. A lower learning rate helps, or a "
            "warm-up, or clipped gradients, or a smaller weight of the term that grew"
        )
    index = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    bins[0].index_add_(0, index, torch.ones_like(confidence))
    bins[1].index_add_(0, index, confidence)
    bins[2].index_add_(0, index, correct)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """A model in eval mode; its own mode comes back."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
