"""Keeps a number of crop batches in flight for a while and measures between two completions, so that neither filling
nor draining the pipe counts.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from numpy.typing import NDArray

Pixels = NDArray[Any]
Answer = TypeVar("Answer")


def in_rotation(batches: Sequence[Pixels]) -> Iterator[Pixels]:
    """The batches again and again: what is sent must not still lie in a cache from the last time."""
    return itertools.cycle(batches)


async def run_pipeline(
    ask: Callable[[Pixels], Awaitable[Answer]],
    collect: Callable[[Answer], Awaitable[object]],
    batches: Iterator[Pixels],
    *,
    in_flight: int,
    seconds: float,
) -> float:
    """Crops/s of asking and collecting in order with ``in_flight`` batches on their way."""
    waiting: deque[tuple[Answer, int]] = deque()
    num_crops = 0
    started_s = stopped_s = 0.0
    try:
        while True:
            while len(waiting) < in_flight:
                batch = next(batches)
                waiting.append((await ask(batch), len(batch)))
            answer, size = waiting.popleft()
            await collect(answer)
            stopped_s = time.perf_counter()
            if not started_s:
                started_s = stopped_s
                continue
            num_crops += size
            if stopped_s - started_s >= seconds:
                return num_crops / (stopped_s - started_s)
    finally:
        while waiting:
            await collect(waiting.popleft()[0])
