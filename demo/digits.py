"""Handwritten digits (scikit-learn's), as crops for a teacher and a student, and the two nets. Knows no farm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from teacherfarm.export import Teacher
from teacherfarm.student.losses import NO_TARGET

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE = 16
"""Height and width of a crop in pixels; the digits themselves are 8 x 8."""
MEAN, STD = (0.3,), (0.35,)
NUM_TRAINING = 1200


@dataclass(frozen=True, kw_only=True)
class Split:
    """Digits uint8 [N, 8, 8] and their classes [N]: some to train with, the others to test with."""

    images: NDArray[np.uint8]
    classes: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_classes: NDArray[np.int64]

    def few_labels(self, per_class: int, seed: int) -> NDArray[np.int64]:
        """The classes of ``per_class`` random digits of each class, NO_TARGET for all the others [N]."""
        draw, kept = np.random.default_rng(seed), np.full(len(self.classes), NO_TARGET)
        for number in range(len(CLASSES)):
            rows = draw.permutation(np.flatnonzero(self.classes == number))[:per_class]
            kept[rows] = number
        return kept


def load() -> Split:
    """scikit-learn's 1797 digits, divided always in the same way."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    classes = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:NUM_TRAINING], order[NUM_TRAINING:]
    return Split(images=images[train], classes=classes[train], test_images=images[test], test_classes=classes[test])


def cut(image: NDArray[np.uint8], draw: np.random.Generator | None = None) -> NDArray[np.uint8]:
    """A crop uint8 [SIZE, SIZE, 1] of a digit: as it is, or turned, scaled and shifted at random."""
    angle, scale, across, down = 0.0, SIZE / 8, 0.0, 0.0
    if draw is not None:
        angle, scale = draw.uniform(-15, 15), scale * draw.uniform(0.85, 1.15)
        across, down = draw.uniform(-1.5, 1.5, 2)
    turn = np.asarray(cv2.getRotationMatrix2D((3.5, 3.5), angle, scale), np.float64)
    turn[:, 2] += (SIZE - 1) / 2 - 3.5 + np.array([across, down])
    return np.asarray(cv2.warpAffine(image, turn, (SIZE, SIZE), flags=cv2.INTER_LINEAR), np.uint8)[..., None]


class Batch(TypedDict):
    """What a DataLoader makes of the data set: crops uint8 [N, 16, 16, 1] and class numbers [N]."""

    crops: Tensor
    targets: Tensor


class Crops(Dataset[dict[str, object]]):
    """One fresh crop of each digit in every epoch, drawn from (seed, epoch, digit) alone."""

    def __init__(self, images: NDArray[np.uint8], targets: NDArray[np.int64], seed: int) -> None:
        self.images, self.targets = images, targets
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, object]:
        draw = np.random.default_rng((self.seed, self.epoch, index))
        return {"crops": cut(self.images[index], draw), "targets": self.targets[index]}

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def _block(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()
    )


def teacher_net() -> nn.Sequential:
    """131 thousand parameters."""
    return nn.Sequential(
        _block(1, 32, 1),
        _block(32, 64, 2),
        _block(64, 64, 1),
        _block(64, 128, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, len(CLASSES)),
    )


def student_net() -> nn.Sequential:
    """4 thousand parameters."""
    return nn.Sequential(
        _block(1, 8, 2), _block(8, 16, 2), nn.Flatten(), nn.Linear(16 * (SIZE // 4) ** 2, len(CLASSES))
    )


def teacher() -> Teacher:
    """The source ``teacherfarm.demo.digits:teacher`` of ``teacherfarm export``; --weights brings what it learned."""
    return Teacher(
        module=teacher_net(),
        height=SIZE,
        width=SIZE,
        mean=MEAN,
        std=STD,
        channel_order="GRAY",
        interpolation="bilinear",
        center_crop_fraction=1.0,
        classes=CLASSES,
        name="digits",
        licence="Apache-2.0",
    )


def num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def accuracy(net: nn.Module, split: Split) -> float:
    """Share of the test digits that a net names rightly."""
    from teacherfarm.student.pixels import to_student

    crops = np.stack([cut(image) for image in split.test_images])
    net.eval()
    with torch.inference_mode():
        best = net(to_student(crops, MEAN, STD)).argmax(dim=1).numpy()
    net.train()
    return float((best == split.test_classes).mean())
