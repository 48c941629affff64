"""What a student asks for (label spec), what it gets (soft labels), and the fixed-size record that a label
travels in.

A classifier's canonical label is float16 log-probabilities at temperature 1: any temperature can be applied
to it afterwards without loss, which float16 probabilities or logits do not allow. Multi-label (sigmoid)
teachers send float16 logits. Knows nothing of torch, wires or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.faults import BadLabelSpec, TemperatureMismatch, UnknownOutput
from teacherfarm.protos.label_numbers import Completion, complete, log_softmax, to_int8, top_k
from teacherfarm.protos.teacher_card import EMBEDDING, MEAN_LOGITS, Activation, TeacherCard

FeatureType = Literal["float16", "int8"]

__all__ = [
    "COLDEST",
    "HOTTEST",
    "LABELS",
    "Completion",
    "FeatureType",
    "LabelSpec",
    "SoftLabels",
    "complete",
    "log_softmax",
    "top_k",
]

LABELS = "labels"
"""The output that every teacher with classes has: its answer over the classes, in canonical form."""

SCALE_SUFFIX = ".scale"

COLDEST, HOTTEST = 1e-3, 1e3
"""Temperatures that a float32 softmax survives."""


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """What a student asks for.

    ``outputs``: "labels" (the distribution over classes) and / or the card's other outputs ("embedding",
    taps). Empty means "labels", or "embedding" for a teacher without classes. ``top_k``: 0 for the dense
    distribution; otherwise the k most probable classes at ``temperature``, which then is the only temperature
    they can be used at. ``feature_type``: number type of every output but "labels"; int8 carries one float32
    scale per channel.
    """

    outputs: tuple[str, ...] = ()
    top_k: int = 0
    temperature: float = 1.0
    feature_type: FeatureType = "float16"

    def __post_init__(self) -> None:
        if len(set(self.outputs)) != len(self.outputs):
            raise BadLabelSpec(f"a label spec names each output once, got {list(self.outputs)}")
        if self.top_k < 0:
            raise BadLabelSpec(f"top_k is 0 (dense) or the number of classes to keep, got {self.top_k}")
        if not COLDEST <= self.temperature <= HOTTEST:
            raise BadLabelSpec(f"temperature must be positive ({COLDEST:g} to {HOTTEST:g}), got {self.temperature}")
        if self.top_k == 0 and self.temperature != 1.0:
            raise BadLabelSpec(
                "dense labels travel at temperature 1 and take any temperature on the student: ask "
                f"LabelSpec() and call labels.probabilities(temperature={self.temperature:g}); a spec's "
                "temperature belongs to top_k"
            )
        if self.feature_type not in ("float16", "int8"):
            raise BadLabelSpec(f"feature_type is 'float16' or 'int8', got {self.feature_type!r}")

    def resolve(self, card: TeacherCard) -> LabelSpec:
        """This spec with its outputs spelled out for one teacher; raises a fault that says what the teacher
        lacks.
        """
        has_labels = card.activation != "none"
        outputs = self.outputs or ((LABELS,) if has_labels else ("embedding",))
        known = ([LABELS] if has_labels else []) + [output.name for output in card.features]
        for name in outputs:
            if name not in known:
                raise UnknownOutput(_without_output(card, name, known))
        if self.top_k and LABELS not in outputs:
            raise BadLabelSpec(f"top_k={self.top_k} needs the output 'labels', asked for {', '.join(outputs)}")
        if self.top_k > card.num_classes and LABELS in outputs:
            raise BadLabelSpec(
                f"top_k={self.top_k} of a teacher with {card.num_classes} classes; ask at most that many"
            )
        if self.top_k and card.activation == "sigmoid":
            raise BadLabelSpec(
                "top-k labels need a softmax teacher; this one has independent (sigmoid) classes: ask dense"
            )
        if self.top_k and card.fixed_temperature not in (0, self.temperature):
            raise TemperatureMismatch(
                f"the {len(card.members)} members of {card.name!r} are averaged at temperature "
                f"{card.fixed_temperature:g}, top-k labels at {self.temperature:g} are none of theirs: ask temperature="
                f"{card.fixed_temperature:g}, or export it with --ensemble-temperature {self.temperature:g}"
            )
        return LabelSpec(
            outputs=outputs, top_k=self.top_k, temperature=self.temperature, feature_type=self.feature_type
        )

    def graph_outputs(self, card: TeacherCard) -> tuple[str, ...]:
        """The graph's outputs that answer this (resolved) spec; slices with equal sets share a teacher batch."""
        return tuple(card.label_output if name == LABELS else name for name in self.outputs)

    def record_dtype(self, card: TeacherCard) -> np.dtype[np.void]:
        """The packed little-endian structure of one label of this (resolved) spec."""
        fields: list[tuple[str, str, tuple[int, ...]]] = []
        for name in self.outputs:
            if name == LABELS and self.top_k:
                fields.append(("classes", "<u2" if card.num_classes <= 65536 else "<u4", (self.top_k,)))
                fields.append(("log_probabilities", "<f2", (self.top_k,)))
            elif name == LABELS:
                fields.append((LABELS, "<f2", (card.num_classes,)))
            elif self.feature_type == "int8":
                feature = card.feature(name)
                # A vector's numbers share one scale: with its own, each would take five bytes.
                num_scales = 1 if feature.layout == "vector" else feature.num_channels
                fields.append((name + SCALE_SUFFIX, "<f4", (num_scales,)))
                fields.append((name, "<i1", feature.shape))
            else:
                fields.append((name, "<f2", card.feature(name).shape))
        return np.dtype(fields)

    def pack(
        self, graph_outputs: Mapping[str, NDArray[Any]], card: TeacherCard, dtype: np.dtype[np.void] | None = None
    ) -> NDArray[np.void]:
        """Label records [N] of what the graph returned; ValueError when the graph's shapes are not the
        card's.

        ``dtype``: :meth:`record_dtype`, where the caller has it at hand.
        """
        first = graph_outputs[self.graph_outputs(card)[0]]
        records = np.empty(len(first), self.record_dtype(card) if dtype is None else dtype)
        for name in self.outputs:
            values = graph_outputs[card.label_output if name == LABELS else name]
            due = (len(first), *((card.num_classes,) if name == LABELS else card.feature(name).shape))
            if values.shape != due:
                # Assigned as it is, an axis of 1 would be repeated in silence.
                raise ValueError(f"output {name!r} of teacher {card.name!r} is {list(values.shape)}, due {list(due)}")
            if name == LABELS and self.top_k:
                # An ensemble's answers are at its temperature already.
                temperature = 1.0 if card.fixed_temperature else self.temperature
                records["classes"], records["log_probabilities"] = top_k(values, self.top_k, temperature)
            elif name != LABELS and self.feature_type == "int8":
                feature = card.feature(name)
                channel_axis = None if feature.layout == "vector" else feature.channel_axis
                records[name], records[name + SCALE_SUFFIX] = to_int8(values, channel_axis)
            else:
                records[name] = values
        return records


