"""What a distillation method is: what it asks of the teacher, what it adds to the student, its loss by named parts.

Knows soft labels and tensors; nothing of clients, loaders and optimisers.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from teacherfarm.crops.mixing import Mix
from teacherfarm.protos.soft_label import LabelSpec, SoftLabels
from teacherfarm.protos.teacher_card import TeacherCard


class MethodMismatch(ValueError):
    """This teacher, student or batch cannot be used with this method; the text says why and what to do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StudentOutputs:
    """What one forward pass of the student gives; number types are the student's (half under autocast).

    ``embedding``: what its classifier takes [N, D], None where it has no linear classifier. ``features``: by tap name,
    maps [N, C, H, W] or tokens [N, T, D], after their activation. ``size``: height and width of the pixels given.
    """

    logits: Tensor
    embedding: Tensor | None
    features: Mapping[str, Tensor]
    size: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class StudentShape:
    """The shapes of :class:`StudentOutputs` without the batch axis; ``features`` in the order of the taps.

    ``embedding`` is 0 where there is none. ``parameters``: by tap name, "" for the logits, "embedding" for that, which
    of the model's trainable parameters that output depends on. A student without classes has as many ``num_classes`` as
    the vector that it returns has values.
    """

    num_classes: int
    embedding: int = 0
    features: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    parameters: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class TeacherHead:
    """The teacher's linear classifier, float32: ``weight`` [C, D], ``bias`` [C]. Frozen wherever it is used."""

    weight: Tensor
    bias: Tensor

    def layer(self) -> nn.Linear:
        """As a frozen layer of its own."""
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            layer.bias.copy_(self.bias)
        return layer.requires_grad_(False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """What a method is built for.

    ``teacher_taps`` and ``student_taps``: the stages to compare, from the first to the last; empty: all maps of the
    card (without its reductions) and of the student, in order. ``num_samples``: images of the data set. ``batch_size``:
    crops of one step, summed over all ranks. ``epochs``: of the whole run. ``head``: there once :attr:`Asks.head` asked
    for it.
    """

    card: TeacherCard
    student: StudentShape
    teacher_taps: tuple[str, ...] = ()
    student_taps: tuple[str, ...] = ()
    num_samples: int = 0
    batch_size: int = 0
    crops_per_image: int = 1
    epochs: int = 1
    head: TeacherHead | None = None

    def student_maps(self) -> dict[str, tuple[int, ...]]:
        """The student's stages and their shapes [C, H, W]. Raises MethodMismatch where there are none."""
        shapes = self.student.features
        if unknown := [name for name in self.student_taps if name not in shapes]:
            raise MethodMismatch(f"the student has no tap {unknown[0]!r}, it has {', '.join(shapes) or 'none'}")
        maps = {name: shapes[name] for name in self.student_taps or shapes if len(shapes[name]) == 3}
        if not maps:
            raise MethodMismatch(
                f"no feature maps are known of this student (taps: {', '.join(shapes) or 'none'}): name its stages "
                "with --student-taps MODULE ..."
            )
        return maps


Mixing = Literal["none", "crops", "labels", "self"]
"""Which crops are mixed: none; crops before teacher and student see them; the student's crops and the labels of
both; the same, but only crops of one image with each other."""


Draw = Literal["", "fkd", "funmatch", "mixup", "cutmix", "selfmix", "selfmix-mixup"]
"""How the mix of a batch is drawn (student.mixed_crops): "" where nothing is mixed; FKD's mixup or CutMix, each half of
the time; FunMatch's neighbours; the others as their names say, SelfMix by CutMix or by mixup."""


@dataclass(frozen=True, kw_only=True)
class Asks:
    """What a method asks for. ``spec`` None: no teacher is needed in this phase.

    ``head``: the teacher's classifier, once. ``targets``: the data's own class numbers. ``samples``: which image a crop
    is of. ``fresh``: labels that are replayed would miss the method's point.
    """

    spec: LabelSpec | None
    head: bool = False
    targets: bool = False
    samples: bool = False
    fresh: bool = False
    mixing: Mixing = "none"
    draw: Draw = ""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run with a learning-rate schedule and an optimiser of its own: epochs ``begin`` up to ``end``."""

    name: str
    begin: int
    end: int
    asks: Asks


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One batch, without its pixels.

    ``targets``: int64 [N], losses.NO_TARGET where unknown. ``samples``: int64 [N], places in the data set. Crops lie
    crop-index-major: the first of every image, then the second ones. ``epoch``: epochs done, with fractions. ``mix``:
    how the student's crops were mixed; ``labels`` then are those of the mixed crops where Asks.mixing is "crops", and
    of each crop before mixing where it is "labels" or "self". ``labels`` None: a phase without a teacher.
    """

    labels: SoftLabels | None
    targets: Tensor
    samples: Tensor
    epoch: float = 0.0
    mix: Mix | None = None


def setting(default: Any, help: str, **metadata: Any) -> Any:
    """A field of a method's settings, with its line of help; ``choices=`` where only some values are meant."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """For methods that have none."""


class Method(nn.Module, ABC):
    """A distillation method for one teacher and one student. Its parameters and buffers are trained, checkpointed and
    moved with the student's.

    Every term of :meth:`loss` follows :mod:`teacherfarm.student.losses`: float32 with autocast off, a mean over the
    crops of all ranks weighted by ``labels.weight``, scaled for DDP's average of gradients.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    """One line."""
    paper: ClassVar[str]
    Settings: ClassVar[type[Any]] = NoSettings
    equal_on_ranks: ClassVar[tuple[str, ...]] = ()
    """Buffers that are the same in every process by what the method does: DDP need not send them in each step."""

    def __init__(self, settings: Any, setup: Setup) -> None:
        super().__init__()
        self.settings = settings
        self.setup = setup

    @classmethod
    @abstractmethod
    def asks(cls, settings: Any, setup: Setup) -> Asks:
        """What it asks for (of the first phase). Raises MethodMismatch where teacher, student or batch do not fit."""

    @classmethod
    def phases(cls, settings: Any, setup: Setup) -> tuple[Phase, ...]:
        """The parts of a run; one, unless a method says otherwise."""
        return (Phase(name="train", begin=0, end=setup.epochs, asks=cls.asks(settings, setup)),)

    def enter(self, phase: int, student: nn.Module) -> None:
        """Freeze and unfreeze for a phase; called at its begin and on resuming, before the optimiser is made."""

    def keep_frozen(self, student: nn.Module) -> None:
        """Put what is frozen back into eval mode; called after each ``train()``."""

    @abstractmethod
    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        """The parts of the loss by name, weighted already: their sum is what is minimised."""

    @property
    def gives_classes(self) -> bool:
        """Whether the finished model gives logits of classes that it learned; else vectors, to compare images by."""
        return True

    def predict(self, outputs: StudentOutputs) -> Tensor:
        """Logits [N, C] of the finished model, or vectors [N, D]."""
        return outputs.logits

    def inference(self, student: nn.Module) -> nn.Module:
        """What is kept at the end: pixels in, logits out; needs neither teacher nor farm. ``student``: a copy without
        taps.
        """
        return student

    def inference_plan(self) -> dict[str, Any]:
        """Plain values (JSON) that :meth:`rebuild` needs beside a new student."""
        return {}

    @classmethod
    def rebuild(cls, student: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
        """What :meth:`inference` gave, of a new student, to load its weights into; needs neither teacher nor farm."""
        return student

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in dataclasses.asdict(self.settings).items())
