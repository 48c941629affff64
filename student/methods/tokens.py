"""The student's tokens are the teacher's: transformers that give one vector for each patch, with classes or without."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.losses import hard_cross_entropy
from teacherfarm.student.methods.alignment import (
    ADAPTER_HELP,
    ADAPTERS,
    DISTANCE_HELP,
    DISTANCES,
    HARD_HELP,
    check_adapter,
    distance,
    hard_weight,
    make_adapter,
)
from teacherfarm.student.methods.frozen import train_only
from teacherfarm.student.methods.method import Asks, Method, MethodMismatch, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.teacher_maps import has, outputs_by_name, pool
from teacherfarm.student.methods.teacher_values import feature, weighted_mean, wide
from teacherfarm.student.methods.token_vectors import Layout, TokenVector, of_plan, plan_of, token_vector

MOST_PREFIX_TOKENS = 5
"""A class token and four registers."""


@dataclass(frozen=True, kw_only=True)
class TokensSettings:
    """Defaults of our own: no paper's are known."""

    distance: Literal["cosine", "mse"] = setting("cosine", DISTANCE_HELP, choices=DISTANCES)
    adapter: Literal["auto", "linear", "mlp", "none"] = setting("auto", ADAPTER_HELP, choices=ADAPTERS)
    patch_weight: float = setting(1.0, "factor of the patches' distance, summed over stages")
    prefix_weight: float = setting(1.0, "factor of the leading tokens' distance, summed over stages")
    prefix_tokens: int = setting(
        1, "how many leading tokens are compared, the class token first; fewer where one side has fewer"
    )
    student_grid: tuple[int, ...] = setting(
        (), "rows and columns of the student's patches; none: the largest square that its tokens fill"
    )
    hard_weight: float | None = setting(None, HARD_HELP)


@dataclass(frozen=True, kw_only=True)
class TokenPair:
    """A stage of both: the student's ``tap`` and the teacher's ``output``."""

    tap: str
    student: Layout
    output: str
    teacher: Layout


