"""A net of tokens that exports in a second: a class token and 4 x 4 patches of 32 x 32 crops, which a block mixes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teacherfarm.export.teachers import Teacher
from tests.tiny_teacher import MEAN, SIZE, STD

GRID = (4, 4)


class TinyTokens(nn.Module):
    """``norm`` gives tokens [N, 17, width]. Returns the class token, or logits where there are ``classes``."""

    def __init__(self, width: int, classes: int = 0) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.block = nn.Linear(17, 17)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes) if classes else nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patches(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(patches.shape[0], -1, -1), patches], dim=1)
        given: Tensor = self.head(self.norm(tokens + self.block(tokens.transpose(1, 2)).transpose(1, 2))[:, 0])
        return given


def tiny_tokens(seed: int, width: int, classes: int = 0) -> TinyTokens:
    """The net with weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyTokens(width, classes)


def make() -> Teacher:
    """A self-supervised teacher without classes."""
    return Teacher(
        module=tiny_tokens(9, 16).eval(),
        height=SIZE,
        width=SIZE,
        mean=MEAN,
        std=STD,
        activation="none",
        interpolation="bilinear",
        num_prefix_tokens=1,
        grid=GRID,
        name="tokens",
        licence="Apache-2.0",
        weights_source="seed 9",
    )
