"""What export needs to know about a teacher, and where a teacher comes from.

Knows names of sources and weight files; builds no graph and writes nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from teacherfarm.protos.crop import Interpolation
from teacherfarm.protos.teacher_card import Activation

if TYPE_CHECKING:
    import torch
    from torch import nn

ChannelOrder = Literal["RGB", "BGR", "GRAY"]

PublishedTransform = Callable[[Any], "torch.Tensor"]
"""Crops uint8 [N, H, W, 3] -> what the module takes, float32 [N, 3, H, W], by the publisher's own code."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A frozen module and how its publisher feeds it.

    ``module`` takes float32 [N, C, height, width] and returns one tensor: logits [N, classes], or with activation
    "none" an embedding [N, D], map [N, C, H, W] or tokens [N, T, D]. ``mean`` and ``std`` are per channel, as fractions
    of the pixels' full scale (255 for uint8, 65535 for uint16, 1 for float32), in the channel order that the module
    takes. ``head`` and ``embedding`` name submodules; empty means found by running the module: the linear layer whose
    output is the logits, and that layer's input. ``num_prefix_tokens`` and ``grid`` describe the tokens of a
    transformer, ``map_layout`` the axes of its inner maps. ``published_transform`` feeds the reference of the
    verification, so that the graph's normalisation is checked against the publisher's own code. ``members`` and
    ``fixed_temperature``: of an ensemble, see :func:`teacherfarm.export.ensemble.make_ensemble`.
    """

    module: nn.Module
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    activation: Activation = "softmax"
    channel_order: ChannelOrder = "RGB"
    interpolation: Interpolation = "bicubic"
    antialias: bool = True
    center_crop_fraction: float = 0.875
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    classes: tuple[str, ...] = ()
    name: str = ""
    source: str = ""
    licence: str = ""
    weights_source: str = ""
    head: str = ""
    embedding: str = ""
    num_prefix_tokens: int = 0
    grid: tuple[int, ...] = ()
    map_layout: Literal["NCHW", "NHWC"] = "NCHW"
    published_transform: PublishedTransform | None = None
    members: tuple[Teacher, ...] = ()
    fixed_temperature: float = 0.0

    def __post_init__(self) -> None:
        channels = 1 if self.channel_order == "GRAY" else 3
        for what, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise ValueError(
                    f"a {self.channel_order} teacher has {channels} channel(s), so {what} needs {channels} value(s), "
                    f"got {list(values)}"
                )
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std must be positive, got {list(self.std)}")
        if any(not -2 <= value <= 2 for value in self.mean):
            raise ValueError(
                "mean and std are fractions of the pixels' full scale (ImageNet's mean is 0.485 0.456 0.406), got "
                f"mean {list(self.mean)}: divide values of 0..255 by 255"
            )

    @property
    def num_channels(self) -> int:
        return 1 if self.channel_order == "GRAY" else 3


@dataclass(frozen=True, kw_only=True)
class WeightsChoice:
    """Whose weights a source gets: a file's, the library's own download, or none (random, for tests)."""

    file: Path | None = None
    pretrained: bool = False
    random: bool = False

    def __post_init__(self) -> None:
        if sum((self.file is not None, self.pretrained, self.random)) > 1:
            raise ValueError("choose one of --weights FILE, --pretrained and --random-weights")

    def require_one(self, source: str) -> None:
        """Refuse an architecture without weights: random answers look like labels but teach nothing."""
        if self.file is None and not self.pretrained and not self.random:
            raise ValueError(
                f"{source!r} names an architecture, not its weights. Give --weights FILE (a state dict, .safetensors "
                "or .pth), or --pretrained to let the library download its published ones, or --random-weights to try "
                "the machinery without a teacher"
            )


def describe_known_sources() -> str:
    """One paragraph for help texts and errors."""
    from teacherfarm.export.published_teachers import READY_BY_NAME

    return (
        f"ready by name: {', '.join(READY_BY_NAME)}; torchvision:NAME (torchvision:resnet50); timm:NAME "
        "(timm:vit_small_patch16_224.augreg_in21k_ft_in1k); cifar:NAME (cifar:resnet32x4, 32 x 32 images, with your "
        "--weights); package.module:function (a function without arguments "
        "that returns a torch.nn.Module or a teacherfarm.export.Teacher)"
    )


def load_teacher(
    source: str | Teacher,
    *,
    weights: WeightsChoice,
    num_classes: int | None = None,
    size: tuple[int, int] | None = None,
    missing: dict[str, Any] | None = None,
) -> Teacher:
    """The teacher of a source, with its weights, in eval mode, float32, on the CPU.

    ``num_classes`` and ``size`` (height, width): what to build where the source lets one choose. ``missing``: settings
    for a bare ``nn.Module``, which publishes nothing about itself. Raises ValueError with what to do for unknown
    sources and weights that do not fit.
    """
    from teacherfarm.export import published_teachers as published

    if isinstance(source, Teacher):
        # A copy: the caller may go on training what is frozen here.
        teacher = dataclasses.replace(source, module=copy.deepcopy(source.module))
        if weights.file is not None:
            teacher = _with_weights(teacher, weights.file)
    elif source in published.READY_BY_NAME:
        if weights != WeightsChoice():
            raise ValueError(f"{source!r} brings its own weights: drop --weights, --pretrained and --random-weights")
        teacher = published.efficientnet_lite(source)
    elif source.startswith("torchvision:"):
        weights.require_one(source)
        teacher = published.torchvision_teacher(source.partition(":")[2], weights, num_classes)
    elif source.startswith("timm:"):
        weights.require_one(source)
        teacher = published.timm_teacher(source.partition(":")[2], weights, num_classes, size)
    elif source.startswith("cifar:"):
        from teacherfarm.export.cifar_teachers import cifar_teacher

        weights.require_one(source)
        teacher = cifar_teacher(source.partition(":")[2], weights, num_classes)
    elif ":" in source and not source.endswith(":"):
        teacher = _from_function(source, missing or {})
        if weights.pretrained:
            raise ValueError(f"{source!r} is your function: it brings its weights, or takes --weights FILE")
        if weights.file is not None:
            teacher = _with_weights(teacher, weights.file)
    else:
        raise ValueError(f"unknown source {source!r}. Known: {describe_known_sources()}")
    teacher.module.cpu().float().eval().requires_grad_(False)
    return teacher


def _from_function(source: str, missing: dict[str, Any]) -> Teacher:
    from torch import nn

    module_name, _, function_name = source.partition(":")
    here = os.getcwd()
    if here not in sys.path:  # an installed command does not look beside the user's files by itself
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ValueError(
            f"source {source!r}: there is no module {error.name!r} here ({here}) or installed. Known: "
            f"{describe_known_sources()}"
        ) from error
    except AttributeError as error:
        raise ValueError(f"source {source!r}: module {module_name!r} has no {function_name!r}") from error
    made = function()
    if isinstance(made, Teacher):
        return made if made.source else dataclasses.replace(made, source=source)
    if not isinstance(made, nn.Module):
        raise ValueError(f"source {source!r} returned {type(made).__name__}, not a torch.nn.Module or a Teacher")
    required = ("height", "width", "mean", "std")
    if absent := [name for name in required if name not in missing]:
        raise ValueError(
            f"source {source!r} returned a bare module, which does not say how it is fed: give --size H W, --mean and "
            f"--std (absent: {', '.join(absent)}), or return teacherfarm.export.Teacher(module=..., height=..., ...)"
        )
    return Teacher(module=made, source=source, **missing)


def _with_weights(teacher: Teacher, file: Path) -> Teacher:
    from teacherfarm.export.weights import load_weights

    load_weights(teacher.module, file)
    return dataclasses.replace(teacher, weights_source=file.name)