class Tokens(Method):
    """Cosine or squared distance between tokens: patch by patch on the coarser of the two grids, leading tokens one by
    one. Feature maps are tokens, too, so that either side may be convolutional.

    A student that learns no classes is finished after its last stage and adapter: a vector of the teacher's space, of
    the class token where that is compared, else of the patches' mean.
    """

    name = "tokens"
    about = "the student's tokens are the teacher's, patch by patch: transformers, self-supervised teachers"
    paper = "no single one: cosine or squared distance of tokens; adapter and weights are settings"
    Settings = TokensSettings
    settings: TokensSettings

    def __init__(self, settings: TokensSettings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.pairs = _pairs(settings, setup)
        self.hard_weight = hard_weight(settings.hard_weight, setup.card)
        self.adapters = nn.ModuleList(
            make_adapter(settings.adapter, pair.student.size, pair.teacher.size) for pair in self.pairs
        )

    @classmethod
    def asks(cls, settings: TokensSettings, setup: Setup) -> Asks:
        if len(settings.student_grid) not in (0, 2):
            raise ValueError(f"tokens: student_grid is its rows and columns, got {settings.student_grid}")
        pairs = _pairs(settings, setup)
        for pair in pairs:
            check_adapter(cls.name, settings.adapter, pair.student.size, pair.teacher.size)
        hard = hard_weight(settings.hard_weight, setup.card)
        if hard and not setup.student.embedding:
            raise MethodMismatch(
                "tokens: this student ends in no linear layer, so it has no classes to compare with the data's: set "
                "hard_weight=0"
            )
        outputs = tuple(dict.fromkeys(pair.output for pair in pairs))
        return Asks(spec=LabelSpec(outputs=outputs), targets=hard > 0)

    def enter(self, phase: int, student: nn.Module) -> None:
        behind = self.setup.student.parameters
        if not self.hard_weight and all(pair.tap in behind for pair in self.pairs):
            # What comes after the last stage gets no gradient, which DistributedDataParallel would wait for.
            train_only(student, frozenset().union(*(behind[pair.tap] for pair in self.pairs)))

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        settings = self.settings
        patches, prefix = [], []
        for pair, adapter in zip(self.pairs, self.adapters, strict=True):
            values = outputs.features[pair.tap]
            with torch.autocast(values.device.type, enabled=False):
                own_first, own = pair.student.split(wide(values))
                first, grid = pair.teacher.split(feature(step, pair.output, values))
                height = min(pair.student.height, pair.teacher.height)
                width = min(pair.student.width, pair.teacher.width)
                guess, truth = (pool(maps, height, width).flatten(2).transpose(1, 2) for maps in (own, grid))
                away = distance(settings.distance, adapter(guess), truth).mean(dim=1)
                patches.append(weighted_mean(away, step, guess))
                if both := _compared(settings, pair):
                    away = distance(settings.distance, adapter(own_first[:, :both]), first[:, :both]).mean(dim=1)
                    prefix.append(weighted_mean(away, step, guess))
        parts = {"patches": settings.patch_weight * torch.stack(patches).sum()}
        if prefix:
            parts["prefix"] = settings.prefix_weight * torch.stack(prefix).sum()
        if self.hard_weight:
            parts["ce"] = self.hard_weight * hard_cross_entropy(outputs.logits, step.targets)
        return parts

    @property
    def gives_classes(self) -> bool:
        return self.hard_weight > 0

    def predict(self, outputs: StudentOutputs) -> Tensor:
        """Logits, or of a student that learns no classes its vectors [N, D] in the teacher's space."""
        if self.hard_weight:
            return outputs.logits
        pair = self.pairs[-1]
        values = outputs.features[pair.tap]
        with torch.autocast(values.device.type, enabled=False):
            first = _compared(self.settings, pair) > 0
            vectors: Tensor = self.adapters[-1](token_vector(wide(values), pair.student, first=first))
        return vectors

    def inference(self, student: nn.Module) -> nn.Module:
        if self.hard_weight:
            return student
        pair = self.pairs[-1]
        first = _compared(self.settings, pair) > 0
        return TokenVector(student, pair.tap, pair.student, self.adapters[-1], first=first)

    def inference_plan(self) -> dict[str, Any]:
        if self.hard_weight:
            return {}
        pair = self.pairs[-1]
        first = _compared(self.settings, pair) > 0
        return plan_of(pair.tap, pair.student, self.settings.adapter, pair.teacher.size, first=first)

    @classmethod
    def rebuild(cls, student: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
        return of_plan(student, plan) if plan else student


def _compared(settings: TokensSettings, pair: TokenPair) -> int:
    """How many leading tokens are compared."""
    return min(settings.prefix_tokens, pair.student.prefix, pair.teacher.prefix)


def _pairs(settings: TokensSettings, setup: Setup) -> list[TokenPair]:
    """Stage by stage from the first on; what is left over is ignored."""
    card = setup.card
    known = {name: output for name, output in outputs_by_name(card).items() if len(output.shape) in (2, 3)}
    # Whole stages alone, of tokens where there are any, unless they are named.
    whole = [name for name in known if "@" not in name]
    names = setup.teacher_taps or [name for name in whole if len(known[name].shape) == 2] or whole
    missing = [name for name in names if name not in known]
    if missing or not names:
        raise MethodMismatch(
            f"tokens: teacher {card.name!r} gives no tokens or map {missing[0] if missing else ''!r}, it has "
            f"{has(card)}: {card.export_command(missing[0] if missing else 'MODULE')}"
        )
    shapes = setup.student.features
    taps = [name for name in setup.student_taps or shapes if len(shapes.get(name, ())) in (2, 3)]
    if not taps:
        raise MethodMismatch(
            f"tokens: no tokens or maps are known of this student (taps: {', '.join(shapes) or 'none'}): name its "
            "stages with --student-taps MODULE ..."
        )
    pairs = []
    for tap, name in zip(taps, names, strict=False):
        output, shape = known[name], shapes[tap]
        student = _layout(f"tap {tap!r} of the student", shape, settings.student_grid)
        if output.grid:
            teacher = Layout(
                size=output.shape[1], prefix=output.num_prefix_tokens, height=output.grid[0], width=output.grid[1]
            )
        else:
            teacher = _layout(f"output {name!r} of the teacher", output.shape)
        pairs.append(TokenPair(tap=tap, student=student, output=name, teacher=teacher))
    return pairs


def _layout(what: str, shape: tuple[int, ...], grid: tuple[int, ...] = ()) -> Layout:
    """Of a map, or of tokens in a grid. Raises MethodMismatch where the tokens do not fill it."""
    if len(shape) == 3:
        return Layout(size=shape[0], prefix=0, height=shape[1], width=shape[2], is_map=True)
    side = math.isqrt(shape[0])
    height, width = grid or (side, side)
    left = shape[0] - height * width
    if not 0 <= left <= MOST_PREFIX_TOKENS:
        raise MethodMismatch(
            f"tokens: {what} has {shape[0]} tokens, which are not {height} x {width} patches and at most "
            f"{MOST_PREFIX_TOKENS} others: set student_grid to its rows and columns, or compare a feature map instead"
        )
    return Layout(size=shape[1], prefix=left, height=height, width=width)
