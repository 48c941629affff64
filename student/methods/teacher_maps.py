"""Which of the teacher's outputs brings a stage's map, and the map as a method compares it: reduced where the teacher
reduces as the loss would, else pooled here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from teacherfarm.protos.teacher_card import EMBEDDING, OutputCard, TeacherCard
from teacherfarm.student.methods.method import MethodMismatch, Setup, Step
from teacherfarm.student.methods.teacher_values import feature


@dataclass(frozen=True, kw_only=True)
class TeacherMap:
    """``output``: what to ask the teacher for; ``shape``: [C, H, W] as it is compared, after pooling here."""

    output: str
    shape: tuple[int, int, int]

    def take(self, step: Step, like: Tensor) -> Tensor:
        """The maps [N, C, H, W] of a step beside the student's ``like``."""
        return pool(feature(step, self.output, like), self.shape[1], self.shape[2])


def pool(maps: Tensor, height: int, width: int) -> Tensor:
    """[N, C, H, W] averaged to a size; as they are where they have it."""
    if maps.shape[2:] == (height, width):
        return maps
    return functional.adaptive_avg_pool2d(maps, (height, width))


def teacher_stages(setup: Setup) -> tuple[str, ...]:
    """The teacher's stages from the first to the last: those that were named, or all that its outputs are of.

    Raises MethodMismatch where it was exported without any, or where one that was named is no map, or not there.
    """
    for name in setup.teacher_taps:
        _need_map(setup, name)
    if setup.teacher_taps:
        return setup.teacher_taps
    outputs = [output for output in setup.card.features if output.layout == "map" or "@" in output.name]
    stages = dict.fromkeys(output.name.partition("@")[0] for output in outputs)
    stages.pop(EMBEDDING, None)
    if not stages:
        raise MethodMismatch(
            f"teacher {setup.card.name!r} was exported without feature maps, it has {has(setup.card)}; one --tap "
            f"MODULE for each stage gives them: {setup.card.export_command('MODULE')}"
        )
    return tuple(stages)


def paired_stages(setup: Setup) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """(the student's tap, its shape [C, H, W], the teacher's stage) from the first on; what is left over is ignored."""
    student = setup.student_maps()
    return tuple(
        (tap, shape, stage) for (tap, shape), stage in zip(student.items(), teacher_stages(setup), strict=False)
    )


def find_map(setup: Setup, stage: str) -> OutputCard | None:
    """The output card of a stage's whole map, None where the teacher does not give it."""
    output = outputs_by_name(setup.card).get(stage)
    return output if output is not None and output.layout == "map" else None


def whole_map(setup: Setup, stage: str) -> TeacherMap:
    """A stage as it is. Raises MethodMismatch that names the export."""
    found = find_map(setup, stage)
    if found is None:
        raise lacks(setup, stage, stage)
    return TeacherMap(output=stage, shape=_shape(found))


def pooled_map(setup: Setup, stage: str, height: int, width: int) -> TeacherMap:
    """A stage no larger than this, the student's size. Raises MethodMismatch that names the export.

    Averaging inside the teacher's graph is what would be done here, for a fraction of the bytes.
    """
    whole = find_map(setup, stage)
    if whole is not None:
        height, width = min(height, whole.shape[1]), min(width, whole.shape[2])
        if whole.shape[1:] == (height, width):
            return TeacherMap(output=stage, shape=_shape(whole))
    reduced = find_map(setup, f"{stage}@{height}x{width}")
    if reduced is not None:
        return TeacherMap(output=reduced.name, shape=_shape(reduced))
    if whole is None:
        raise lacks(setup, stage, f"{stage}@{height}x{width}")
    return TeacherMap(output=stage, shape=(whole.shape[0], height, width))


def outputs_by_name(card: TeacherCard) -> Mapping[str, OutputCard]:
    """The card's features by name."""
    return {output.name: output for output in card.features}


def has(card: TeacherCard) -> str:
    """The names of what a teacher was exported with."""
    return ", ".join(outputs_by_name(card)) or "no features"


def lacks(setup: Setup, stage: str, tap: str) -> MethodMismatch:
    """What to say where a stage is not to be had in the form that a method needs."""
    return MethodMismatch(
        f"teacher {setup.card.name!r} gives no output {tap!r} (stage {stage!r}), it has {has(setup.card)}: "
        f"{setup.card.export_command(tap)}"
    )


def _need_map(setup: Setup, stage: str) -> None:
    known = outputs_by_name(setup.card)
    if stage in known and known[stage].layout != "map":
        kind = {"tokens": "tokens: use --method tokens, or name", "vector": "a vector: name"}[known[stage].layout]
        raise MethodMismatch(
            f"output {stage!r} of teacher {setup.card.name!r} is no feature map but {kind} others with --teacher-taps"
        )
    if not any(name == stage or name.startswith(f"{stage}@") for name in known):
        raise lacks(setup, stage, stage)


def _shape(output: OutputCard) -> tuple[int, int, int]:
    channels, height, width = output.shape
    return channels, height, width
