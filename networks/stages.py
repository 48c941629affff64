"""Which modules of a network end its stages: what to tap where nobody said.

Knows PyTorch modules and hooks alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from teacherfarm.networks.staged_net import StagedNet


def find_stages(model: nn.Module, height: int, width: int) -> tuple[str, ...]:
    """Names of the modules whose maps end the stages, in order; () of a network without maps, such as a transformer.

    One forward pass of this size, in eval mode. A stage lasts as long as the map keeps its size; the stem (as large as
    half the image, or larger) and what is left of the map after pooling (1 x 1) are none, unless there is nothing else.
    The networks of :mod:`teacherfarm.networks.cifar` say their stages themselves.
    """
    if isinstance(model, StagedNet):
        return model.stages
    ends = {size: name for name, size in _maps(model, height, width)}
    inner = {size: name for size, name in ends.items() if 1 < size[0] < height / 2}
    return tuple((inner or ends).values())


def _maps(model: nn.Module, height: int, width: int) -> list[tuple[str, tuple[int, int]]]:
    """Modules that return a map of the image's proportions, and its size, in the order of their calls.

    Of modules that return the very same map, the outermost one; none inside a block that shrinks the map or makes
    something else of it (tokens); and none at all where what comes after the last map is most of the network.
    """
    given_by: dict[str, Any] = {}
    handles = [
        module.register_forward_hook(lambda _module, _taken, given, name=name: given_by.update({name: given}))
        for name, module in model.named_modules()
        if name
    ]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            parameter = next(model.parameters())
            model(torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()

    def side(name: str) -> int:
        """The height of a module's map, 0 where it returned none."""
        given = given_by[name]
        is_map = isinstance(given, Tensor) and given.ndim == 4 and given.shape[2] * width == given.shape[3] * height
        return given.shape[2] if is_map else 0

    plain = {name for name, module in model.named_modules() if type(module) is nn.Sequential}

    def inside_a_block(name: str) -> bool:
        parts = name.split(".")
        above = [".".join(parts[:end]) for end in range(1, len(parts))]
        return any(outer in given_by and outer not in plain and side(outer) < side(name) for outer in above)

    outermost = {id(given_by[name]): name for name in sorted(given_by, key=len, reverse=True)}
    names = [name for name in given_by if side(name) and not inside_a_block(name)]
    calls = list(given_by)
    if not names or calls.index(names[-1]) < len(calls) / 2:
        return []
    return [(name, tuple(given_by[name].shape[2:])) for name in names if outermost[id(given_by[name])] == name]
