"""Checks that several methods make of a teacher and a student before anything is asked."""

from __future__ import annotations

from teacherfarm.protos.teacher_card import Activation
from teacherfarm.student.methods.across_ranks import num_ranks
from teacherfarm.student.methods.method import MethodMismatch, Setup


def need_several_values(method: str, setup: Setup, places: int = 1) -> None:
    """Two values at least that batch normalisation takes its mean of, in each process. Raises MethodMismatch.

    ``places``: of a map, 1 of a vector.
    """
    if setup.batch_size and setup.batch_size // num_ranks() * places < 2:
        raise MethodMismatch(
            f"{method} normalises over the crops of a batch, and batches have one crop: use larger batches"
        )


def need_classes(
    method: str, setup: Setup, activation: Activation = "softmax", *, temperature: float | None = None
) -> None:
    """A teacher whose classes are of this kind, whose labels can be used at this temperature, and a student that has
    as many classes. Raises MethodMismatch.
    """
    card = setup.card
    if card.activation != activation:
        kinds = {"softmax": "classes that exclude each other (softmax)", "sigmoid": "independent classes (sigmoid)"}
        others = {"softmax": "kd", "sigmoid": "sigmoid-kd", "none": "embedding or tokens"}
        raise MethodMismatch(
            f"{method} needs a teacher of {kinds[activation]}, {card.name!r} has "
            f"{kinds.get(card.activation, 'no classes')}: use --method {others[card.activation]}"
        )
    if setup.student.num_classes != card.num_classes:
        raise MethodMismatch(
            f"the student has {setup.student.num_classes} classes and the teacher {card.name!r} {card.num_classes}: "
            f"give the student {card.num_classes}, in the teacher's class order"
        )
    if temperature is not None and card.fixed_temperature not in (0.0, temperature):
        raise MethodMismatch(
            f"{method} asks for temperature {temperature:g}, the ensemble {card.name!r} averages its members at "
            f"{card.fixed_temperature:g} and nothing can change that afterwards: set the temperature to "
            f"{card.fixed_temperature:g}, or export the ensemble at {temperature:g}"
        )
