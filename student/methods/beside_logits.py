"""What the feature methods of the SimKD toolbox (arXiv 2203.14001) carry beside their own term: the cross-entropy with
the data's labels and the KL divergence of the teacher's, as :mod:`teacherfarm.student.methods.kd` has them.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from teacherfarm.protos.soft_label import LABELS, LabelSpec
from teacherfarm.student.losses import hard_cross_entropy, kd_divergence
from teacherfarm.student.methods.kd import KDSettings
from teacherfarm.student.methods.method import Asks, MethodMismatch, Setup, Step, StudentOutputs
from teacherfarm.student.methods.needs import need_classes


def asks_beside_logits(
    method: str,
    settings: KDSettings,
    setup: Setup,
    outputs: Iterable[str],
    *,
    head: bool = False,
    samples: bool = False,
) -> Asks:
    """What the toolbox's terms and these outputs ask for; the teacher's labels only where their term counts."""
    if not settings.hard_weight and not settings.soft_weight:
        raise MethodMismatch(
            f"{method}: hard_weight and soft_weight are both 0, nothing would train the student's classifier: set one"
        )
    if settings.soft_weight:
        need_classes(method, setup, temperature=settings.temperature)
    labels = (LABELS,) if settings.soft_weight else ()
    spec = LabelSpec(outputs=tuple(dict.fromkeys((*labels, *outputs))))
    return Asks(spec=spec, targets=settings.hard_weight > 0, head=head, samples=samples)


def logit_terms(settings: KDSettings, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
    """The parts "kd" and "ce", each where it counts."""
    parts = {}
    if settings.soft_weight:
        assert step.labels is not None
        soft = kd_divergence(outputs.logits, step.labels, settings.temperature, t_squared=True)
        parts["kd"] = settings.soft_weight * soft
    if settings.hard_weight:
        parts["ce"] = settings.hard_weight * hard_cross_entropy(outputs.logits, step.targets)
    return parts
