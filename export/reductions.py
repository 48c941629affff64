"""What the graph makes of a feature map, crop by crop, before it travels: averages of a size, attention maps.

Knows PyTorch; nothing of ONNX. Averaging is a product with constant matrices, which every runtime computes alike
whatever the sizes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from teacherfarm.protos.teacher_card import OutputCard

FORMS = "MODULE@HxW (averaged to this size), MODULE@attention, MODULE@attentionHxW"


@dataclass(frozen=True, kw_only=True)
class TapRequest:
    """A tap as asked for: the output's ``name``, the map ``of`` which it is made (``name`` itself where it is whole).

    ``height`` and ``width`` are 0 where the map keeps its size.
    """

    name: str
    of: str
    reduction: Literal["", "pool", "attention"] = ""
    height: int = 0
    width: int = 0


def parse_tap(name: str) -> TapRequest:
    """What ``--tap NAME`` asks for. Raises ValueError for a reduction that there is not."""
    of, at, wanted = name.partition("@")
    if not at:
        return TapRequest(name=name, of=name)
    if of and (match := re.fullmatch(r"(attention)?(?:([1-9]\d{0,4})x([1-9]\d{0,4}))?", wanted)) and wanted:
        height, width = int(match[2] or 0), int(match[3] or 0)
        return TapRequest(name=name, of=of, reduction="attention" if match[1] else "pool", height=height, width=width)
    raise ValueError(f"--tap {name}: there is no such reduction. There are {FORMS}: layer3@4x4, layer3@attention")


def describe_reduced(request: TapRequest, whole: OutputCard) -> OutputCard:
    """The card of a reduced output. Raises ValueError where ``whole`` cannot be reduced so."""
    if whole.layout != "map":
        raise ValueError(
            f"--tap {request.name}: {request.of!r} gives a {whole.layout} {list(whole.shape)}; only maps [C, H, W] are "
            f"reduced. Tap it whole: --tap {request.of}"
        )
    channels, *size = whole.shape
    reduced = (request.height or size[0], request.width or size[1])
    if reduced[0] > size[0] or reduced[1] > size[1]:
        raise ValueError(
            f"--tap {request.name}: {request.of!r} is {size[0]}x{size[1]}, a reduction is no larger than that"
        )
    is_map = request.reduction == "pool"
    return OutputCard(
        name=request.name,
        shape=(channels, *reduced) if is_map else (reduced[0] * reduced[1],),
        layout="map" if is_map else "vector",
        module=whole.module,
        reduction="pool" if is_map else "attention",
        of=request.of,
        averages_to_embedding=whole.averages_to_embedding if is_map else None,
    )


class Reduce(nn.Module):
    """Maps [N, C, H, W] float32 -> what ``request`` asks for: averages [N, C, h, w], or attention [N, h * w].

    Averages as adaptive average pooling does. Attention: Zagoruyko and Komodakis, arXiv 1612.03928.
    """

    down: torch.Tensor
    across: torch.Tensor

    def __init__(self, request: TapRequest, whole: OutputCard) -> None:
        super().__init__()
        height, width = whole.shape[1:]
        reduced = (request.height or height, request.width or width)
        self.averages = reduced != (height, width)
        self.is_attention = request.reduction == "attention"
        if self.averages:
            self.register_buffer("down", _averaging(height, reduced[0]))
            self.register_buffer("across", _averaging(width, reduced[1]).T.contiguous())

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        if self.averages:
            maps = self.down @ maps @ self.across
        if self.is_attention:
            maps = functional.normalize(maps.square().mean(dim=1).flatten(1), dim=1)
        return maps


def _averaging(size: int, reduced: int) -> torch.Tensor:
    """The matrix [reduced, size] whose product with a vector is its adaptive average pooling."""
    return functional.adaptive_avg_pool1d(torch.eye(size)[None], reduced)[0].T.contiguous()
