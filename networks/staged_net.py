"""What the networks for small images have in common: stages one after the other, each with a name to tap it by."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class StagedNet(nn.Module):
    """``stem`` -> ``layer1`` ... ``layerN`` -> ``tail`` -> mean over the map -> ``classifier``; logits [N, classes].

    A stage's output is what the next one takes: a map after its last activation, wherever the network has one there.
    """

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], tail: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.stages = tuple(f"layer{number}" for number in range(1, len(stages) + 1))
        for name, stage in zip(self.stages, stages, strict=True):
            self.add_module(name, stage)
        self.tail = tail
        self.classifier = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.stem(pixels)
        for name in self.stages:
            maps = self.get_submodule(name)(maps)
        logits: Tensor = self.classifier(self.tail(maps).mean(dim=(2, 3)))
        return logits


def conv_norm(
    taken: int, given: int, kernel: int = 3, *, stride: int = 1, groups: int = 1, relu: bool = True
) -> list[nn.Module]:
    """A convolution that keeps the map's size (at stride 1), batch normalisation, and ReLU unless told otherwise."""
    convolution = nn.Conv2d(taken, given, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(given), *([nn.ReLU()] if relu else [])]
