"""Residual networks for 32 x 32 images: plain (He et al., arXiv 1512.03385) and wide with activations first
(Zagoruyko and Komodakis, arXiv 1605.07146).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from teacherfarm.networks.staged_net import StagedNet, conv_norm


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, ReLU after their sum."""

    def __init__(self, taken: int, given: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(*conv_norm(taken, given, stride=stride), *conv_norm(given, given, relu=False))
        changes = stride != 1 or taken != given
        self.shortcut = nn.Sequential(*conv_norm(taken, given, 1, stride=stride, relu=False) if changes else [])
        self.activation = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        activated: Tensor = self.activation(self.residual(maps) + self.shortcut(maps))
        return activated


def resnet(depth: int, widths: Sequence[int], classes: int) -> StagedNet:
    """6 n + 2 layers; ``widths`` of the stem and of the three stages."""
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1 or len(widths) != 4:
        raise ValueError(f"a residual network has 6 n + 2 layers and 4 widths, got {depth} and {list(widths)}")
    stages = [
        nn.Sequential(ResidualBlock(taken, given, stride), *(ResidualBlock(given, given, 1) for _ in range(blocks - 1)))
        for taken, given, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
    ]
    return StagedNet(nn.Sequential(*conv_norm(3, widths[0])), stages, nn.Identity(), widths[-1], classes)


class PreactivatedBlock(nn.Module):
    """Normalisation and ReLU before each of two convolutions.

    ``changes``: the block that begins a stage of another width. Its shortcut is a convolution that takes the activated
    map, too, so that the activation can end the stage before instead, where it can be tapped.
    """

    def __init__(self, taken: int, given: int, stride: int, *, changes: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(*([] if changes else [nn.BatchNorm2d(taken), nn.ReLU()]))
        self.residual = nn.Sequential(
            *conv_norm(taken, given, stride=stride), nn.Conv2d(given, given, 3, padding=1, bias=False)
        )
        self.shortcut = nn.Sequential(*([nn.Conv2d(taken, given, 1, stride, bias=False)] if changes else []))

    def forward(self, maps: Tensor) -> Tensor:
        added: Tensor = self.residual(self.enter(maps)) + self.shortcut(maps)
        return added


def wide_resnet(depth: int, factor: int, classes: int) -> StagedNet:
    """6 n + 4 layers, stages of 16, 32 and 64 channels times ``factor``."""
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"a wide residual network has 6 n + 4 layers, got {depth}")
    widths = (16, 16 * factor, 32 * factor, 64 * factor)
    stages = [
        nn.Sequential(
            PreactivatedBlock(taken, given, stride, changes=taken != given),
            *(PreactivatedBlock(given, given, 1, changes=False) for _ in range(blocks - 1)),
            nn.BatchNorm2d(given),
            nn.ReLU(),
        )
        for taken, given, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
    ]
    # At factor 1 the first block adds the stem's map as it is, before any activation.
    stem = conv_norm(3, 16) if factor > 1 else [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
    return StagedNet(nn.Sequential(*stem), stages, nn.Identity(), widths[-1], classes)
