"""SimKD's finished student: backbone, projector, global average, the teacher's classifier. Knows no teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from teacherfarm.student.methods.of_tap import OfTap
from teacherfarm.student.methods.teacher_maps import pool


class Projection(nn.Module):
    """Maps [N, ``taken``, H, W] -> logits [N, C], by way of maps [N, ``given``, H', W'] like the teacher's.

    ``factor``: the bottleneck has ``given // factor`` channels. ``size``: larger maps are averaged to it first.
    """

    def __init__(self, *, taken: int, given: int, factor: int, size: tuple[int, int], classifier: nn.Linear) -> None:
        super().__init__()
        self.taken, self.given, self.factor, self.size = taken, given, factor, size
        middle = given // factor
        self.projector = nn.Sequential(
            *_convolution(taken, middle, 1), *_convolution(middle, middle, 3), *_convolution(middle, given, 1)
        )
        self.classifier = classifier

    def maps(self, maps: Tensor) -> Tensor:
        """What is compared with the teacher's maps."""
        height, width = (min(own, most) for own, most in zip(maps.shape[2:], self.size, strict=True))
        projected: Tensor = self.projector(pool(maps, height, width))
        return projected

    def forward(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.maps(maps).mean(dim=(2, 3)))
        return logits

    def plan(self) -> dict[str, Any]:
        """Plain values that :meth:`of` builds another one from, with weights of its own."""
        num_classes = self.classifier.out_features
        sizes = {"taken": self.taken, "given": self.given, "factor": self.factor, "size": list(self.size)}
        return {**sizes, "num_classes": num_classes}

    @classmethod
    def of(cls, plan: Mapping[str, Any]) -> Projection:
        """One of the same shapes; its classifier is frozen."""
        classifier = nn.Linear(plan["given"], plan["num_classes"]).requires_grad_(False)
        height, width = plan["size"]
        return cls(
            taken=plan["taken"],
            given=plan["given"],
            factor=plan["factor"],
            size=(height, width),
            classifier=classifier,
        )


class ReusedHead(OfTap):
    """Pixels -> logits, of the maps at a module of the student."""

    def __init__(self, student: nn.Module, tap: str, projection: Projection) -> None:
        super().__init__(student, tap)
        self.projection = projection

    def finish(self, values: Tensor) -> Tensor:
        logits: Tensor = self.projection(values)
        return logits


def _convolution(taken: int, given: int, size: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(taken, given, size, padding=size // 2, bias=False),
        nn.BatchNorm2d(given),
        nn.ReLU(inplace=True),
    )
