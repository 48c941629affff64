"""How far a long work is: a bar for a terminal, and for a log a line now and then, both with rate and time left."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

LINE_EVERY_S = 30.0


class WorkMeter:
    """Call it with how many more are done. ``done_before``: by an earlier run, no part of the rate."""

    def __init__(
        self, what: str, *, total: int, done_before: int, unit: str, line_every_s: float = LINE_EVERY_S
    ) -> None:
        self._bar = tqdm(total=total, initial=done_before, desc=what, unit=f" {unit}s", disable=None)
        self._what, self._total, self._before, self._unit = what, total, done_before, unit
        self._line_every_s = line_every_s
        self._done = 0
        self._began_s = self._said_s = time.monotonic()

    def __call__(self, more: int) -> None:
        self._done += more
        self._bar.update(more)
        now_s = time.monotonic()
        if self._bar.disable and now_s - self._said_s >= self._line_every_s:
            self._said_s = now_s
            print(self.line(now_s - self._began_s), file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def line(self, took_s: float) -> str:
        """What a log gets after ``took_s`` seconds."""
        rate = self._done / took_s if took_s > 0 else 0.0
        done = self._before + self._done
        left = tqdm.format_interval((self._total - done) / rate) if rate else "?"
        return f"{self._what}: {done} of {self._total}, {rate:.0f} {self._unit}s/s, {left} left"
