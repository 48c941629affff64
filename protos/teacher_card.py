"""The teacher card: an exported teacher's description, written by export, read by the server, shown to students.

Plain values and JSON; opens no file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from teacherfarm.protos.crop import CropFormat, NumberType, Rendering

Activation = Literal["softmax", "sigmoid", "none"]
Precision = Literal["fp32", "fp16", "bf16"]
Reduction = Literal["", "pool", "attention"]

CARD_VERSION = 1
CARD_FILE = "card.json"
GOLDEN_FILE = "golden.npz"
HEAD_FILE = "head.safetensors"

CARD_PARAMETER = "card"
"""Name of the parameter of Triton's config.pbtxt that holds the card as JSON, for students without a gateway."""

CROPS_INPUT = "crops"
"""Name of the graph's only input."""

LOG_PROBABILITIES = "log_probabilities"
LOGITS = "logits"
EMBEDDING = "embedding"
MEAN_LOGITS = "mean_logits"
"""Of an ensemble: the mean of its members' logits [C]."""

GOLDEN_TOLERANCE: Mapping[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}
"""Largest difference of a probability (embeddings: of a value, relative to the largest) from PyTorch's in fp32."""


@dataclass(frozen=True, kw_only=True)
class OutputCard:
    """One named output of the graph; ``shape`` is per crop, without the batch axis.

    ``layout``: "vector" [D], "map" [C, H, W], or "tokens" [T, D] whose first ``num_prefix_tokens`` are not patches and
    whose others lie row by row in ``grid``. ``reduction``: what the graph made of the map ``of``, crop by crop: "pool",
    averaged to this size; "attention", the mean over channels of its squares (after averaging it, where the name says a
    size), flattened and divided by its Euclidean norm [H * W]. ``averages_to_embedding``: whether a map's mean over its
    places is the embedding, as methods that reuse the classifier need it; None where that is not known.
    """

    name: str
    shape: tuple[int, ...]
    number_type: str = "float32"
    layout: Literal["vector", "map", "tokens"] = "vector"
    num_prefix_tokens: int = 0
    grid: tuple[int, ...] = ()
    module: str = ""
    reduction: Reduction = ""
    of: str = ""
    averages_to_embedding: bool | None = None

    @property
    def channel_axis(self) -> int:
        """Which axis of ``shape`` counts channels."""
        return 0 if self.layout == "map" else len(self.shape) - 1

    @property
    def num_channels(self) -> int:
        return self.shape[self.channel_axis]


@dataclass(frozen=True, kw_only=True)
class EnsembleMember:
    """One teacher of an ensemble, and the size that it sees crops at, in pixels."""

    name: str
    source: str
    height: int
    width: int
    weights_source: str = ""
    licence: str = ""


