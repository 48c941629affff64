"""The networks for 32 x 32 images by name, and how images are normalised for them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial

from teacherfarm.networks.cifar_others import mobilenet_v2, shufflenet_v2, vgg
from teacherfarm.networks.cifar_resnets import resnet, wide_resnet
from teacherfarm.networks.staged_net import StagedNet

SIZE = 32
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)
"""CIFAR-100's, of pixels in 0..1, as the papers use them."""

_NARROW, _DOUBLE, _WIDE = (16, 16, 32, 64), (16, 32, 64, 128), (32, 64, 128, 256)

CIFAR_NETWORKS: Mapping[str, Callable[[int], StagedNet]] = {
    **{f"resnet{depth}": partial(resnet, depth, _NARROW) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet38x2": partial(resnet, 38, _DOUBLE),
    "resnet8x4": partial(resnet, 8, _WIDE),
    "resnet32x4": partial(resnet, 32, _WIDE),
    **{
        f"wrn_{depth}_{factor}": partial(wide_resnet, depth, factor)
        for depth, factor in ((16, 1), (16, 2), (40, 1), (40, 2))
    },
    **{f"vgg{3 + 5 * convolutions}": partial(vgg, convolutions) for convolutions in (1, 2)},
    "shufflenet_v2_x1_0": partial(shufflenet_v2, (116, 232, 464, 1024)),
    "shufflenet_v2_x1_5": partial(shufflenet_v2, (176, 352, 704, 1024)),
    "mobilenet_v2_x0_5": partial(mobilenet_v2, 0.5),
}
"""By name: takes the number of classes. A wide residual network is called by its depth and factor."""


def make_cifar_network(name: str, num_classes: int) -> StagedNet:
    """A network with new weights. Raises ValueError with near names."""
    if name not in CIFAR_NETWORKS:
        near = ", ".join(difflib.get_close_matches(name, CIFAR_NETWORKS)) or ", ".join(CIFAR_NETWORKS)
        raise ValueError(f"there is no network cifar:{name}; did you mean one of {near}?")
    return CIFAR_NETWORKS[name](num_classes)
