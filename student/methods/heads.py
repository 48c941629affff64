"""Checks of methods that take the teacher's embedding, or its linear classifier on top of it."""

from __future__ import annotations

from teacherfarm.protos.teacher_card import EMBEDDING
from teacherfarm.student.methods.method import MethodMismatch, Setup, TeacherHead
from teacherfarm.student.methods.teacher_maps import has


def need_embedding(method: str, setup: Setup) -> int:
    """Size of the teacher's embedding. Raises MethodMismatch where it gives none, or not one vector for each crop."""
    card = setup.card
    found = {output.name: output for output in card.features}.get(EMBEDDING)
    if found is None and card.members:
        raise MethodMismatch(
            f"{method} needs the teacher's embedding, and the ensemble {card.name!r} has {has(card)}: export one of "
            "its members by itself"
        )
    if found is None:
        why = f" ({card.headless})" if card.headless else ""
        raise MethodMismatch(
            f"{method} needs the teacher's embedding, {card.name!r} has {has(card)}{why}. Export it again by a "
            "function that returns teacherfarm.export.Teacher(embedding=MODULE, ...): that module's output"
        )
    if len(found.shape) != 1:
        raise MethodMismatch(
            f"{method} needs one vector for each crop, the embedding of {card.name!r} is {list(found.shape)}"
        )
    return found.shape[0]


def need_student_embedding(method: str, setup: Setup) -> int:
    """Size of what the student's classifier takes. Raises MethodMismatch where that is not known."""
    if not setup.student.embedding:
        raise MethodMismatch(
            f"{method} needs what the student's classifier takes, and this student ends in no linear layer: choose a "
            "student that does"
        )
    return setup.student.embedding


def need_head(method: str, setup: Setup, size: int) -> None:
    """That the teacher ends in a linear layer on ``size`` values. Raises MethodMismatch that says why not."""
    card = setup.card
    if not card.has_head:
        why = card.headless or "its last layer was not found, or is not linear"
        raise MethodMismatch(
            f"{method} reuses the teacher's classifier, and {card.name!r} has none to give: {why}. Choose a teacher "
            "that ends in one linear layer, or a method that needs none (teacherfarm methods)"
        )
    known = {output.name: output.shape for output in card.features}.get(EMBEDDING)
    if known is not None and known != (size,):
        raise MethodMismatch(
            f"{method}: the classifier of {card.name!r} takes {list(known)} values and is offered {size}: choose the "
            "last map before its pooling as the last of --teacher-taps"
        )


def take_head(method: str, setup: Setup, size: int) -> TeacherHead:
    """The classifier that :attr:`Asks.head` brought. Raises MethodMismatch where it does not take ``size`` values."""
    if setup.head is None:
        raise MethodMismatch(f"{method} was built without the teacher's classifier: Setup(head=...) of client.head()")
    if setup.head.weight.shape[1] != size:
        raise MethodMismatch(
            f"{method}: the classifier of {setup.card.name!r} takes {setup.head.weight.shape[1]} values and is "
            f"offered {size}"
        )
    return setup.head
