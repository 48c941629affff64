"""Several teachers as one: one graph, one answer for each crop, whatever their number.

The label is the mean of the members' softmax(z / T), "mean_logits" the mean of their logits (MEAL V2, arXiv 2009.08453,
takes both). Each member sees the crop at its own size, with its own normalisation. Knows PyTorch; builds no ONNX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from teacherfarm.export.graph import plan_graph
from teacherfarm.export.teachers import Teacher, WeightsChoice, load_teacher
from teacherfarm.protos.crop import Interpolation, NumberType
from teacherfarm.protos.soft_label import COLDEST, HOTTEST, log_softmax
from teacherfarm.protos.teacher_card import LOGITS, MEAN_LOGITS

_MODES = {"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic", "area": "area"}


class Ensemble(nn.Module):
    """Pixels as fractions of their full scale, float [N, C, H, W] -> float32 logits [N, classes] of the mean."""

    def __init__(self, members: Sequence[Teacher], height: int, width: int, temperature: float) -> None:
        super().__init__()
        self.members = nn.ModuleList(Member(member, height, width, members[0].channel_order) for member in members)
        self.temperature = temperature
        self.mean_logits = nn.Identity()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = torch.stack([member(pixels).float() for member in self.members])
        # Known to the graph by this module's name.
        self.mean_logits(logits.mean(dim=0))
        log_p = functional.log_softmax(logits / self.temperature, dim=-1)
        return torch.logsumexp(log_p, dim=0) - float(np.log(len(self.members)))


class Member(nn.Module):
    """One teacher behind its own size, channel order and normalisation.

    Resizing is a product with constant matrices, which every runtime computes alike.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    down: torch.Tensor
    across: torch.Tensor

    def __init__(self, teacher: Teacher, height: int, width: int, channel_order: str) -> None:
        super().__init__()
        self.module = teacher.module
        self.turns_channels = teacher.channel_order != channel_order
        self.resizes = (teacher.height, teacher.width) != (height, width)
        if self.resizes:
            self.register_buffer("down", resizing(height, teacher.height, teacher))
            self.register_buffer("across", resizing(width, teacher.width, teacher).T.contiguous())
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (teacher.mean, teacher.std))
        self.register_buffer("scale", (1 / std).float().reshape(-1, 1, 1))
        self.register_buffer("shift", (-mean / std).float().reshape(-1, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.turns_channels:
            pixels = pixels.flip(1)
        if self.resizes:
            # What is cut from an image has no darker pixels than black either, which bicubic weights would make.
            pixels = (self.down @ pixels @ self.across).clamp(0, 1)
        logits: torch.Tensor = self.module(pixels * self.scale + self.shift)
        return logits


def resizing(size: int, resized: int, teacher: Teacher) -> torch.Tensor:
    """The matrix [resized, size] that resizes one axis of an image as this teacher's crops are."""
    # Float64, because float32 weights of bicubic antialiasing do not sum to 1.
    return _resize(torch.eye(size, dtype=torch.float64)[None, None], resized, size, teacher)[0, 0].float()


def _resize(images: torch.Tensor, height: int, width: int, teacher: Teacher) -> torch.Tensor:
    interpolation: Interpolation = teacher.interpolation
    smooth = interpolation in ("bilinear", "bicubic")
    return functional.interpolate(
        images, size=(height, width), mode=_MODES[interpolation], antialias=smooth and teacher.antialias
    )


def load_ensemble(
    sources: Sequence[str | Teacher],
    weights: Sequence[WeightsChoice],
    *,
    temperature: float,
    num_classes: int | None = None,
    size: tuple[int, int] | None = None,
) -> Teacher:
    """The ensemble of these sources, each with its own weights. Raises what loading one of them raises."""
    members = []
    for source, choice in zip(sources, weights, strict=True):
        member = load_teacher(source, weights=choice, num_classes=num_classes)
        said = source if isinstance(source, str) else "a member"
        members.append(dataclasses.replace(member, name=member.name or said, source=member.source or said))
    return make_ensemble(members, temperature=temperature, size=size)


def make_ensemble(
    members: Sequence[Teacher], *, temperature: float = 1.0, name: str = "", size: tuple[int, int] | None = None
) -> Teacher:
    """Softmax teachers of the same classes as one teacher, whose crops have ``size``, or that of the largest of them.

    Raises ValueError for members that do not go together.
    """
    if len(members) < 2:
        raise ValueError(f"an ensemble has two teachers or more, got {len(members)}: name several sources")
    if not COLDEST <= temperature <= HOTTEST:
        raise ValueError(f"--ensemble-temperature must be positive ({COLDEST:g} to {HOTTEST:g}), got {temperature}")
    first = members[0]
    for member in members:
        who = f"{member.name or member.source or 'a member'!r}"
        if member.activation != "softmax":
            raise ValueError(
                f"an ensemble averages the probabilities of softmax teachers, {who} has activation "
                f"{member.activation!r}: export it by itself"
            )
        if member.members:
            raise ValueError(f"{who} is an ensemble itself: name its members as members of this one")
        if "GRAY" in (member.channel_order, first.channel_order) and member.channel_order != first.channel_order:
            raise ValueError(f"{who} takes {member.channel_order} crops, the first teacher {first.channel_order}")
        if member.classes and first.classes and member.classes != first.classes:
            raise ValueError(_other_classes(first, member))
    answered = [_num_classes(member) for member in members]
    if len(set(answered)) > 1:
        raise ValueError(f"the members answer {answered} classes: an ensemble's members answer the same ones")
    largest = max(members, key=lambda member: member.height * member.width)
    scales = [member.crop_scale for member in members]
    height, width = size or (largest.height, largest.width)
    return Teacher(
        module=Ensemble(members, height, width, temperature).eval(),
        height=height,
        width=width,
        mean=(0.0,) * first.num_channels,
        std=(1.0,) * first.num_channels,
        channel_order=first.channel_order,
        interpolation=largest.interpolation,
        antialias=largest.antialias,
        center_crop_fraction=largest.center_crop_fraction,
        crop_scale=(max(low for low, _ in scales), max(high for _, high in scales)),
        crop_ratio=largest.crop_ratio,
        classes=next((member.classes for member in members if member.classes), ()),
        name=name,
        source=" ".join(member.source for member in members),
        licence="; ".join(dict.fromkeys(member.licence for member in members if member.licence)),
        weights_source="; ".join(member.weights_source for member in members),
        members=tuple(members),
        fixed_temperature=temperature,
    )


def _num_classes(member: Teacher) -> int:
    """What the member answers, checked as a teacher by itself is. Raises ValueError naming the member."""
    try:
        return plan_graph(member).num_classes
    except ValueError as error:
        raise ValueError(f"{member.name or member.source or 'a member'!r}: {error}") from error


def _other_classes(one: Teacher, other: Teacher) -> str:
    said = f"{one.name!r} and {other.name!r} have other classes"
    if len(one.classes) != len(other.classes):
        return f"{said}: {len(one.classes)} and {len(other.classes)}"
    number = next(n for n, names in enumerate(zip(one.classes, other.classes, strict=True)) if names[0] != names[1])
    return f"{said}: class {number} is {one.classes[number]!r} and {other.classes[number]!r}"


def ensemble_answers(ensemble: Teacher, crops: NDArray[Any], number_type: NumberType) -> dict[str, NDArray[Any]]:
    """The members' own answers, averaged in numpy: the reference for the graph, of whose code this uses nothing."""
    from teacherfarm.export.verify import reference_pixels

    logits = []
    for member in ensemble.members:
        turned = crops[..., ::-1] if member.channel_order != ensemble.channel_order else crops
        with torch.no_grad():
            if crops.shape[1:3] == (member.height, member.width):
                pixels = reference_pixels(member, turned, number_type)
            else:
                pixels = _resized_pixels(member, turned)
            logits.append(member.module(pixels).numpy())
    # By logarithms: float32 probabilities of a confident teacher vanish.
    tempered = [log_softmax(z, ensemble.fixed_temperature).astype(np.float64) for z in logits]
    mean = np.logaddexp.reduce(tempered, axis=0) - np.log(len(tempered))
    return {LOGITS: mean.astype(np.float32), MEAN_LOGITS: np.mean(logits, axis=0)}


def _resized_pixels(member: Teacher, crops: NDArray[Any]) -> torch.Tensor:
    top = float(np.iinfo(crops.dtype).max) if np.issubdtype(crops.dtype, np.integer) else 1.0
    images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(crops.astype(np.float64) / top, 3, 1)))
    resized = _resize(images, member.height, member.width, member).clamp(0, 1)
    mean, std = (torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1) for values in (member.mean, member.std))
    return ((resized - mean) / std).float()
