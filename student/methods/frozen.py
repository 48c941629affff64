"""What stands still of a student while a part of it is trained. Knows PyTorch modules alone."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn


def train_only(model: nn.Module, names: Collection[str]) -> None:
    """Gradients for these parameters and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def still(module: nn.Module) -> bool:
    """Whether it has parameters and none of them is trained."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def eval_where_still(model: nn.Module) -> None:
    """Eval mode for every module that is trained nowhere: running statistics stay, dropout is off."""
    if still(model):
        model.eval()
        return
    for child in model.children():
        eval_where_still(child)