@dataclass(frozen=True, kw_only=True)
class TeacherCard:
    """An exported teacher.

    ``teacher_digest`` names the fp32 graph and weights, whatever precision is served; ``artifact_digest`` is the
    SHA-256 of the model file that is served. ``classes`` may be empty (names unknown) or name all of them in order.
    ``rendering`` is how the teacher's crops should be cut, ``crop_scale`` the range of areas it was trained on.
    ``mean`` and ``std`` are for the reader: normalisation is inside the graph. ``has_head``: its linear classifier can
    be had (SHA-256 of its file: ``head_digest``); else ``headless`` says why not. ``members``: of an ensemble, whose
    label is the mean of their softmax(z / T) and holds at T = ``fixed_temperature`` alone (0: at any).
    """

    name: str
    teacher_digest: str
    artifact_digest: str
    model_file: str
    crop_format: CropFormat
    rendering: Rendering
    num_classes: int
    activation: Activation
    features: tuple[OutputCard, ...]
    channel_order: Literal["RGB", "BGR", "GRAY"] = "RGB"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    center_crop_fraction: float = 0.875
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    classes_hash: str = ""
    precision: Precision = "fp32"
    provider_class: str = "onnxruntime"
    opset: int = 0
    optimisation_level: str = "all"
    has_head: bool = False
    head_digest: str = ""
    headless: str = ""
    members: tuple[EnsembleMember, ...] = ()
    fixed_temperature: float = 0.0
    source: str = ""
    licence: str = ""
    weights_source: str = ""
    exported_by: str = ""
    verification: Mapping[str, float] = field(default_factory=dict)
    card_version: int = CARD_VERSION

    def __post_init__(self) -> None:
        if self.activation != "none" and self.num_classes < 1:
            raise ValueError(f"teacher {self.name!r} has activation {self.activation!r} but {self.num_classes} classes")
        if self.classes and len(self.classes) != self.num_classes:
            raise ValueError(f"teacher {self.name!r} names {len(self.classes)} classes of {self.num_classes}")

    @property
    def label_output(self) -> str:
        """The graph output that the canonical label is made from."""
        return LOG_PROBABILITIES if self.activation == "softmax" else LOGITS

    def feature(self, name: str) -> OutputCard:
        """The output card of a feature; KeyError when there is none."""
        for output in self.features:
            if output.name == name:
                return output
        raise KeyError(name)

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the features that were asked for at export."""
        return tuple(output.name for output in self.features if output.name not in (EMBEDDING, MEAN_LOGITS))

    def export_command(self, *more_taps: str) -> str:
        """What exports this teacher with further taps, for an error's advice."""
        if self.members:
            return "an ensemble has no taps: export one of its members by itself"
        taps = " ".join(f"--tap {tap}" for tap in dict.fromkeys(self.taps + more_taps))
        command = f"teacherfarm export {self.source or 'SOURCE'} --name {self.name} {taps} --force"
        return f"export it again, its other options (--out, --weights, ...) as before: {command}"

    @property
    def graph_outputs(self) -> tuple[str, ...]:
        """Every output that the exported graph has, in its order."""
        labels = {"softmax": (LOG_PROBABILITIES, LOGITS), "sigmoid": (LOGITS,), "none": ()}[self.activation]
        return labels + tuple(output.name for output in self.features)

    def to_json(self) -> str:
        """Indented JSON that :meth:`from_json` reads back to an equal card."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> TeacherCard:
        """Raises ValueError naming the field that is missing, unknown or of the wrong type."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the card is not JSON ({error})") from error
        version = values.get("card_version") if isinstance(values, dict) else None
        if version != CARD_VERSION:
            raise ValueError(
                f"card version {version!r}, this teacherfarm reads {CARD_VERSION}: export the teacher again"
            )
        card = from_json_value(cls, values, "card")
        assert isinstance(card, TeacherCard)
        return card


def classes_hash(classes: tuple[str, ...]) -> str:
    """A short name for a list of classes in order: SHA-256 of the names joined by newlines, 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16] if classes else ""


def from_json_value(kind: Any, value: Any, where: str) -> Any:
    """A value of type ``kind`` from parsed JSON, checked field by field."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, got {value!r}")
        hints = typing.get_type_hints(kind)
        if unknown := value.keys() - hints.keys():
            raise ValueError(f"{where} has unknown fields {sorted(unknown)}")
        built = {name: from_json_value(hints[name], item, f"{where}.{name}") for name, item in value.items()}
        try:
            return kind(**built)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} must be one of {list(arguments)}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {value!r}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise ValueError(f"{where} must have {len(kinds)} entries, got {len(value)}")
        return tuple(
            from_json_value(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True))
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, got {value!r}")
        return {str(key): from_json_value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is types.UnionType:
        return None if value is None else from_json_value(arguments[0], value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(f"{where} is too large a number") from error
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be {kind.__name__}, got {value!r}")
    return value


__all__ = [
    "CARD_FILE",
    "CARD_PARAMETER",
    "CARD_VERSION",
    "CROPS_INPUT",
    "EMBEDDING",
    "GOLDEN_FILE",
    "GOLDEN_TOLERANCE",
    "HEAD_FILE",
    "LOGITS",
    "LOG_PROBABILITIES",
    "MEAN_LOGITS",
    "Activation",
    "EnsembleMember",
    "NumberType",
    "OutputCard",
    "Precision",
    "Reduction",
    "TeacherCard",
    "classes_hash",
    "from_json_value",
]
