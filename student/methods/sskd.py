"""Stage-by-stage distillation: one stage of the backbone after the other learns the teacher's map, then the classifier
alone learns the data's labels (Gao et al., arXiv 1812.01819).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.losses import hard_cross_entropy
from teacherfarm.student.methods.frozen import eval_where_still, train_only
from teacherfarm.student.methods.method import Asks, Method, MethodMismatch, Phase, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.teacher_maps import TeacherMap, pool, pooled_map, teacher_stages
from teacherfarm.student.methods.teacher_values import weighted_mean, wide


@dataclass(frozen=True, kw_only=True)
class SSKDSettings:
    """None of these is known from the paper, whose text was not at hand: defaults of ours."""

    head_epochs: int = setting(0, "epochs of the classifier, 0: as many as a stage; the stages share the rest evenly")
    adapter: str = setting(
        "where-needed",
        "a 1 x 1 convolution on the student's map: where its channels are not the teacher's, or always",
        choices=("where-needed", "always"),
    )
    error: str = setting("mean", "of squares over a map's elements: mean or sum", choices=("mean", "sum"))


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """A stage of the student, its channels, and what of the teacher it learns."""

    tap: str
    channels: int
    teacher: TeacherMap


class SSKD(Method):
    """Phase i: stage i alone is trained, on the squared error of its map to the teacher's, averaged to the smaller size
    where they differ. Last phase: what lies behind the last stage, on the data's labels, without a teacher.

    What is not trained stands in eval mode, so that a finished stage stays what it was.
    """

    name = "sskd"
    about = "the backbone stage by stage on the teacher's maps, then the classifier alone on the data's labels"
    paper = "Gao et al., An Embarrassingly Simple Approach for Knowledge Distillation, arXiv 1812.01819"
    Settings = SSKDSettings
    settings: SSKDSettings

    def __init__(self, settings: SSKDSettings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.stages = _stages(setup)
        self.adapters = nn.ModuleList(
            nn.Conv2d(stage.channels, stage.teacher.shape[0], 1)
            if settings.adapter == "always" or stage.channels != stage.teacher.shape[0]
            else nn.Identity()
            for stage in self.stages
        )
        self.phase = 0

    @classmethod
    def asks(cls, settings: SSKDSettings, setup: Setup) -> Asks:
        for field, known in (("adapter", ("where-needed", "always")), ("error", ("mean", "sum"))):
            if getattr(settings, field) not in known:
                raise ValueError(f"sskd: {field} is one of {', '.join(known)}, got {getattr(settings, field)!r}")
        stages = _stages(setup)
        if setup.student.parameters:
            for phase in range(len(stages) + 1):
                _trained(setup, stages, phase)
        return Asks(spec=LabelSpec(outputs=(stages[0].teacher.output,)))

    @classmethod
    def phases(cls, settings: SSKDSettings, setup: Setup) -> tuple[Phase, ...]:
        cls.asks(settings, setup)
        stages = _stages(setup)
        head = settings.head_epochs or setup.epochs // (len(stages) + 1)
        ends = [(number * (setup.epochs - head)) // len(stages) for number in range(len(stages) + 1)]
        if head < 1 or any(end <= begin for begin, end in itertools.pairwise(ends)):
            raise MethodMismatch(
                f"sskd trains {len(stages)} stages and the classifier, an epoch each at least: {setup.epochs} epochs "
                f"with head_epochs={settings.head_epochs} are too few"
            )
        phases = [
            Phase(
                name=f"stage {number}: {stage.tap}",
                begin=ends[number - 1],
                end=ends[number],
                asks=Asks(spec=LabelSpec(outputs=(stage.teacher.output,))),
            )
            for number, stage in enumerate(stages, 1)
        ]
        return (*phases, Phase(name="head", begin=ends[-1], end=setup.epochs, asks=Asks(spec=None, targets=True)))

    def enter(self, phase: int, student: nn.Module) -> None:
        self.phase = phase
        if self.setup.student.parameters:
            train_only(student, _trained(self.setup, self.stages, phase))
        for number, adapter in enumerate(self.adapters):
            adapter.requires_grad_(number == phase)

    def keep_frozen(self, student: nn.Module) -> None:
        eval_where_still(student)

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        if self.phase == len(self.stages):
            return {"ce": hard_cross_entropy(outputs.logits, step.targets)}
        stage, adapter = self.stages[self.phase], self.adapters[self.phase]
        maps = outputs.features[stage.tap]
        with torch.autocast(maps.device.type, enabled=False):
            guess = adapter(pool(wide(maps), *stage.teacher.shape[1:]))
            squares = (guess - stage.teacher.take(step, guess)).square().flatten(1)
            error = squares.mean(dim=1) if self.settings.error == "mean" else squares.sum(dim=1)
            return {"map": weighted_mean(error, step, guess)}


def _trained(setup: Setup, stages: Sequence[_Stage], phase: int) -> frozenset[str]:
    """Which of the student's parameters a phase trains: those that no earlier one did."""
    behind = setup.student.parameters
    finished = frozenset[str]().union(*(behind[stage.tap] for stage in stages[:phase]))
    tap = stages[phase].tap if phase < len(stages) else ""
    if not behind[tap] - finished:
        raise MethodMismatch(
            f"sskd: {f'stage {tap!r}' if tap else 'the classifier'} of the student has no parameters that earlier "
            "stages have not: name its stages from the first to the last with --student-taps"
        )
    return behind[tap] - finished


def _stages(setup: Setup) -> list[_Stage]:
    student, teacher = setup.student_maps(), teacher_stages(setup)
    if len(student) != len(teacher):
        raise MethodMismatch(
            f"sskd compares stage by stage, the student has {len(student)} ({', '.join(student)}) and the teacher "
            f"{len(teacher)} ({', '.join(teacher)}): name as many of each with --student-taps and --teacher-taps"
        )
    return [
        _Stage(tap=tap, channels=shape[0], teacher=pooled_map(setup, stage, shape[1], shape[2]))
        for (tap, shape), stage in zip(student.items(), teacher, strict=True)
    ]
