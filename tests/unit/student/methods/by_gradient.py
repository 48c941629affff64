"""A part of a method's loss as a function of one tensor of the student, for torch.autograd.gradcheck."""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from torch import Tensor

from teacherfarm.student.methods.method import Method, Step, StudentOutputs


def gradient_is_right(method: Method, outputs: StudentOutputs, step: Step, part: str, of: str) -> bool:
    """``of``: the tap, "embedding" or "logits". Everything must be float64."""

    def loss(values: Tensor) -> Tensor:
        changed = {"features": {**outputs.features, of: values}} if of in outputs.features else {of: values}
        return method.loss(dataclasses.replace(outputs, **changed), step)[part]

    values = outputs.features[of] if of in outputs.features else cast(Tensor, getattr(outputs, of))
    return torch.autograd.gradcheck(loss, values.detach().requires_grad_(True))
