"""A teacher that exports in a second: a small convolutional net for 32 x 32 crops and 10 classes, always the
same.
"""

from __future__ import annotations

import torch
from torch import nn

from teacherfarm.export.teachers import Teacher

CLASSES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZE = 32
MEAN = (0.491, 0.482, 0.447)
STD = (0.247, 0.243, 0.262)


class TinyNet(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(16, classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        maps = self.block(self.act(self.norm(self.stem(pixels))))
        logits: torch.Tensor = self.head(maps.mean(dim=(2, 3)))
        return logits


def tiny_net(seed: int = 5, channels: int = 3, classes: int = 10) -> TinyNet:
    """The net with weights of a seed, scaled so that its answers differ from crop to crop."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = TinyNet(channels, classes)
        net.norm.running_mean.uniform_(-0.2, 0.2)
        net.norm.running_var.uniform_(0.5, 1.5)
        with torch.no_grad():
            net.head.weight.mul_(20)
    return net.eval()


def make(seed: int = 5) -> Teacher:
    """The source ``tests.tiny_teacher:make``."""
    return Teacher(
        module=tiny_net(seed),
        height=SIZE,
        width=SIZE,
        mean=MEAN,
        std=STD,
        interpolation="bilinear",
        center_crop_fraction=1.0,
        classes=CLASSES,
        name="tiny",
        licence="Apache-2.0",
        weights_source=f"seed {seed}",
    )


def make_other() -> Teacher:
    """The same architecture with other weights: another teacher digest."""
    return make(seed=6)


def make_bare() -> nn.Module:
    """A module that says nothing about itself."""
    return tiny_net()
