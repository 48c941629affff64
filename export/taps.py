"""Finds and captures what happens inside a module: the classifier's last layer, its input, tapped submodules.

Knows PyTorch modules and hooks; nothing of ONNX or files.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

_ACTIVATIONS = {
    *(
        "CELU",
        "ELU",
        "GELU",
        "GELUTanh",
        "GELUTanhQ",
        "HardMish",
        "HardSwish",
        "Hardsigmoid",
        "Hardswish",
        "Hardtanh",
    ),
    *(
        "LeakyReLU",
        "MemoryEfficientSwish",
        "Mish",
        "PReLU",
        "QuickGELU",
        "ReLU",
        "ReLU6",
        "SELU",
        "SiLU",
        "Sigmoid",
    ),
    *("Softplus", "Swish", "Tanh"),
}
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place inside a module: what the ``call``-th call (from 0) of a submodule takes or gives."""

    module: str
    call: int = 0
    side: Literal["input", "output"] = "output"


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One call of a submodule; versions tell whether a tensor was changed in place since."""

    name: str
    index: int
    submodule: nn.Module
    taken: torch.Tensor | None
    taken_version: int
    given: torch.Tensor | None
    given_version: int


class Survey:
    """Everything that one forward pass called, in order, and its result."""

    def __init__(self, module: nn.Module, pixels: torch.Tensor) -> None:
        self.calls: list[_Call] = []
        self._names = {name for name, _ in module.named_modules() if name}
        counts: Counter[str] = Counter()
        open_calls: list[tuple[torch.Tensor | None, int]] = []
        handles = []

        def enter(_submodule: nn.Module, taken: tuple[Any, ...]) -> None:
            tensor = taken[0] if taken and isinstance(taken[0], torch.Tensor) else None
            open_calls.append((tensor, -1 if tensor is None else tensor._version))

        def leave_as(name: str) -> Any:
            def leave(submodule: nn.Module, _taken: tuple[Any, ...], given: Any) -> None:
                taken, taken_version = open_calls.pop()
                tensor = given if isinstance(given, torch.Tensor) else None
                version = -1 if tensor is None else tensor._version
                self.calls.append(
                    _Call(
                        name=name,
                        index=counts[name],
                        submodule=submodule,
                        taken=taken,
                        taken_version=taken_version,
                        given=tensor,
                        given_version=version,
                    )
                )
                counts[name] += 1

            return leave

        for name, submodule in module.named_modules():
            if name:
                handles.append(submodule.register_forward_pre_hook(enter))
                handles.append(submodule.register_forward_hook(leave_as(name)))
        try:
            # Not inference mode: its tensors have no version counters.
            with torch.no_grad():
                self.result: Any = module(pixels)
        finally:
            for handle in handles:
                handle.remove()

    def find_head(self, name: str = "") -> Point | None:
        """Where the classifier's last linear layer takes its input; None when no layer makes the result."""
        for call in reversed(self.calls):
            if call.taken is None or call.given is None or (name and call.name != name):
                continue
            is_linear = isinstance(call.submodule, nn.Linear)
            is_pointwise = isinstance(call.submodule, nn.Conv2d) and call.taken.shape[2:] == (1, 1)
            makes_result = call.given.numel() == self.result.numel() and torch.equal(
                call.given.reshape(self.result.shape), self.result
            )
            if ((is_linear and call.taken.ndim == 2) or is_pointwise) and makes_result:
                return Point(module=call.name, call=call.index, side="input")
        if name:
            raise ValueError(f"module {name!r} is not the linear layer whose output is the teacher's result")
        return None

    def find_tap(self, name: str) -> Point:
        """The last output of a submodule, taken after a norm and activation that directly follow it."""
        last = next((call for call in reversed(self.calls) if call.name == name), None)
        if last is None:
            near = difflib.get_close_matches(name, sorted(self._names), n=5, cutoff=0.3)
            was_there = "is never called by forward()" if name in self._names else "does not exist"
            raise ValueError(
                f"cannot tap {name!r}: this submodule {was_there}. Near names: {', '.join(near) or 'none'}"
            )
        if last.given is None:
            raise ValueError(f"cannot tap {name!r}: it does not return one tensor; tap a submodule of it")
        current, start = last, self.calls.index(last)
        for call in self.calls[start + 1 :]:
            follows = call.taken is current.given and call.taken_version == current.given_version
            if not follows:
                continue
            if type(call.submodule).__name__ in _ACTIVATIONS and call.given is not None:
                return Point(module=call.name, call=call.index)
            if not isinstance(call.submodule, _NORMS):
                break
            current = call
        return Point(module=last.name, call=last.index)


class Capture:
    """Keeps the tensors at some points of every forward pass of a module, until closed."""

    def __init__(self, module: nn.Module, points: Mapping[str, Point]) -> None:
        self._points = dict(points)
        self._calls: Counter[str] = Counter()
        self._found: dict[str, torch.Tensor] = {}
        self._handles = [
            module.get_submodule(name).register_forward_hook(self._hook(name))
            for name in sorted({point.module for point in self._points.values()})
        ]

    def _hook(self, name: str) -> Any:
        wanted = [(key, point) for key, point in self._points.items() if point.module == name]

        def keep(_submodule: nn.Module, taken: tuple[Any, ...], given: torch.Tensor) -> None:
            for key, point in wanted:
                if point.call == self._calls[name]:
                    # A clone, because a following in-place activation would change what was kept.
                    self._found[key] = (taken[0] if point.side == "input" else given).clone()
            self._calls[name] += 1

        return keep

    def take(self) -> dict[str, torch.Tensor]:
        """The tensors of the pass that just ended; call it once after each pass."""
        found, self._found = self._found, {}
        self._calls.clear()
        return found

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
