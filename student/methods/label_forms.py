"""FKD's forms of a soft label, and losses under labels that are mixed after the teacher (arXiv 2112.01528).

A form says how many classes of a label are kept and what becomes of the rest of the mass. Labels that hold more, such
as recorded dense ones, are cut down to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from teacherfarm.crops.mixing import Mix
from teacherfarm.protos.faults import TemperatureMismatch
from teacherfarm.protos.soft_label import LABELS, Completion, LabelSpec, SoftLabels, top_k
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.losses import mean_over_crops, soft_cross_entropy_of_each
from teacherfarm.student.methods.method import Asks, Draw, MethodMismatch, Mixing, Setup, StudentOutputs

FORMS = ("full", "hard", "smoothing", "marginal-smoothing", "marginal-renorm")
MIXES = ("none", "fkd", "mixup", "cutmix", "selfmix", "selfmix-mixup")
"""What a method's ``mix`` may be: a draw of student.mixed_crops, "none" for none."""


@dataclass(frozen=True, kw_only=True)
class LabelForm:
    """``top_k`` classes of a label at ``temperature`` (0: all), the rest spread over the others or dropped."""

    top_k: int
    completion: Completion
    temperature: float

    @classmethod
    def of(cls, form: str, k: int, temperature: float) -> LabelForm:
        """One of FORMS; ``k`` acts on the marginal ones. Raises ValueError."""
        if form not in FORMS:
            raise ValueError(f"a label's form is one of {', '.join(FORMS)}, got {form!r}")
        if form.startswith("marginal") and k < 1:
            raise ValueError(f"form {form!r} keeps at least one class, got top_k={k}")
        kept = {"full": 0, "hard": 1, "smoothing": 1}.get(form, k)
        completion: Completion = "renorm" if form in ("hard", "marginal-renorm") else "smoothing"
        return cls(top_k=kept, completion=completion, temperature=temperature)

    @property
    def spec(self) -> LabelSpec:
        """What to ask for; dense labels travel at temperature 1 and take any."""
        return LabelSpec(outputs=(LABELS,), top_k=self.top_k, temperature=self.temperature if self.top_k else 1.0)

    def cut(self, labels: SoftLabels, card: TeacherCard) -> SoftLabels:
        """These labels in this form, as the teacher would have sent them.

        Raises MethodMismatch where they hold too little, TemperatureMismatch where they were cut at another one.
        """
        if labels.spec.top_k == self.top_k and (not self.top_k or labels.spec.temperature == self.temperature):
            return labels
        if labels.is_top_k and (self.top_k == 0 or labels.spec.top_k < self.top_k):
            wanted = f"{self.top_k} best classes" if self.top_k else "whole distribution"
            raise MethodMismatch(
                f"these labels keep {labels.spec.top_k} classes, the method wants the {wanted}: stream or record "
                f"{self.spec}, or choose a form of at most {labels.spec.top_k} classes"
            )
        if labels.is_top_k and labels.spec.temperature != self.temperature:
            raise TemperatureMismatch(
                f"these labels were cut at temperature {labels.spec.temperature:g}, the method wants "
                f"{self.temperature:g}: set temperature={labels.spec.temperature:g}, or record labels anew"
            )
        records = np.zeros(len(labels), self.spec.record_dtype(card))
        if labels.is_top_k:
            records["classes"] = labels.classes[:, : self.top_k]
            records["log_probabilities"] = labels.log_probabilities[:, : self.top_k]
        else:
            records["classes"], records["log_probabilities"] = top_k(
                labels.log_probabilities, self.top_k, labels.divisor(self.temperature)
            )
        return SoftLabels.from_records(records, self.spec, card, labels.weight)

    def cross_entropy(self, logits: Tensor, labels: SoftLabels, student_temperature: float = 1.0) -> Tensor:
        """Of the student's ``logits`` [N, C] under labels in this form, for each crop [N]; no T^2 factor."""
        # Labels of a few classes take their own temperature only, so the student's goes into its logits.
        scaled = logits * (self.temperature / student_temperature)
        return soft_cross_entropy_of_each(scaled, labels, self.temperature, completion=self.completion)


def asks_mixed(mix: str, setup: Setup, asks: Asks, *, teacher_sees_it: bool = False) -> Asks:
    """What a method asks, with a mix of MIXES. Raises ValueError, or MethodMismatch where there is nothing to mix."""
    if mix not in MIXES:
        raise ValueError(f"mix is one of {', '.join(MIXES)}, got {mix!r}")
    if mix == "none":
        if teacher_sees_it:
            raise ValueError("teacher_sees_mix has no effect without a mix: choose one, or leave it out")
        return asks
    if mix.startswith("selfmix") and setup.crops_per_image < 2:
        raise MethodMismatch(
            f"mix {mix!r} mixes the crops of one image with each other, and this run has one of each: take several "
            "(--crops-per-image 4), or mix 'none'"
        )
    mixing: Mixing = "crops" if teacher_sees_it else "self" if mix.startswith("selfmix") else "labels"
    draw: Draw = mix  # type: ignore[assignment]
    return dataclasses.replace(asks, mixing=mixing, draw=draw, fresh=asks.fresh or teacher_sees_it)


LossUnder = Callable[[NDArray[np.int64] | slice], tuple[Tensor, Tensor]]
"""Rows -> the loss of each crop under the label of the crop in that row [N], and how much that label counts [N]."""


def mean_under_mix(under: LossUnder, outputs: StudentOutputs, mix: Mix | None) -> Tensor:
    """The mean loss of crops whose labels are mixed as the crops were: lambda of a crop's own, the rest its partner's.

    A cross-entropy is linear in its target, so this is the cross-entropy under the mixed targets. A crop counts as
    much as both labels' weights multiplied. ``mix``: None where the labels are those of the crops as they are.
    """
    per_crop, weight = under(slice(None))
    if mix is not None:
        own = mix.own_fraction(*outputs.size)
        partners, partners_weight = under(np.array(mix.partner))
        per_crop, weight = own * per_crop + (1 - own) * partners, weight * partners_weight
    return mean_over_crops(per_crop, weight, outputs.logits)
