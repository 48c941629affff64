"""What stands beside the exported model: its card, and the golden answers that every server checks.

Plain values from what export found; writes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from teacherfarm import __version__
from teacherfarm.export.teachers import Teacher
from teacherfarm.export.verify import Answers, Comparison, probabilities
from teacherfarm.protos.crop import CropFormat, NumberType, Rendering
from teacherfarm.protos.teacher_card import (
    EMBEDDING,
    LOGITS,
    Activation,
    EnsembleMember,
    Precision,
    TeacherCard,
    classes_hash,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from teacherfarm.export.graph import GraphPlan
    from teacherfarm.export.probes import Probes

_NUM_GOLDEN_PHOTOGRAPHS = 8
_LARGEST_FLOAT16 = 65504.0


def describe(
    teacher: Teacher,
    plan: GraphPlan,
    *,
    name: str,
    teacher_digest: str,
    model: bytes,
    rendering: Rendering,
    input_type: NumberType,
    precision: Precision,
    tensorrt: bool,
    opset: int,
    head: bytes | None,
    headless: str,
    verification: Mapping[str, float],
) -> TeacherCard:
    """The card. ``model``: the file that is served; ``head``: the classifier's, or None and why."""
    class_names = teacher.classes if plan.num_classes else ()
    return TeacherCard(
        name=name,
        teacher_digest=teacher_digest,
        artifact_digest=hashlib.sha256(model).hexdigest(),
        model_file="1/model.plan" if tensorrt else "1/model.onnx",
        crop_format=CropFormat(
            height=teacher.height, width=teacher.width, channels=teacher.num_channels, number_type=input_type
        ),
        rendering=rendering,
        num_classes=plan.num_classes,
        activation=teacher.activation,
        features=plan.features,
        channel_order=teacher.channel_order,
        crop_scale=teacher.crop_scale,
        crop_ratio=teacher.crop_ratio,
        center_crop_fraction=teacher.center_crop_fraction,
        mean=() if teacher.members else teacher.mean,
        std=() if teacher.members else teacher.std,
        classes=class_names,
        classes_hash=classes_hash(class_names),
        precision=precision,
        provider_class="tensorrt" if tensorrt else "onnxruntime",
        opset=opset,
        has_head=head is not None,
        head_digest="" if head is None else hashlib.sha256(head).hexdigest(),
        headless=headless,
        members=tuple(_describe_member(member) for member in teacher.members),
        fixed_temperature=teacher.fixed_temperature,
        source=teacher.source,
        licence=teacher.licence,
        weights_source=teacher.weights_source,
        exported_by=f"teacherfarm {__version__}",
        verification=verification,
    )


def _describe_member(member: Teacher) -> EnsembleMember:
    return EnsembleMember(
        name=member.name,
        source=member.source,
        height=member.height,
        width=member.width,
        weights_source=member.weights_source,
        licence=member.licence,
    )


def figures(comparisons: Sequence[Comparison], probes: Probes) -> dict[str, float]:
    """Of the verification, for the card."""
    found: dict[str, float] = {
        "num_photographs": float(probes.num_photographs),
        "num_structured": float(probes.num_structured),
    }
    for comparison in comparisons:
        found |= comparison.figures()
    return found


def beyond_float16(plan: GraphPlan, reference: Answers) -> str:
    """A note on features with numbers that float16 cannot hold, which students would get as infinite; "" without."""
    largest = {output.name: float(np.abs(reference[output.name]).max()) for output in plan.features}
    found = [f"{name} (up to {most:.3g})" for name, most in largest.items() if most > _LARGEST_FLOAT16]
    if not found:
        return ""
    return f"note: {', '.join(found)} exceeds float16: students ask for it by LabelSpec(feature_type='int8')\n"


def golden_answers(
    probes: Probes, crops: NDArray[Any], reference: Answers, activation: Activation
) -> dict[str, NDArray[Any]]:
    """Some photographs and every structured crop, with PyTorch's fp32 answers."""
    photographs = np.arange(min(_NUM_GOLDEN_PHOTOGRAPHS, probes.num_photographs))
    rows = np.concatenate([photographs, np.arange(probes.num_photographs, len(crops))])
    kept = {output: values[rows] for output, values in reference.items() if output in (LOGITS, EMBEDDING)}
    golden = {"crops": crops[rows]} | kept
    if activation != "none":
        golden["probabilities"] = probabilities(kept, activation, 1.0)
    return golden
