"""A teacher in this process that knows the patterns of :mod:`tests.unit.student.image_folders`, and mistakes
of it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import nn

from tests.unit.student.fake_teacher import FakeTeacher, make_card
from tests.unit.student.image_folders import pattern

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox")
SIZE = 16


class PatternTeacher(FakeTeacher):
    """``order``: the class that it gives to each folder's pattern; ``bgr``: it was trained on swapped
    channels.
    """

    def __init__(
        self, *, order: tuple[int, ...] = tuple(range(6)), bgr: bool = False, sharpness: float = 1.0, **options
    ):
        card = make_card(len(CLASSES), SIZE, classes=CLASSES, name="patterns")
        super().__init__(dataclasses.replace(card, center_crop_fraction=1.0, crop_scale=(0.5, 1.0)), **options)
        self.templates = np.stack([pattern(number, SIZE) for number in range(len(CLASSES))])
        self.order = order

    def logits(self, crops: np.ndarray) -> np.ndarray:
        distance = ((crops[:, None] / 255.0 - self.templates[None] / 255.0) ** 2).mean(axis=(2, 3, 4))
        logits = np.empty_like(distance)
        logits[:, list(self.order)] = -100 * distance
        return logits


def make_student(num_classes: int) -> nn.Module:
    """The source ``tests.unit.student.pattern_teacher:make_student``; has dropout and batch normalisation."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.BatchNorm1d(48),
        nn.Dropout(0.1),
        nn.Linear(48, num_classes),
    )


def make_nothing(num_classes: int) -> torch.Tensor:
    return torch.zeros(num_classes)


class TwoHeaded(nn.Linear):
    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = super().forward(pixels.mean(dim=(2, 3)))
        return logits, logits


def make_two_headed(num_classes: int) -> nn.Module:
    return TwoHeaded(3, num_classes)
