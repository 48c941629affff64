"""CRD: an image's embeddings of student and teacher are told from those of other classes (Tian et al., ICLR 2020)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from teacherfarm.protos.teacher_card import EMBEDDING
from teacherfarm.student.losses import NO_TARGET
from teacherfarm.student.methods.across_ranks import gather_rows
from teacherfarm.student.methods.beside_logits import asks_beside_logits
from teacherfarm.student.methods.embedding_memory import EmbeddingMemory, draw_other_classes
from teacherfarm.student.methods.heads import need_embedding, need_student_embedding
from teacherfarm.student.methods.kd import KDSettings, logit_terms
from teacherfarm.student.methods.method import Asks, Method, MethodMismatch, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.teacher_values import crop_weights, feature, weighted_mean, wide

NEVER_ZERO = 1e-7


@dataclass(frozen=True, kw_only=True)
class CRDSettings(KDSettings):
    """Defaults: the SimKD toolbox (arXiv 2203.14001), CIFAR-100."""

    contrast_weight: float = setting(0.8, "factor of the contrastive term, summed over both directions")
    dimensions: int = setting(128, "of the space that student and teacher are compared in")
    negatives: int = setting(16384, "images of other classes that each crop is told from, drawn with repetition")
    contrast_temperature: float = setting(0.07, "that similarities are divided by")
    momentum: float = setting(0.5, "share of its old value that a memory keeps when its image comes by")
    seed: int = setting(0, "of the memory's first values and of the negatives")


class CRD(Method):
    """Noise-contrastive estimation: the student's embedding against a memory of the teacher's, and the reverse.

    An image's class is learned when it first comes by; until then it may be drawn as a negative of its own class, when
    its memory is still noise. Several crops of an image in one batch move its memory once, to their mean.
    """

    name = "crd"
    about = "embeddings of one image agree and differ from those of other classes, kept in a memory"
    paper = "Tian, Krishnan and Isola, Contrastive Representation Distillation, ICLR 2020, arXiv 1910.10699"
    Settings = CRDSettings
    settings: CRDSettings
    equal_on_ranks: ClassVar[tuple[str, ...]] = (
        "of_student.rows",
        "of_teacher.rows",
        "of_student.normaliser",
        "of_teacher.normaliser",
        "classes",
        "steps",
    )

    classes: Tensor
    """Of each image, -1 where not known yet."""
    steps: Tensor

    def __init__(self, settings: CRDSettings, setup: Setup) -> None:
        super().__init__(settings, setup)
        sizes = need_student_embedding(self.name, setup), need_embedding(self.name, setup)
        self.student_head, self.teacher_head = (nn.Linear(size, settings.dimensions) for size in sizes)
        self.of_student, self.of_teacher = (
            EmbeddingMemory(setup.num_samples, settings.dimensions, seed=2 * settings.seed + number)
            for number in range(2)
        )
        self.register_buffer("classes", torch.full((setup.num_samples,), -1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @classmethod
    def asks(cls, settings: CRDSettings, setup: Setup) -> Asks:
        need_student_embedding(cls.name, setup)
        need_embedding(cls.name, setup)
        if setup.num_samples < 2:
            raise MethodMismatch(
                f"crd keeps a memory of every image of the data set, and {setup.num_samples} are known: use a data set "
                "that knows its length"
            )
        if settings.negatives < 1 or settings.dimensions < 1 or not settings.contrast_temperature > 0:
            raise ValueError("crd: negatives and dimensions are at least 1, contrast_temperature is above 0")
        if not 0 <= settings.momentum <= 1:
            raise ValueError(f"crd: momentum is a share from 0 to 1, got {settings.momentum}")
        asks = asks_beside_logits(cls.name, settings, setup, [EMBEDDING], samples=True)
        return dataclasses.replace(asks, targets=True)

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        assert outputs.embedding is not None
        device = outputs.embedding.device
        images, targets = step.samples.to(device), step.targets.to(device)
        with torch.autocast(device.type, enabled=False):
            student = functional.normalize(self.student_head(wide(outputs.embedding)), dim=1)
            teacher = functional.normalize(self.teacher_head(feature(step, EMBEDDING, student)), dim=1)
            weight = crop_weights(step, student)
            compared = torch.cat([images[:, None], self._others(images, targets)], dim=1)
            error = self._contrast(self.of_teacher, student, compared, weight)
            error = error + self._contrast(self.of_student, teacher, compared, weight)
            contrast = self.settings.contrast_weight * weighted_mean(error, step, student)
            if self.training:
                self._remember(images, student.detach(), teacher.detach(), weight)
        return {"contrast": contrast, **logit_terms(self.settings, outputs, step)}

    def _others(self, images: Tensor, targets: Tensor) -> Tensor:
        """Images of other classes [N, negatives]."""
        if self.training:
            self.steps += 1
            seen, told = gather_rows(torch.stack([images, targets], dim=1)).unbind(dim=1)
            self.classes[seen] = torch.where(told == NO_TARGET, self.classes[seen], told)
        seed = self.steps + (self.settings.seed << 40)
        return draw_other_classes(self.classes, images, targets, self.settings.negatives, seed=seed)

    def _contrast(self, memory: EmbeddingMemory, vectors: Tensor, compared: Tensor, weight: Tensor) -> Tensor:
        """The loss of each crop [N]: the first of what it is compared with is itself, the others are noise."""
        # The slope is taken at once: when the gradient comes back, the memory has moved.
        place = vectors.detach().requires_grad_(True)
        with torch.enable_grad():
            exponentials = memory.exponentials(place, compared, self.settings.contrast_temperature)
            probability = exponentials / self._normaliser(memory, exponentials.detach(), weight)
            noise = self.settings.negatives / self.setup.num_samples
            own, others = probability[:, 0], probability[:, 1:]
            right = (own / (own + noise + NEVER_ZERO)).log()
            error = -right - (noise / (others + noise + NEVER_ZERO)).log().sum(dim=1)
            (slope,) = torch.autograd.grad(error.sum(), place)
        return error.detach() + ((vectors - place.detach()) * slope).sum(dim=1)

    def _normaliser(self, memory: EmbeddingMemory, exponentials: Tensor, weight: Tensor) -> Tensor:
        """The memory's, which the first batch that has answers fixes: the mean over it, times the number of images."""
        sums = torch.stack([(exponentials.mean(dim=1) * weight).sum(), weight.sum()])[None]
        total, count = (gather_rows(sums) if self.training else sums).sum(dim=0)
        first = torch.where(count > 0, total / count.clamp(min=1) * self.setup.num_samples, 0)
        fixed = torch.where(memory.normaliser > 0, memory.normaliser, first)
        if self.training:
            memory.normaliser.copy_(fixed)
        return torch.where(fixed > 0, fixed, 1)

    def _remember(self, images: Tensor, student: Tensor, teacher: Tensor, weight: Tensor) -> None:
        images = gather_rows(images)
        values = gather_rows(torch.cat([student, teacher, weight[:, None]], dim=1))
        students, teachers = values[:, :-1].chunk(2, dim=1)
        for memory, vectors in ((self.of_student, students), (self.of_teacher, teachers)):
            memory.move(images, vectors, values[:, -1], self.settings.momentum)
