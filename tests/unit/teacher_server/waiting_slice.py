"""A slice as the fair queue and the batcher see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class WaitingSlice:
    project: str = "p"
    num_crops: int = 4
    weight: float = 1.0
    stream: str = "s"
    priority: int = 0
    outputs: tuple[str, ...] = ("logits",)
    alone: bool = False
    abandoned: bool = False
    name: object = None
