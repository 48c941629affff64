"""VGG (arXiv 1409.1556), ShuffleNetV2 (arXiv 1807.11164) and MobileNetV2 (arXiv 1801.04381) for 32 x 32 images, with
the strides and widths that distillation papers train.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from teacherfarm.networks.staged_net import StagedNet, conv_norm

VGG_WIDTHS = (64, 128, 256, 512, 512)
MOBILENET_BLOCKS = (
    # (expansion, channels at full width, blocks, stride), by stage
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


def vgg(convolutions: int, classes: int) -> StagedNet:
    """Five groups of ``convolutions`` each (1: VGG-8, 2: VGG-13); the map is halved before the second to fourth."""
    groups: list[nn.Module] = []
    taken = 3
    for number, width in enumerate(VGG_WIDTHS):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if number in (1, 2, 3) else []
        for _ in range(convolutions):
            layers += conv_norm(taken, width)
            taken = width
        groups.append(nn.Sequential(*layers))
    return StagedNet(groups[0], groups[1:], nn.Identity(), taken, classes)


class ShuffleBlock(nn.Module):
    """Half of the channels go by; the other half is transformed; then both are dealt out in turn."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            *conv_norm(half, half, 1), *conv_norm(half, half, groups=half, relu=False), *conv_norm(half, half, 1)
        )

    def forward(self, maps: Tensor) -> Tensor:
        kept, changed = maps.chunk(2, dim=1)
        return deal_out(kept, self.branch(changed))


class ShuffleDown(nn.Module):
    """Halves the map: both branches see all channels."""

    def __init__(self, taken: int, given: int) -> None:
        super().__init__()
        half = given // 2
        self.left = nn.Sequential(
            *conv_norm(taken, taken, stride=2, groups=taken, relu=False), *conv_norm(taken, half, 1)
        )
        self.right = nn.Sequential(
            *conv_norm(taken, half, 1),
            *conv_norm(half, half, stride=2, groups=half, relu=False),
            *conv_norm(half, half, 1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        return deal_out(self.left(maps), self.right(maps))


def deal_out(first: Tensor, second: Tensor) -> Tensor:
    """Channels of two equally wide maps in turn: a b a b ..."""
    return torch.stack([first, second], dim=2).flatten(1, 2)


def shufflenet_v2(widths: Sequence[int], classes: int) -> StagedNet:
    """``widths`` of three stages and of the last convolution. The stem sees single pixels and keeps the map's size."""
    *stages, last = widths
    blocks = [
        nn.Sequential(ShuffleDown(taken, given), *(ShuffleBlock(given) for _ in range(repeats)))
        for taken, given, repeats in zip((24, *stages), stages, (3, 7, 3), strict=False)
    ]
    tail = nn.Sequential(*conv_norm(stages[-1], last, 1))
    return StagedNet(nn.Sequential(*conv_norm(3, 24, 1)), blocks, tail, last, classes)


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow without an activation; a shortcut where the shape stays."""

    def __init__(self, taken: int, given: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = taken * expansion
        self.residual = nn.Sequential(
            *conv_norm(taken, wide, 1),
            *conv_norm(wide, wide, stride=stride, groups=wide),
            *conv_norm(wide, given, 1, relu=False),
        )
        self.adds = stride == 1 and taken == given

    def forward(self, maps: Tensor) -> Tensor:
        changed: Tensor = self.residual(maps)
        return maps + changed if self.adds else changed


def mobilenet_v2(factor: float, classes: int) -> StagedNet:
    """Widths times ``factor``, but for the last convolution's 1280. Its stages end without an activation."""
    taken = int(32 * factor)
    stem = nn.Sequential(*conv_norm(3, taken, stride=2))
    stages: list[nn.Module] = []
    for groups in MOBILENET_BLOCKS:
        blocks: list[nn.Module] = []
        for expansion, width, repeats, stride in groups:
            given = int(width * factor)
            for number in range(repeats):
                blocks.append(InvertedResidual(taken, given, stride if number == 0 else 1, expansion))
                taken = given
        stages.append(nn.Sequential(*blocks))
    return StagedNet(stem, stages, nn.Sequential(*conv_norm(taken, 1280, 1)), 1280, classes)
