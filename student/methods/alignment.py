"""The student's vectors beside the teacher's: an adapter where their sizes differ, and how far apart they are."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.methods.method import MethodMismatch

Adapter = Literal["auto", "linear", "mlp", "none"]
ADAPTERS = ("auto", "linear", "mlp", "none")
ADAPTER_HELP = "from the student's vectors to the teacher's; \"auto\": linear where their sizes differ, else none"

Distance = Literal["cosine", "mse"]
HARD_HELP = (
    "factor of the cross-entropy with the data's own labels; none: 1, or 0 where the teacher has no classes. With "
    "0 the student learns no classes and is finished as vectors of the teacher's space"
)

DISTANCES = ("cosine", "mse")
DISTANCE_HELP = "1 - cosine, or the mean squared difference of the values"


def hard_weight(given: float | None, card: TeacherCard) -> float:
    """The setting, or its default for this teacher."""
    if given is not None:
        return given
    return 0.0 if card.activation == "none" else 1.0


def check_adapter(method: str, kind: Adapter, taken: int, wanted: int) -> None:
    """Raises MethodMismatch where vectors of ``taken`` values cannot be compared with ``wanted``."""
    if kind == "none" and taken != wanted:
        raise MethodMismatch(
            f"{method}: the student's vectors have {taken} values and the teacher's {wanted}, and adapter=none "
            "compares them as they are: set adapter=linear, or choose another student"
        )


def make_adapter(kind: Adapter, taken: int, wanted: int) -> nn.Module:
    """[..., taken] -> [..., wanted]."""
    if kind == "none" or (kind == "auto" and taken == wanted):
        return nn.Identity()
    if kind == "mlp":
        return nn.Sequential(nn.Linear(taken, wanted), nn.GELU(), nn.Linear(wanted, wanted))
    return nn.Linear(taken, wanted)


def distance(kind: Distance, student: Tensor, teacher: Tensor) -> Tensor:
    """[..., D] twice -> [...]."""
    if kind == "cosine":
        return 1 - functional.cosine_similarity(student, teacher, dim=-1)
    return (student - teacher).square().mean(dim=-1)
