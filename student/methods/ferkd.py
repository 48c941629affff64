"""FerKD: labels calibrated by how sure the teacher is of a crop, and SelfMix (Shen, arXiv 2312.17473)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from teacherfarm.protos.soft_label import SoftLabels
from teacherfarm.student.losses import NO_TARGET
from teacherfarm.student.methods.confidence import ConfidenceHistory, confidence
from teacherfarm.student.methods.label_forms import FORMS, MIXES, LabelForm, asks_mixed, mean_under_mix
from teacherfarm.student.methods.method import Asks, Method, MethodMismatch, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.needs import need_classes
from teacherfarm.student.methods.teacher_values import crop_weights, wide

_FORMS = tuple(form for form in FORMS if form != "hard")


@dataclass(frozen=True, kw_only=True)
class FerKDSettings:
    """Thresholds, epsilon and SelfMix's operator were never published: these defaults are ours, to be tuned."""

    form: str = setting("marginal-smoothing", "what of each label is kept, and where the rest goes", choices=_FORMS)
    top_k: int = setting(5, "classes that the marginal forms keep")
    temperature: float = setting(1.0, "of the teacher's labels; the student's is 1")
    confidence: str = setting("max", "of the teacher's best class, or of the data's own", choices=("max", "target"))
    thresholds: str = setting(
        "quantile",
        "whether low, middle and high are shares of an image's own crops or probabilities",
        choices=("quantile", "absolute"),
    )
    low: float = setting(0.05, "crops of less confidence are left out")
    middle: float = setting(0.2, "crops of less confidence get the data's own label, softened")
    high: float = setting(0.95, "crops of more confidence are left out")
    epsilon: float = setting(0.1, "what a softened label leaves to the other classes")
    history: int = setting(16, "crops of each image that its quantiles are taken of, the latest ones")
    mix: str = setting(
        "none", "how the student's crops and their labels are mixed: selfmix, as the paper", choices=MIXES
    )


class FerKD(Method):
    """FKD's loss under calibrated labels: the least and the most certain crops count nothing, uncertain ones get the
    data's own label, softened, the others keep the teacher's.

    Crops without a target keep the teacher's label, or are left out by its best class.
    """

    name = "ferkd"
    about = "soft labels, but hard ones for background, and none for the extremes"
    paper = "Shen, FerKD: Surgical Label Adaptation for Efficient Distillation, arXiv 2312.17473"
    Settings = FerKDSettings
    equal_on_ranks = ("history.values", "history.seen")
    settings: FerKDSettings

    def __init__(self, settings: FerKDSettings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.form = LabelForm.of(settings.form, settings.top_k, settings.temperature)
        self.history: ConfidenceHistory | None = None
        if settings.thresholds == "quantile":
            self.history = ConfidenceHistory(setup.num_samples, settings.history)

    @classmethod
    def asks(cls, settings: FerKDSettings, setup: Setup) -> Asks:
        need_classes(cls.name, setup, temperature=settings.temperature)
        _check(settings, setup)
        spec = LabelForm.of(settings.form, settings.top_k, settings.temperature).spec
        asks = Asks(spec=spec, targets=True, samples=settings.thresholds == "quantile")
        return asks_mixed(settings.mix, setup, asks)

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        assert step.labels is not None
        labels = self.form.cut(step.labels, self.setup.card)
        targets = step.targets.to(outputs.logits.device)
        with torch.autocast(outputs.logits.device.type, enabled=False):
            logits = wide(outputs.logits)
            answered = crop_weights(step, logits)
            kept, hard = self.regions(labels, targets, step.samples.to(targets.device), answered > 0)
            weight = answered * kept

            def part(region: Tensor, of_hard: bool) -> Tensor:
                def under(rows: NDArray[np.int64] | slice) -> tuple[Tensor, Tensor]:
                    if of_hard:
                        per_crop = softened_cross_entropy(logits, targets[rows], self.settings.epsilon)
                    else:
                        per_crop = self.form.cross_entropy(logits, labels.take(rows))
                    return per_crop * region[rows], weight[rows]

                return mean_under_mix(under, outputs, step.mix)

            return {"soft": part(~hard, of_hard=False), "hard": part(hard, of_hard=True)}

    @torch.no_grad()
    def regions(self, labels: SoftLabels, targets: Tensor, samples: Tensor, answered: Tensor) -> tuple[Tensor, Tensor]:
        """Which crops count and which get the data's own label, both bool [N]; ``answered`` crops enter the history."""
        settings = self.settings
        known = targets != NO_TARGET
        sure = confidence(labels, targets, settings.confidence, settings.temperature)  # type: ignore[arg-type]
        read = known if settings.confidence == "target" else torch.ones_like(known)
        if self.history is not None:
            if self.training:
                self.history.add(samples, sure, answered & read)
            sure = self.history.ranks(samples, sure)
        kept = ((sure >= settings.low) & (sure <= settings.high)) | ~read
        return kept, kept & known & (sure < settings.middle)


def softened_cross_entropy(logits: Tensor, targets: Tensor, epsilon: float) -> Tensor:
    """Of each crop [N] under a target of 1 - epsilon for its class and epsilon spread evenly over the others.

    Unknown targets count as class 0.
    """
    log_q = functional.log_softmax(logits, dim=1)
    own = log_q.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
    return -(1 - epsilon) * own - epsilon / (logits.shape[1] - 1) * (log_q.sum(dim=1) - own)


def _check(settings: FerKDSettings, setup: Setup) -> None:
    if settings.form == "hard":
        raise ValueError(f"ferkd reads how sure the teacher is, form 'hard' does not say: one of {', '.join(_FORMS)}")
    if settings.confidence not in ("max", "target"):
        raise ValueError(f"confidence is 'max' or 'target', got {settings.confidence!r}")
    if not 0 <= settings.low <= settings.middle <= settings.high <= 1:
        raise ValueError(
            f"0 <= low <= middle <= high <= 1, got low={settings.low:g}, middle={settings.middle:g}, "
            f"high={settings.high:g}"
        )
    if not 0 <= settings.epsilon < 1:
        raise ValueError(f"epsilon lies from 0 up to 1, got {settings.epsilon:g}")
    if setup.card.num_classes < 2:
        raise MethodMismatch(f"ferkd softens labels over other classes, {setup.card.name!r} has one class")
    if settings.thresholds == "absolute":
        return
    if settings.thresholds != "quantile":
        raise ValueError(f"thresholds is 'quantile' or 'absolute', got {settings.thresholds!r}")
    if not setup.num_samples:
        raise MethodMismatch("quantiles are of each image's own crops: say how many images there are, or 'absolute'")
    if settings.history < max(setup.crops_per_image, 2):
        raise ValueError(
            f"history holds at least the {setup.crops_per_image} crops of a visit, and 2, got {settings.history}"
        )
