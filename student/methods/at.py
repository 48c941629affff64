"""Attention transfer: where in the picture each stage is active (arXiv 1612.03928)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from teacherfarm.student.methods.beside_logits import asks_beside_logits
from teacherfarm.student.methods.kd import KDSettings, logit_terms
from teacherfarm.student.methods.method import Asks, Method, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.teacher_maps import (
    find_map,
    lacks,
    outputs_by_name,
    paired_stages,
    pool,
    pooled_map,
)
from teacherfarm.student.methods.teacher_values import feature, weighted_mean, wide


@dataclass(frozen=True, kw_only=True)
class ATSettings(KDSettings):
    """Defaults: the SimKD toolbox (arXiv 2203.14001), CIFAR-100."""

    attention_weight: float = setting(1000.0, "factor of the squared difference of the attention maps, over stages")


@dataclass(frozen=True, kw_only=True)
class AttentionPair:
    """``tap``: the student's stage; ``output``: what the teacher gives of it, attention [h * w] or a map; the size that
    they are compared at.
    """

    tap: str
    output: str
    height: int
    width: int


class AT(Method):
    """Squared difference of attention maps: the mean square over channels at each place, as a vector of length 1.

    The teacher's graph can make them (``--tap layer1@attention``), then a stage costs 2 bytes a place.
    """

    name = "at"
    about = "every stage is active where the teacher's is"
    paper = "Zagoruyko and Komodakis, Paying More Attention to Attention, arXiv 1612.03928"
    Settings = ATSettings
    settings: ATSettings

    def __init__(self, settings: ATSettings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.pairs = attention_pairs(setup)

    @classmethod
    def asks(cls, settings: ATSettings, setup: Setup) -> Asks:
        return asks_beside_logits(cls.name, settings, setup, [pair.output for pair in attention_pairs(setup)])

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        total = []
        for pair in self.pairs:
            maps = outputs.features[pair.tap]
            with torch.autocast(maps.device.type, enabled=False):
                student = attention(pool(wide(maps), pair.height, pair.width))
                teacher = feature(step, pair.output, student)
                if teacher.ndim == 4:
                    teacher = attention(pool(teacher, pair.height, pair.width))
                total.append(weighted_mean((student - teacher).square().mean(dim=1), step, student))
        weighted = self.settings.attention_weight * torch.stack(total).sum()
        return {"attention": weighted, **logit_terms(self.settings, outputs, step)}


def attention(maps: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H * W] of length 1, of zeros where the map is."""
    return functional.normalize(maps.square().mean(dim=1).flatten(1), dim=1)


def attention_pairs(setup: Setup) -> list[AttentionPair]:
    """Stage by stage what to compare, both averaged to the smaller size before they are squared: attention made by the
    teacher's graph, or a map. Raises MethodMismatch that names the export.
    """
    return [_pair(setup, *pair) for pair in paired_stages(setup)]


def _pair(setup: Setup, tap: str, shape: tuple[int, ...], stage: str) -> AttentionPair:
    _, height, width = shape
    known, whole = outputs_by_name(setup.card), find_map(setup, stage)
    if whole is not None:
        height, width = min(height, whole.shape[1]), min(width, whole.shape[2])
    names = f"{stage}@attention{height}x{width}", f"{stage}@attention"
    for name in names:
        # The attention of the whole map is not that of the averaged one.
        if name in known and known[name].shape == (height * width,):
            return AttentionPair(tap=tap, output=name, height=height, width=width)
    if whole is None and f"{stage}@{height}x{width}" not in known:
        side = _smaller_square(known[names[-1]].shape[0], height, width) if names[-1] in known else 0
        if not side:
            raise lacks(setup, stage, names[0])
        return AttentionPair(tap=tap, output=names[-1], height=side, width=side)
    return AttentionPair(tap=tap, output=pooled_map(setup, stage, height, width).output, height=height, width=width)


def _smaller_square(places: int, height: int, width: int) -> int:
    """The side of a square attention map that is smaller than the student's; 0 where it is none."""
    side = round(places**0.5)
    return side if side * side == places and side <= min(height, width) else 0
