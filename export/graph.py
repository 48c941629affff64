"""The graph that is exported: crops as they travel -> normalise -> teacher -> named outputs.

Knows PyTorch; nothing of ONNX, files or verification.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from teacherfarm.export.reductions import Reduce, describe_reduced, parse_tap
from teacherfarm.export.taps import Capture, Point, Survey
from teacherfarm.export.teachers import Teacher
from teacherfarm.protos.crop import NumberType
from teacherfarm.protos.teacher_card import EMBEDDING, LOG_PROBABILITIES, LOGITS, Activation, OutputCard

FULL_SCALE: Mapping[NumberType, float] = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
"""The number that stands for the brightest pixel."""


@dataclass(frozen=True, kw_only=True)
class GraphPlan:
    """Which outputs the graph has and where in the teacher they come from.

    ``points``: by the name of a whole output, from which ``reductions`` (by the reduced output's name) are made; one
    without a point is the teacher's own result. ``head``: the classifier's last layer, empty when there is none.
    """

    activation: Activation
    num_classes: int
    features: tuple[OutputCard, ...]
    points: Mapping[str, Point]
    head: str
    channels_last: frozenset[str] = frozenset()
    reductions: Mapping[str, Reduce] = field(default_factory=dict)

    @property
    def output_names(self) -> tuple[str, ...]:
        """As the card's ``graph_outputs``."""
        labels = {"softmax": (LOG_PROBABILITIES, LOGITS), "sigmoid": (LOGITS,), "none": ()}[self.activation]
        return labels + tuple(output.name for output in self.features)


def plan_graph(teacher: Teacher, taps: Sequence[str] = ()) -> GraphPlan:
    """Run the teacher and decide on its outputs. Raises ValueError when it cannot be exported as it is."""
    pixels = torch.randn(
        2, teacher.num_channels, teacher.height, teacher.width, generator=torch.Generator().manual_seed(7)
    )
    try:
        survey = Survey(teacher.module, pixels)
    except Exception as error:
        # Whatever its author checks with: timm's and torchvision's transformers assert their size.
        raise ValueError(
            f"the teacher does not run on [2, {teacher.num_channels}, {teacher.height}, {teacher.width}] float32 "
            f"pixels: {error or type(error).__name__}. Check --size and --channel-order"
        ) from error
    result = survey.result
    if not isinstance(result, torch.Tensor):
        raise ValueError(
            f"the teacher returns {type(result).__name__}, not one tensor: wrap it in a module that returns the logits "
            "(or the embedding) and export that by package.module:function"
        )
    points: dict[str, Point] = {}
    head = None
    if teacher.activation == "none":
        found = {EMBEDDING: result} if not teacher.embedding else {}
    else:
        if result.ndim != 2 or len(result) != 2:
            raise ValueError(
                f"a {teacher.activation} teacher returns logits [N, classes], this one returned {list(result.shape)}; "
                "use --activation none for embeddings, maps and tokens"
            )
        _refuse_finished_probabilities(result)
        if teacher.classes and len(teacher.classes) != result.shape[1]:
            raise ValueError(f"{len(teacher.classes)} class names for a teacher with {result.shape[1]} classes")
        head = survey.find_head(teacher.head)
        found = {}
        if head is not None and not teacher.embedding:
            points[EMBEDDING] = head
    if teacher.embedding:
        points[EMBEDDING] = survey.find_tap(teacher.embedding)
    requests = [parse_tap(tap) for tap in taps]
    names = [EMBEDDING, LOGITS, LOG_PROBABILITIES]
    for request in requests:
        if request.name in names:
            raise ValueError(f"--tap {request.name}: there is an output of this name already; name each tap once")
        names.append(request.name)
        if request.of not in points and request.of not in found:
            points[request.of] = survey.find_tap(request.of)
    capture = Capture(teacher.module, points)
    try:
        with torch.no_grad():
            teacher.module(pixels)
        found |= capture.take()
    finally:
        capture.close()
    whole: dict[str, OutputCard] = {}
    channels_last = set()
    for name, tensor in found.items():
        shape = tuple(tensor.shape[1:])
        if name in points and name != EMBEDDING and len(shape) == 3 and _is_channels_last(teacher, points[name], shape):
            channels_last.add(name)
            shape = (shape[2], shape[0], shape[1])
        if name == EMBEDDING and name in points and math.prod(shape[1:]) == 1:
            shape = shape[:1]
        whole[name] = _describe(name, points.get(name), shape, teacher)
        if whole[name].layout == "map" and name != EMBEDDING and EMBEDDING in found:
            places = (1, 2) if name in channels_last else (2, 3)
            averages = _is_the_same(tensor.mean(dim=places), found[EMBEDDING].flatten(1))
            whole[name] = dataclasses.replace(whole[name], averages_to_embedding=averages)
    features = [whole[EMBEDDING]] if EMBEDDING in whole else []
    reductions = {}
    for request in requests:
        if not request.reduction:
            features.append(whole[request.name])
            continue
        features.append(describe_reduced(request, whole[request.of]))
        reductions[request.name] = Reduce(request, whole[request.of])
    return GraphPlan(
        activation=teacher.activation,
        num_classes=0 if teacher.activation == "none" else int(result.shape[1]),
        features=tuple(features),
        points=points,
        head="" if head is None else head.module,
        channels_last=frozenset(channels_last),
        reductions=reductions,
    )


def _refuse_finished_probabilities(result: torch.Tensor) -> None:
    sums = result.sum(dim=1)
    if result.shape[1] > 1 and bool((result >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        raise ValueError(
            "the teacher already ends in softmax (its results are positive and sum to 1), and softmax of "
            "probabilities is wrong: return the logits"
        )


def _is_the_same(vectors: torch.Tensor, embedding: torch.Tensor) -> bool:
    largest = float(embedding.abs().max())
    return vectors.shape == embedding.shape and torch.allclose(vectors, embedding, rtol=0, atol=1e-3 * largest)


def _is_channels_last(teacher: Teacher, point: Point, shape: tuple[int, ...]) -> bool:
    """Whether a map [H, W, C] comes out here: said by the teacher, or shown by the grid of its tokens."""
    # Inside a channels-last model, convolutions still work on channels-first maps.
    if isinstance(teacher.module.get_submodule(point.module), nn.Conv2d | nn.BatchNorm2d):
        return False
    return teacher.map_layout == "NHWC" or (bool(teacher.grid) and shape[:2] == teacher.grid)


def _describe(name: str, point: Point | None, shape: tuple[int, ...], teacher: Teacher) -> OutputCard:
    module = "" if point is None else point.module
    if len(shape) == 1:
        return OutputCard(name=name, shape=shape, layout="vector", module=module)
    if len(shape) == 3:
        return OutputCard(name=name, shape=shape, layout="map", module=module)
    if len(shape) == 2:
        whole = bool(teacher.grid) and shape[0] == teacher.num_prefix_tokens + math.prod(teacher.grid)
        return OutputCard(
            name=name,
            shape=shape,
            layout="tokens",
            num_prefix_tokens=teacher.num_prefix_tokens if whole else 0,
            grid=teacher.grid if whole else (),
            module=module,
        )
    raise ValueError(
        f"output {name!r} has {len(shape)} axes per crop {list(shape)}; vectors, maps and tokens have 1, 3 and 2"
    )


class TeacherBody(nn.Module):
    """Normalised pixels float32 [N, C, H, W] -> the plan's outputs, in order.

    Computes in the number type of its module; the outputs are float32, ``log_probabilities`` float16. Hooks the module
    until :meth:`close`.
    """

    def __init__(self, module: nn.Module, plan: GraphPlan, compute: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.module = module
        self._plan = plan
        self._compute = compute
        self._capture = Capture(module, plan.points)
        self.reductions = nn.ModuleList(plan.reductions.values())
        self._reduce = dict(zip(plan.reductions, self.reductions, strict=True))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.module(pixels.to(self._compute)).to(torch.float32)
        captured = self._capture.take()
        outputs = []
        if self._plan.activation == "softmax":
            outputs.append(torch.log_softmax(result, dim=-1).to(torch.float16))
        if self._plan.activation != "none":
            outputs.append(result)
        for output in self._plan.features:
            whole = output.of or output.name
            values = (captured[whole] if whole in self._plan.points else result).to(torch.float32)
            if whole in self._plan.channels_last:
                values = values.permute(0, 3, 1, 2)
            if output.reduction:
                values = self._reduce[output.name](values)
            if values.ndim != len(output.shape) + 1:
                values = values.flatten(1)
            outputs.append(values)
        return tuple(outputs)

    def close(self) -> None:
        self._capture.close()


class TeacherGraph(nn.Module):
    """Crops [N, H, W, C] of the card's number type -> the plan's outputs. Normalises in float32."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, body: TeacherBody, teacher: Teacher, number_type: NumberType) -> None:
        super().__init__()
        self.body = body
        mean = torch.tensor(teacher.mean, dtype=torch.float64)
        std = torch.tensor(teacher.std, dtype=torch.float64)
        self.register_buffer("scale", (1.0 / (std * FULL_SCALE[number_type])).float().reshape(-1, 1, 1))
        self.register_buffer("shift", (-mean / std).float().reshape(-1, 1, 1))

    def forward(self, crops: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # The cast comes first because TensorRT takes uint8 into nothing else.
        pixels = crops.to(torch.float32).permute(0, 3, 1, 2)
        outputs: tuple[torch.Tensor, ...] = self.body(pixels * self.scale + self.shift)
        return outputs


def half_precision(module: nn.Module) -> nn.Module:
    """A float16 copy of a module; the original is left as it is."""
    return copy.deepcopy(module).half()
