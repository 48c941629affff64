"""A backend that answers from a script instead of a model: for tests (users' too) and benchmarks of all the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.teacher_server.backends.backend import GraphOutputs

LATE_WAKE_UP_S = 0.005


def marked_outputs(card: TeacherCard, pixels: NDArray[Any], outputs: Sequence[str]) -> GraphOutputs:
    """Answers that name their crop: the class is the sum of the crop's bytes modulo the number of classes."""
    sums = pixels.reshape(len(pixels), -1).astype(np.uint64).sum(axis=1)
    classes = (sums % max(card.num_classes, 1)).astype(np.int64)
    answers: dict[str, NDArray[Any]] = {}
    for name in outputs:
        if name in (card.label_output, "logits"):
            values = np.full((len(pixels), card.num_classes), -8.0, np.float32)
            values[np.arange(len(pixels)), classes] = -0.01
            answers[name] = values.astype(np.float16)
        else:
            shape = card.feature(name).shape
            answers[name] = np.broadcast_to(
                classes.reshape(-1, *(1,) * len(shape)).astype(np.float32), (len(pixels), *shape)
            )
    return answers


class ScriptedBackend:
    """Answers with ``script(pixels, outputs)``; takes ``seconds_per_batch`` + N * ``seconds_per_crop`` a call.

    Without a script every answer is zeros, made once. ``calls`` keeps the number of crops of each call. A script may
    raise, which is what a broken teacher does.
    """

    def __init__(
        self,
        card: TeacherCard,
        *,
        script: Callable[[NDArray[Any], Sequence[str]], GraphOutputs] | None = None,
        seconds_per_crop: float = 0.0,
        seconds_per_batch: float = 0.0,
        slots: int = 1,
        largest_batch: int = 32,
    ) -> None:
        self._card = card
        self._script = script
        self._seconds_per_crop = seconds_per_crop
        self._seconds_per_batch = seconds_per_batch
        self._slots = slots
        self._largest_batch = largest_batch
        self._zeros: dict[str, NDArray[Any]] = {}
        self._busy_until_s = 0.0
        self.calls: list[int] = []

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def largest_batch(self) -> int:
        return self._largest_batch

    @property
    def provider_class(self) -> str:
        return "scripted"

    async def start(self) -> None:
        card = self._card
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys((card.label_output, "logits"), (card.num_classes,))
        shapes |= {output.name: output.shape for output in card.features}
        for name, shape in shapes.items():
            self._zeros[name] = np.zeros((self._largest_batch, *shape), np.float16)

    async def run(self, pixels: NDArray[Any], outputs: Sequence[str]) -> GraphOutputs:
        self.calls.append(len(pixels))
        if duration_s := self._seconds_per_batch + len(pixels) * self._seconds_per_crop:
            # Against an absolute schedule, so that late wake-ups do not add up to a slower teacher than asked.
            now_s = asyncio.get_running_loop().time()
            self._busy_until_s = max(self._busy_until_s, now_s - LATE_WAKE_UP_S) + duration_s / self._slots
            await asyncio.sleep(self._busy_until_s - now_s)
        if self._script is not None:
            return self._script(pixels, outputs)
        return {name: self._zeros[name][: len(pixels)] for name in outputs}

    async def run_alone(self, pixels: NDArray[Any], outputs: Sequence[str]) -> GraphOutputs:
        return await self.run(pixels, outputs)

    async def close(self) -> None:
        self._zeros.clear()