def _without_output(card: TeacherCard, name: str, known: Sequence[str]) -> str:
    """Why a teacher cannot give an output, and what to do."""
    has = f"teacher {card.name!r} has no output {name!r}; it has {', '.join(known) or 'none'}"
    if name == LABELS:
        return f"{has}. It has no classes: ask one of these by LabelSpec(outputs=(...))"
    if name in (EMBEDDING, MEAN_LOGITS):
        return f"{has}. A classifier has one where it ends in a linear layer, an ensemble has {MEAN_LOGITS!r}"
    whole = name.partition("@")[0]
    instead = f", or ask {whole!r} and reduce it on the student" if whole != name and whole in known else ""
    return f"{has}. Taps are chosen at export: {card.export_command(name)}{instead}"


@dataclass(frozen=True, kw_only=True, eq=False)
class SoftLabels:
    """A teacher's answers for N crops, in the order asked.

    ``records``: structured array [N] of ``spec.record_dtype(card)``. ``weight``: float32 [N], 1 for an
    answered crop and 0 for one that got no answer (starved or unreadable); such a record holds zeros and
    means nothing. ``fixed_temperature``: of an ensemble, the only one its distribution holds at (0: any).
    """

    records: NDArray[np.void]
    spec: LabelSpec
    num_classes: int
    activation: Activation
    weight: NDArray[np.float32]
    channel_axes: Mapping[str, int] = field(default_factory=dict)
    fixed_temperature: float = 0.0

    @classmethod
    def from_records(
        cls,
        records: NDArray[np.void],
        spec: LabelSpec,
        card: TeacherCard,
        weight: NDArray[np.float32] | None = None,
    ) -> SoftLabels:
        """Soft labels around records that are already there; every crop counts unless ``weight`` says
        otherwise.
        """
        return cls(
            records=records,
            spec=spec,
            num_classes=card.num_classes,
            activation=card.activation,
            weight=np.ones(len(records), np.float32) if weight is None else weight,
            channel_axes={output.name: output.channel_axis for output in card.features},
            fixed_temperature=card.fixed_temperature,
        )

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        kind = f"top-{self.spec.top_k} at T={self.spec.temperature:g}" if self.spec.top_k else "dense"
        unanswered = int((self.weight == 0).sum())
        return f"<SoftLabels {len(self)} x {', '.join(self.spec.outputs)}, {kind}, {unanswered} without answer>"

    @property
    def is_top_k(self) -> bool:
        return self.spec.top_k > 0

    @property
    def log_probabilities(self) -> NDArray[np.float16]:
        """As received: [N, C] at temperature 1 where dense (an ensemble's: at its own; see :meth:`divisor`), [N, k] at
        the spec's temperature where top-k.
        """
        self._require_classes()
        if self.activation != "softmax":
            raise UnknownOutput("this teacher's classes are independent (sigmoid): use .logits or .probabilities()")
        field_name = "log_probabilities" if self.is_top_k else LABELS
        return np.asarray(self.records[field_name])

    @property
    def logits(self) -> NDArray[np.float16]:
        """A sigmoid teacher's logits [N, C]. A softmax teacher's log-probabilities serve as its logits."""
        self._require_classes()
        if self.is_top_k:
            raise UnknownOutput("top-k labels hold no logits of the other classes: ask LabelSpec() for dense labels")
        return np.asarray(self.records[LABELS])

    @property
    def classes(self) -> NDArray[Any]:
        """Class numbers [N, k] of top-k labels, most probable first."""
        if not self.is_top_k:
            raise UnknownOutput("dense labels hold every class in order; .top1 gives the best one")
        return np.asarray(self.records["classes"])

    @property
    def top1(self) -> NDArray[np.int64]:
        """The most probable class of each crop [N]."""
        self._require_classes()
        best = self.classes[:, 0] if self.is_top_k else np.argmax(self.records[LABELS], axis=-1)
        return np.asarray(best, dtype=np.int64)

    def probabilities(
        self, temperature: float | None = None, *, completion: Completion = "smoothing"
    ) -> NDArray[np.float32]:
        """Float32 [N, C]; rows sum to 1 for a softmax teacher.

        ``temperature``: any for dense labels (default 1), an ensemble's only at its own (the default); for top-k labels
        only the spec's own (the default).
        ``completion`` of top-k labels: the rest of the mass spread evenly over the other classes
        ("smoothing", FKD's marginal smoothing), or the kept ones scaled up to sum to 1 ("renorm", FKD's
        marginal re-norm).
        """
        self._require_classes()
        if self.is_top_k:
            if temperature is not None and temperature != self.spec.temperature:
                raise TemperatureMismatch(
                    f"these top-{self.spec.top_k} labels were cut at temperature {self.spec.temperature:g} "
                    f"and cannot be used at {temperature:g}: ask LabelSpec(top_k={self.spec.top_k}, "
                    f"temperature={temperature:g}), or for dense labels, which take any temperature"
                )
            return complete(self.classes, self.log_probabilities, self.num_classes, completion)
        temperature = self.divisor(temperature)
        if self.activation == "sigmoid":
            logits = self.logits.astype(np.float32) / np.float32(temperature)
            return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), dtype=np.float32)
        return np.exp(log_softmax(self.log_probabilities, temperature))

    def divisor(self, temperature: float | None = None) -> float:
        """What dense log-probabilities are divided by before a softmax, for the distribution at ``temperature``.

        Raises TemperatureMismatch: the mean of an ensemble's softmax(z / T) at one T says nothing of another.
        """
        fixed = self.fixed_temperature
        if fixed:
            if temperature is not None and temperature != fixed:
                raise TemperatureMismatch(
                    f"this ensemble's members were averaged at temperature {fixed:g}, so its labels cannot be used at "
                    f"{temperature:g}: use {fixed:g}, or export it with --ensemble-temperature {temperature:g}"
                )
            return 1.0
        temperature = 1.0 if temperature is None else temperature
        if not COLDEST <= temperature <= HOTTEST:
            raise ValueError(f"temperature must be positive ({COLDEST:g} to {HOTTEST:g}), got {temperature}")
        return temperature

    def output(self, name: str) -> NDArray[Any]:
        """A feature output [N, ...] as float16 (or float32, restored from int8)."""
        if name == LABELS or name not in self.spec.outputs:
            raise UnknownOutput(
                f"these labels were not asked with output {name!r} but with {', '.join(self.spec.outputs)}; "
                f"use spec=LabelSpec(outputs=({name!r}, ...))"
            )
        values = np.asarray(self.records[name])
        if self.spec.feature_type == "float16":
            return values
        scale = self.records[name + SCALE_SUFFIX]
        axis = self.channel_axes[name]
        shape = [len(values)] + [scale.shape[1] if index == axis else 1 for index in range(values.ndim - 1)]
        return np.asarray(values.astype(np.float32) * scale.reshape(shape))

    def take(self, rows: NDArray[Any] | Sequence[int] | slice) -> SoftLabels:
        """The soft labels of some rows."""
        index = rows if isinstance(rows, slice) else np.asarray(rows, None if len(rows) else np.intp)
        return SoftLabels(
            records=self.records[index],
            spec=self.spec,
            num_classes=self.num_classes,
            activation=self.activation,
            weight=self.weight[index],
            channel_axes=self.channel_axes,
            fixed_temperature=self.fixed_temperature,
        )

    def to(self, *_: object, **__: object) -> SoftLabels:
        """These labels. Lightning and accelerate move all that they find in a batch by ``to``; the losses
        move what they need, so nothing is moved here.
        """
        return self

    def _require_classes(self) -> None:
        if LABELS not in self.spec.outputs:
            raise UnknownOutput(f"these labels hold {', '.join(self.spec.outputs)}, not a distribution over classes")
