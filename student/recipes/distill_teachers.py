"""A run's clients of one teacher: for its card, for what each phase of a method asks, for its opinion at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import fields
from types import TracebackType
from typing import Any, Protocol, Self

from teacherfarm.protos.classifier_head import ClassifierHead
from teacherfarm.protos.faults import NoHead
from teacherfarm.protos.soft_label import LABELS, LabelSpec
from teacherfarm.student.accounts import ClientStats
from teacherfarm.student.by_reference import ByReference
from teacherfarm.student.recipes.kept_labels import KeptLabels
from teacherfarm.student.recipes.link_check import bare_spec
from teacherfarm.student.recipes.ranks import Ranks
from teacherfarm.student.recording_teacher import Teacher


class FarmTeacher(Teacher, Protocol):
    """A TeacherClient, or what stands in for one."""

    def head(self) -> ClassifierHead: ...
    def close(self) -> None: ...


class DistillTeachers:
    """All of them are the same teacher: its digest is pinned by the card's. One client is open at a time, but for
    short questions beside it. Where kept labels name no teacher, there is a card alone.

    ``references``: what crops by reference mean, once the card has told how they are cut.
    """

    def __init__(self, kept: KeptLabels, connect: Callable[..., FarmTeacher]) -> None:
        self._kept, self._connect = kept, connect
        self._spec: LabelSpec | None = None
        self._stats: list[ClientStats] = []
        self._uncounted: dict[str, int] = {}
        self.references: ByReference | None = None
        self._open: FarmTeacher | None = self._note(connect()) if kept.asks else None
        self.card = kept.card(self._open)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What is being recorded asks the teacher to the last.
        self._kept.close(seal=False)
        if self._open is not None:
            self._open.close()

    def head(self) -> ClassifierHead:
        """The teacher's classifier. Raises NoHead where it cannot be had."""
        if self._open is None:
            raise NoHead(
                f"recorded labels hold no classifier of {self.card.name!r}: give --teacher-address, which is asked for "
                "it once"
            )
        return self._open.head()

    def asked(self, asked: LabelSpec | None) -> Teacher | None:
        """The teacher, asked for this; None in a phase that asks nobody, and where recorded labels are all there is."""
        if asked is None:
            return None
        spec = self._kept.spec(self.card, asked)
        if self._open is not None and spec != self._spec:
            self._open.close()
            self._open, self._spec = self._another(spec), spec
        return self._open

    @contextlib.contextmanager
    def asked_besides(self, spec: LabelSpec) -> Any:
        """The same teacher, asked for something else meanwhile."""
        teacher = self._another(spec)
        try:
            yield teacher
        finally:
            teacher.close()

    @contextlib.contextmanager
    def knowing_classes(self) -> Any:
        """A teacher whose labels tell its most probable class; None where there is none, or it has no classes."""
        if self._open is None or self.card.activation == "none":
            yield None
        elif self._spec is not None and LABELS in self._spec.outputs:
            yield self._open
        else:
            with self.asked_besides(bare_spec(self.card)) as teacher:
                yield teacher

    def count_anew(self) -> None:
        """What was asked so far was no training: :meth:`stats` begin here, but for the sessions, which go on."""
        self._uncounted = self._counted() | {"sessions": 0}

    def stats(self, ranks: Ranks) -> ClientStats | None:
        """What all clients of all ranks, which ask together, have counted, of their integers; None where nobody did."""
        if not self._stats:
            return None
        counted = self._counted()
        here = [count - self._uncounted.get(name, 0) for name, count in counted.items()]
        total = ClientStats()
        for name, count in zip(counted, ranks.sum(here), strict=True):
            setattr(total, name, count)
        return total

    def _counted(self) -> dict[str, int]:
        names = [field.name for field in fields(ClientStats) if isinstance(getattr(ClientStats(), field.name), int)]
        return {name: sum(getattr(stats, name) for stats in self._stats) for name in names}

    def _another(self, spec: LabelSpec) -> FarmTeacher:
        return self._note(self._connect(spec=spec, digest=self.card.teacher_digest, by_reference=self.references))

    def _note(self, teacher: FarmTeacher) -> FarmTeacher:
        stats = getattr(teacher, "stats", None)
        if isinstance(stats, ClientStats):
            self._stats.append(stats)
        return teacher
