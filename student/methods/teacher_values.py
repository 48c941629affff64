"""What a step's soft labels hold, as tensors beside the student's: features, dense labels, weights, a mean over crops.

Float32, or float64 where the student's values are; methods call these with autocast off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacherfarm.student.losses import mean_over_crops
from teacherfarm.student.methods.method import MethodMismatch, Step


def feature(step: Step, name: str, like: Tensor) -> Tensor:
    """The teacher's output of this name [N, ...] on ``like``'s device; zeros where a crop has no label."""
    assert step.labels is not None, "a phase without a teacher"
    return beside(step.labels.output(name), like)


def log_probabilities(step: Step, like: Tensor) -> Tensor:
    """The teacher's log-probabilities [N, C] at temperature 1; they serve as its logits. An ensemble's are scaled
    to give its distribution when divided by its temperature, the only one that they are good for.

    ``like``: the student's logits. Raises MethodMismatch for top-k labels and for other classes than the student's.
    """
    labels = step.labels
    assert labels is not None, "a phase without a teacher"
    if labels.is_top_k:
        raise MethodMismatch(
            f"this method needs the whole distribution, the labels hold its top {labels.spec.top_k} classes: stream or "
            "record dense ones (teacherfarm label --dense; in code LabelSpec())"
        )
    if like.shape != (len(labels), labels.num_classes):
        raise MethodMismatch(
            f"the student's logits are {list(like.shape)} for {len(labels)} labels of {labels.num_classes} classes: "
            "each crop needs a row and each of the teacher's classes a logit, in its order"
        )
    return beside(labels.log_probabilities, like) * (labels.fixed_temperature or 1.0)


def crop_weights(step: Step, like: Tensor) -> Tensor:
    """How much each crop counts [N]; one each in a phase without a teacher."""
    if step.labels is None:
        return torch.ones(len(step.targets), device=like.device, dtype=_number_type(like))
    return beside(step.labels.weight, like)


def weighted_mean(per_crop: Tensor, step: Step, like: Tensor) -> Tensor:
    """The mean of a loss [N] over the crops of all ranks by their weight, scaled for DDP's average of gradients.

    ``like``: the student's values that the loss is of.
    """
    return mean_over_crops(per_crop, crop_weights(step, like), like)


def wide(values: Tensor) -> Tensor:
    """Float32, or float64 where it is."""
    return values.to(_number_type(values))


def beside(values: NDArray[Any], like: Tensor) -> Tensor:
    """An array of a label record on ``like``'s device, float32 or float64 as ``like`` is."""
    # A copy: fields of a record are strided, and torch refuses what is read-only or unaligned.
    return torch.from_numpy(np.array(values)).to(like.device, non_blocking=True).to(_number_type(like))


def _number_type(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32
