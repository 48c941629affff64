"""How tokens lie, and one vector of an image made of them. Knows no teacher and no method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from teacherfarm.student.methods.alignment import Adapter, make_adapter
from teacherfarm.student.methods.of_tap import OfTap


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Tokens [T, D]: the first ``prefix`` are not patches, the others lie row by row in ``height`` x ``width``.

    A map [D, H, W] is a grid of patches without others: ``prefix`` 0, ``is_map``.
    """

    size: int
    prefix: int
    height: int
    width: int
    is_map: bool = False

    def split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """[N, T, D] or [N, D, H, W] -> the others [N, prefix, D], the patches as a map [N, D, height, width]."""
        if self.is_map:
            return values.flatten(2).transpose(1, 2)[:, :0], values
        patches = values[:, self.prefix :].transpose(1, 2)
        return values[:, : self.prefix], patches.reshape(*patches.shape[:2], self.height, self.width)


def token_vector(values: Tensor, layout: Layout, *, first: bool) -> Tensor:
    """[N, T, D] or [N, D, H, W] -> [N, D]: the first token, or the mean of the patches."""
    prefix, patches = layout.split(values)
    return prefix[:, 0] if first else patches.mean(dim=(2, 3))


class TokenVector(OfTap):
    """Pixels -> the adapted vector [N, D] of the tokens at a module of the student."""

    def __init__(self, student: nn.Module, tap: str, layout: Layout, adapter: nn.Module, *, first: bool) -> None:
        super().__init__(student, tap)
        self.layout, self.first = layout, first
        self.adapter = adapter

    def finish(self, values: Tensor) -> Tensor:
        vector: Tensor = self.adapter(token_vector(values, self.layout, first=self.first).float())
        return vector


def plan_of(tap: str, layout: Layout, kind: Adapter, wanted: int, *, first: bool) -> dict[str, Any]:
    """Plain values that :func:`of_plan` builds a :class:`TokenVector` from, with weights of its own."""
    return {"tap": tap, "layout": dataclasses.asdict(layout), "adapter": kind, "wanted": wanted, "first": first}


def of_plan(student: nn.Module, plan: Mapping[str, Any]) -> TokenVector:
    """One of the same shapes around a new student."""
    layout = Layout(**plan["layout"])
    adapter = make_adapter(plan["adapter"], layout.size, plan["wanted"])
    return TokenVector(student, plan["tap"], layout, adapter, first=plan["first"])
