"""What the feature methods of the SimKD toolbox (arXiv 2203.14001) ask for beside their own outputs: what KD's terms on
logits need, which they carry as well (:func:`teacherfarm.student.methods.kd.logit_terms`).
"""

from __future__ import annotations

from collections.abc import Iterable

from teacherfarm.protos.soft_label import LABELS, LabelSpec
from teacherfarm.student.methods.kd import KDSettings
from teacherfarm.student.methods.method import Asks, MethodMismatch, Setup
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
