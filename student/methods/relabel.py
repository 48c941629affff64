"""ReLabel: labels of crops pooled from label maps, one map an image (arXiv 2101.05022)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacherfarm.protos.soft_label import LABELS, LabelSpec
from teacherfarm.student.methods.label_forms import MIXES, LabelForm, asks_mixed, mean_under_mix
from teacherfarm.student.methods.method import Asks, Method, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.needs import need_classes
from teacherfarm.student.methods.teacher_values import crop_weights, wide


@dataclass(frozen=True, kw_only=True)
class ReLabelSettings:
    """The paper's temperature is 1, and its best ResNet-50 mixes by CutMix. With --label-maps no teacher is asked; the
    bytes are those of a teacher's own labels in their place."""

    mix: str = setting("none", "how the student's crops and their labels are mixed", choices=MIXES)


class ReLabel(Method):
    """Cross-entropy of the student under the labels as they come: all classes, or the best ones that an import kept.

    The labels come from label maps (``--label-maps``, or imported ones by ``--labels``) and need no teacher; a
    teacher's own labels of the same crops serve as well.
    """

    name = "relabel"
    about = "labels of any crop from one label map an image, without a teacher"
    paper = "Yun et al., Re-labeling ImageNet: from Single to Multi-Labels, arXiv 2101.05022"
    Settings = ReLabelSettings
    settings: ReLabelSettings

    @classmethod
    def asks(cls, settings: ReLabelSettings, setup: Setup) -> Asks:
        need_classes(cls.name, setup, temperature=1.0)
        return asks_mixed(settings.mix, setup, Asks(spec=LabelSpec(outputs=(LABELS,))))

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        assert step.labels is not None
        labels = step.labels
        form = LabelForm(top_k=labels.spec.top_k, completion="smoothing", temperature=1.0)
        labels = form.cut(labels, self.setup.card)
        with torch.autocast(outputs.logits.device.type, enabled=False):
            logits = wide(outputs.logits)
            weight = crop_weights(step, logits)

            def under(rows: NDArray[np.int64] | slice) -> tuple[Tensor, Tensor]:
                return form.cross_entropy(logits, labels.take(rows)), weight[rows]

            return {"soft": mean_under_mix(under, outputs, step.mix)}
