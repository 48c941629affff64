"""What recorded labels are labels of: teacher, crops, label spec and samples, and in which field two of these differ.

Plain values and strict JSON; opens no file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from teacherfarm.crops.crop_plan import BOX, CropPlan
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.faults import LabelsMismatch
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.protos.teacher_card import Activation, Precision, TeacherCard, classes_hash, from_json_value

MANIFEST_VERSION = 1

LABEL, BOX_FIELD = "label", "box"
"""Fields of a stored record where boxes are kept; without boxes the label's record is stored as it is."""


@dataclass(frozen=True, kw_only=True)
class TeacherIdentity:
    """Which teacher labelled, and what its records mean without its card.

    ``name`` is for the reader: the digests tell teachers apart. Files of other projects may know no digest (empty).
    """

    name: str
    teacher_digest: str
    artifact_digest: str
    num_classes: int
    activation: Activation
    classes_hash: str = ""
    precision: Precision = "fp32"
    channel_axes: Mapping[str, int] = field(default_factory=dict)
    fixed_temperature: float = 0.0

    @classmethod
    def of(cls, card: TeacherCard) -> TeacherIdentity:
        return cls(
            name=card.name,
            teacher_digest=card.teacher_digest,
            artifact_digest=card.artifact_digest,
            num_classes=card.num_classes,
            activation=card.activation,
            classes_hash=card.classes_hash or classes_hash(card.classes),
            precision=card.precision,
            channel_axes={output.name: output.channel_axis for output in card.features},
            fixed_temperature=card.fixed_temperature,
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a directory of recorded labels holds.

    ``plan``: None where no plan gave the crops; then ``has_boxes``, or ``mixing`` says who can cut them.
    ``spec`` is resolved for the teacher.
    ``views``: labels of each sample, at most. ``samples``: digest of the index of samples kept beside it.
    ``mixing``: "none", or how crops were mixed before the teacher saw them.
    """

    teacher: TeacherIdentity
    plan: CropPlan | None
    rendering: Rendering
    spec: LabelSpec
    views: int
    record_dtype: np.dtype[np.void]
    samples: str
    has_boxes: bool = False
    mixing: str = "none"

    def __post_init__(self) -> None:
        if not 1 <= self.views < 2**32:
            raise ValueError(f"views lies in 1..2**32 - 1, got {self.views}")
        if not self.record_dtype.names:
            raise ValueError(f"record_dtype is spec.record_dtype(card), a structure of fields, got {self.record_dtype}")
        if self.plan is not None and type(self.plan) is not CropPlan:
            raise ValueError("boxes that were recorded are no crop plan: such labels need plan=None, has_boxes=True")
        if self.plan is None and not self.has_boxes and self.mixing == "none":
            raise ValueError("labels of crops that no plan gave need their boxes: has_boxes=True")

    @classmethod
    def of(
        cls,
        card: TeacherCard,
        spec: LabelSpec,
        *,
        plan: CropPlan | None,
        rendering: Rendering,
        views: int,
        samples: str,
        has_boxes: bool = False,
        mixing: str = "none",
    ) -> Manifest:
        """The manifest of a teacher's labels; ``spec`` need not be resolved. Raises the spec's faults."""
        resolved = spec.resolve(card)
        return cls(
            teacher=TeacherIdentity.of(card),
            plan=plan,
            rendering=rendering,
            spec=resolved,
            views=views,
            record_dtype=resolved.record_dtype(card),
            samples=samples,
            has_boxes=has_boxes,
            mixing=mixing,
        )

    @property
    def stored_dtype(self) -> np.dtype[np.void]:
        """One label as it lies on disk: its record, with its box behind it where boxes are kept."""
        return np.dtype([(LABEL, self.record_dtype), (BOX_FIELD, BOX)]) if self.has_boxes else self.record_dtype

    def mismatch(self, other: Manifest) -> tuple[str, object, object] | None:
        """The first field in which ``other`` differs, this one's value and the other's; None where none does.

        The teacher's name does not count, nor the axes of outputs that were not recorded, nor an index of samples that
        one of the two leaves open ("").
        """
        theirs = other._compared()
        for name, our in self._compared().items():
            their = theirs[name]
            if isinstance(our, dict) and isinstance(their, dict):
                for part in [*our, *(their.keys() - our.keys())]:
                    if our.get(part) != their.get(part) and (name, part) != ("teacher", "name"):
                        return f"{name}.{part}", our.get(part), their.get(part)
            elif our != their and not (name == "samples" and "" in (our, their)):
                return name, our, their
        return None

    def _compared(self) -> dict[str, object]:
        axes = {name: axis for name, axis in self.teacher.channel_axes.items() if name in self.spec.outputs}
        return self.to_dict() | {"teacher": dataclasses.asdict(self.teacher) | {"channel_axes": axes}}

    def refuse_other(self, wanted: Manifest, where: str) -> None:
        """Raise LabelsMismatch naming the first field in which the labels in ``where`` are not the ones ``wanted``."""
        found = self.mismatch(wanted)
        if found is not None:
            name, ours, theirs = found
            raise LabelsMismatch(
                f"the labels recorded in {where} have {name} {ours!r}, wanted is {theirs!r}: use labels that were "
                "recorded so, ask for what was recorded, or record anew into another folder"
            )

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values that :meth:`from_dict` reads back to an equal manifest."""
        return {
            "teacher": dataclasses.asdict(self.teacher) | {"channel_axes": dict(self.teacher.channel_axes)},
            "plan": self.plan.to_dict() if self.plan else None,
            "rendering": dataclasses.asdict(self.rendering),
            "spec": dataclasses.asdict(self.spec) | {"outputs": list(self.spec.outputs)},
            "views": self.views,
            "record_dtype": [
                [name, self.record_dtype[name].base.str, list(self.record_dtype[name].shape)]
                for name in self.record_dtype.names or ()
            ],
            "samples": self.samples,
            "has_boxes": self.has_boxes,
            "mixing": self.mixing,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Manifest:
        """Raises ValueError naming the field that is missing, unknown or of the wrong type."""
        expected = [item.name for item in dataclasses.fields(cls)]
        if sorted(values) != sorted(expected):
            raise ValueError(f"a manifest has the fields {', '.join(expected)}; got {', '.join(values)}")
        plan = values["plan"]
        if plan is not None and not isinstance(plan, Mapping):
            raise ValueError(f"a manifest's plan is an object or null, got {plan!r}")

        def value(kind: object, name: str) -> object:
            return from_json_value(kind, values[name], f"manifest.{name}")

        return cls(
            teacher=value(TeacherIdentity, "teacher"),  # type: ignore[arg-type]
            plan=None if plan is None else CropPlan.from_dict(plan),
            rendering=value(Rendering, "rendering"),  # type: ignore[arg-type]
            spec=value(LabelSpec, "spec"),  # type: ignore[arg-type]
            views=value(int, "views"),  # type: ignore[arg-type]
            record_dtype=_dtype(value(tuple[tuple[str, str, tuple[int, ...]], ...], "record_dtype")),
            samples=value(str, "samples"),  # type: ignore[arg-type]
            has_boxes=value(bool, "has_boxes"),  # type: ignore[arg-type]
            mixing=value(str, "mixing"),  # type: ignore[arg-type]
        )


def _dtype(fields: object) -> np.dtype[np.void]:
    try:
        dtype: np.dtype[np.void] = np.dtype(list(fields))  # type: ignore[call-overload, assignment]
    except (TypeError, ValueError) as error:
        raise ValueError(f"manifest.record_dtype is no list of [name, number type, shape]: {error}") from error
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError(f"manifest.record_dtype holds numbers only, got {dtype}")
    return dtype
