"""What is to be exported: one source or an ensemble's, with its weights and the user's settings.

Knows what the command line may say; builds no graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from teacherfarm.export.teachers import Teacher, WeightsChoice, load_teacher
from teacherfarm.protos.teacher_card import MEAN_LOGITS

Source = str | Teacher | Sequence[str | Teacher]


def load_source(
    source: Source,
    *,
    weights: Path | Sequence[Path | None] | None,
    pretrained: bool,
    random_weights: bool,
    ensemble_temperature: float,
    size: tuple[int, int] | None,
    settings: dict[str, Any],
) -> Teacher:
    """The teacher of one source, or the ensemble of several, as ``settings`` change it. Raises ValueError."""
    num_classes = len(settings.get("classes", ())) or None
    if settings.get("activation") == "none" and isinstance(source, str) and source.startswith("timm:"):
        # The bare backbone, as self-supervised weights have it.
        num_classes = 0
    if isinstance(source, str | Teacher):
        if not (weights is None or isinstance(weights, Path)):
            raise ValueError("one teacher has one weight file")
        choice = WeightsChoice(file=weights, pretrained=pretrained, random=random_weights)
        teacher = load_teacher(source, weights=choice, num_classes=num_classes, size=size, missing=settings)
    else:
        from teacherfarm.export.ensemble import load_ensemble

        choices = member_weights(source, weights, pretrained=pretrained, random=random_weights)
        teacher = load_ensemble(source, choices, temperature=ensemble_temperature, num_classes=num_classes, size=size)
    return _with_settings(teacher, settings)


def member_weights(
    sources: Sequence[str | Teacher], weights: Path | Sequence[Path | None] | None, *, pretrained: bool, random: bool
) -> list[WeightsChoice]:
    """Whose weights each member of an ensemble gets: ``pretrained`` and ``random`` are for those that bring none."""
    files = [None] * len(sources) if weights is None else [weights] if isinstance(weights, Path) else list(weights)
    if len(files) != len(sources):
        raise ValueError(
            f"{len(files)} --weights for {len(sources)} teachers: give one for each, in their order, and - for one "
            "that brings its own"
        )
    choices = []
    for source, file in zip(sources, files, strict=True):
        is_bare = isinstance(source, str) and source.startswith(("torchvision:", "timm:", "cifar:"))
        choices.append(WeightsChoice(file=file, pretrained=pretrained and is_bare, random=random and is_bare))
    return choices


def _with_settings(teacher: Teacher, settings: dict[str, Any]) -> Teacher:
    """The user's settings over the published ones; the published transform goes where they contradict it."""
    if not settings:
        return teacher
    changes_input = settings.keys() & {"mean", "std", "channel_order"}
    if teacher.members and (own := sorted(settings.keys() & {"mean", "std", "channel_order", "activation"})):
        raise ValueError(
            f"the members of an ensemble bring their own {own[0]}: drop --{own[0].replace('_', '-')}, or give it by a "
            "function that returns a teacherfarm.export.Teacher"
        )
    size = (settings.get("height", teacher.height), settings.get("width", teacher.width))
    if settings.get("channel_order") == "GRAY" and teacher.num_channels != 1 and "mean" not in settings:
        raise ValueError("--channel-order GRAY needs the one-channel --mean and --std of this teacher")
    keeps = not changes_input and size == (teacher.height, teacher.width)
    transform = teacher.published_transform if keeps else None
    return dataclasses.replace(teacher, **settings, published_transform=transform)


def taps_of(teacher: Teacher, taps: Sequence[str]) -> Sequence[str]:
    """The taps to export: as asked, or an ensemble's only one."""
    if not teacher.members:
        return taps
    if taps:
        raise ValueError(f"--tap {taps[0]}: an ensemble gives its mean alone; export the member to tap by itself")
    return (MEAN_LOGITS,)


def name_of(source: Source) -> str:
    """The name of a source that brings none. Raises ValueError where it has none either."""
    if not isinstance(source, str | Teacher):
        raise ValueError("an ensemble has a name of its own: give --name")
    if isinstance(source, Teacher):
        raise ValueError("give the teacher a name: Teacher(name=...) or name=...")
    return source.rpartition(":")[2].replace("_", "-").replace("/", "-")
