"""Where a study's full-precision distributions come from: a teacher in this process, a farm, or recorded labels.

A teacher in this process gives float32. What a farm sends and what is recorded is float16 log-probabilities, so these
studies cannot see what that rounding alone costs; it is about 1e-7 nats.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.faults import DigestMismatch
from teacherfarm.protos.soft_label import LABELS, LabelSpec, SoftLabels, log_softmax
from teacherfarm.protos.teacher_card import LOGITS, TeacherCard
from teacherfarm.student.blocking import LabelFuture, TeacherClient
from teacherfarm.student.settings import Timeouts, parse_addresses

BATCH, BATCHES_AHEAD = 64, 4

ROUNDED = "float16 log-probabilities at temperature 1 (what travels; their own rounding cannot be seen from here)"


class Answers(Protocol):
    """A teacher to be asked, entered as a context. ``precision`` says in words what its answers are."""

    precision: str

    @property
    def card(self) -> TeacherCard: ...

    def log_probabilities(self, crops: NDArray[Any]) -> NDArray[np.float32]:
        """At temperature 1, [N, C], for crops [N, H, W, 3] in the teacher's crop format."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_answers(address: str, teacher: str, *, digest: str, api_key: str | None, answer_s: float) -> Answers:
    """``local://MODELS`` computes here, any other address is a farm's."""
    first, *others = parse_addresses(address)
    if first.scheme == "local" and not others:
        return LocalAnswers(first.place, teacher, digest=digest)
    return FarmAnswers(
        TeacherClient(
            address,
            teacher,
            digest=digest,
            api_key=api_key,
            spec=LabelSpec(outputs=(LABELS,)),
            timeouts=Timeouts(answer_s=answer_s),
            on_starved="raise",
        )
    )


class LocalAnswers:
    """The graph's float32 logits."""

    def __init__(self, models: str, teacher: str, *, digest: str = "") -> None:
        from teacherfarm.student.transports.local_transport import LocalTransport

        self._transport = LocalTransport(models, teacher)
        self._digest = digest
        self._runner = asyncio.Runner()
        self.precision = "float32 logits of ONNX Runtime in this process"

    @property
    def card(self) -> TeacherCard:
        return self._transport.card

    def log_probabilities(self, crops: NDArray[Any]) -> NDArray[np.float32]:
        return log_softmax(self._runner.run(self._transport.compute(crops, LOGITS)))

    def __enter__(self) -> Self:
        try:
            self._runner.run(self._transport.open())
            if not self.card.teacher_digest.startswith(self._digest):
                digest = self.card.teacher_digest
                raise DigestMismatch(f"teacher {self.card.name!r} is {digest}, expected {self._digest}")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        if self.card.precision != "fp32":
            self.precision += f", which computes in {self.card.precision}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._transport.close())
        self._runner.close()


class FarmAnswers:
    """Dense labels as they travel."""

    precision = ROUNDED

    def __init__(self, client: TeacherClient) -> None:
        self._client = client

    @property
    def card(self) -> TeacherCard:
        return self._client.card

    def log_probabilities(self, crops: NDArray[Any]) -> NDArray[np.float32]:
        waiting: deque[LabelFuture] = deque()
        parts = []
        for start in range(0, len(crops), BATCH):
            if len(waiting) == BATCHES_AHEAD:
                parts.append(waiting.popleft().result().log_probabilities)
            waiting.append(self._client.submit(crops[start : start + BATCH]))
        parts += [future.result().log_probabilities for future in waiting]
        return log_softmax(np.concatenate(parts))

    def __enter__(self) -> Self:
        self._client.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()


def recorded_log_probabilities(labels: SoftLabels) -> NDArray[np.float32]:
    """Of dense recorded labels, those that are there; ValueError for what cannot be a reference."""
    if LABELS not in labels.spec.outputs or labels.is_top_k or labels.activation != "softmax":
        kind = f"top-{labels.spec.top_k}" if labels.is_top_k else f"{labels.activation}, {list(labels.spec.outputs)}"
        raise ValueError(
            f"a study compares with dense labels of a softmax teacher, these recorded labels are {kind}: record some "
            "with LabelSpec(), or ask a teacher (--teacher-address)"
        )
    there = labels.take(np.flatnonzero(labels.weight > 0))
    if not len(there):
        raise ValueError("none of the chosen labels is recorded yet: let teacherfarm label finish, or ask a teacher")
    return log_softmax(there.log_probabilities)
