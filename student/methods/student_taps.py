"""A student that shows what happens inside: logits, embedding and features of named modules, from one forward pass.

Knows PyTorch modules and hooks; no method.
"""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from teacherfarm.protos.teacher_card import EMBEDDING
from teacherfarm.student.methods.method import MethodMismatch, StudentOutputs, StudentShape


class TappedStudent(nn.Module):
    """Pixels [N, C, H, W] -> :class:`StudentOutputs`. ``model`` is the student itself, untouched.

    ``taps``: module names; a module's last output in a pass counts.
    """

    def __init__(self, model: nn.Module, taps: Sequence[str] = ()) -> None:
        super().__init__()
        self.model = model
        self.taps = tuple(taps)
        modules = dict(model.named_modules())
        if unknown := [name for name in taps if name not in modules]:
            near = difflib.get_close_matches(unknown[0], modules, n=5, cutoff=0.3)
            raise MethodMismatch(f"the student has no module {unknown[0]!r}; near names: {', '.join(near) or 'none'}")
        self._found: dict[str, Tensor] = {}
        self._last_linear: tuple[Tensor, Tensor] | None = None
        # No closures: the hooks of a copy (an averaged model, say) must keep for the copy.
        hooks = [(name, modules[name].register_forward_hook(functools.partial(self._keep, name))) for name in self.taps]
        for name, module in modules.items():
            if isinstance(module, nn.Linear):
                hooks.append((name, module.register_forward_hook(self._keep_linear)))
        self._hooks = [(name, hook.id) for name, hook in hooks]

    def forward(self, pixels: Tensor) -> StudentOutputs:
        self._found, self._last_linear = {}, None
        try:
            logits = self.model(pixels)
            if not isinstance(logits, Tensor):
                raise MethodMismatch(
                    f"the student returned {type(logits).__name__} in training, not logits [N, C] (no auxiliary "
                    "outputs): wrap it in a function of your own, given as package.module:function"
                )
            height, width = pixels.shape[-2:]
            return StudentOutputs(
                logits=logits, embedding=self._embedding_of(logits), features=self._found, size=(height, width)
            )
        finally:
            self._found, self._last_linear = {}, None

    def measure(self, height: int, width: int, channels: int = 3) -> StudentShape:
        """The shapes that crops of this size lead to, by one pass in eval mode; changes nothing."""
        was_training = self.training
        self.eval()
        device = next(self.parameters()).device
        with torch.enable_grad():
            outputs = self(torch.zeros(2, channels, height, width, device=device))
        self.train(was_training)
        if outputs.logits.ndim != 2:
            raise MethodMismatch(f"the student returned {list(outputs.logits.shape)}, not logits [N, C]")
        known = {"": outputs.logits, **outputs.features}
        if outputs.embedding is not None:
            known.setdefault(EMBEDDING, outputs.embedding)
        return StudentShape(
            num_classes=outputs.logits.shape[1],
            embedding=0 if outputs.embedding is None else outputs.embedding.shape[1],
            features={name: tuple(outputs.features[name].shape[1:]) for name in self.taps},
            parameters={name: parameters_behind(output, self.model) for name, output in known.items()},
        )

    def bare(self) -> nn.Module:
        """A copy of the model without taps."""
        model = copy.deepcopy(self.model)
        for name, number in self._hooks:
            module = model.get_submodule(name)
            module._forward_hooks.pop(number, None)
            module._forward_pre_hooks.pop(number, None)
        return model

    def _keep(self, name: str, module: nn.Module, _taken: Any, given: Any) -> None:
        if not isinstance(given, Tensor):
            raise MethodMismatch(f"module {name!r} of the student gives {type(given).__name__}, not one tensor")
        self._found[name] = shown(self.model, module, given)

    def _keep_linear(self, _module: nn.Module, taken: tuple[Any, ...], given: Tensor) -> None:
        self._last_linear = (taken[0], given) if taken else None

    def _embedding_of(self, logits: Tensor) -> Tensor | None:
        """What the linear layer took whose result the logits are; None where the last one's is not."""
        if self._last_linear is None:
            return None
        taken, given = self._last_linear
        is_result = given is logits or (given.shape == logits.shape and given.data_ptr() == logits.data_ptr())
        return taken if is_result and taken.ndim == 2 else None


def shown(model: nn.Module, module: nn.Module, given: Tensor) -> Tensor:
    """A module's output as a feature: a copy, maps as [N, C, H, W] whatever the model works on."""
    # timm's models say so, torchvision's Swin does not.
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC" or type(model).__name__ == "SwinTransformer"
    # Inside such a model, convolutions still give channels-first maps; torchvision's last Permute turns them back.
    turned = isinstance(module, nn.Conv2d | nn.BatchNorm2d) or type(module).__name__ == "Permute"
    if channels_last and given.ndim == 4 and not turned:
        given = given.permute(0, 3, 1, 2)
    # An activation that works in place would change what was kept.
    return given.clone()


def parameters_behind(output: Tensor, model: nn.Module) -> frozenset[str]:
    """The names of the parameters that an output's gradient reaches."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found, seen, waiting = set(), set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        # The leaves of the graph are the nodes that gather a parameter's gradient.
        if (leaf := getattr(node, "variable", None)) is not None and id(leaf) in names:
            found.add(names[id(leaf)])
        waiting += [before for before, _ in node.next_functions]
    return frozenset(found)
