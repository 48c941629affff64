"""The time that somebody in this process waited for labels, and what a student reports of itself in its pings."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from teacherfarm.protos.messages import StudentReport
from teacherfarm.student.sizing import wanted_per_s

SHORTEST_S = 0.05


class WaitClock:
    """Runs while at least one thread is inside ``with wait_clock``."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._inside = 0
        self._since_s = 0.0
        self._waited_s = 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._since_s = self._clock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._waited_s += self._clock() - self._since_s

    @property
    def waited_s(self) -> float:
        """Seconds so far, those of a wait under way included."""
        with self._lock:
            return self._waited_s + (self._clock() - self._since_s if self._inside else 0.0)


class Reporter:
    """Makes a student's reports, each over the time since the last one."""

    def __init__(self, waits: WaitClock, clock: Callable[[], float] = time.perf_counter) -> None:
        self._waits = waits
        self._clock = clock
        self._before = (clock(), waits.waited_s, 0)

    def report(self, crops_answered: int) -> StudentReport | None:
        """``crops_answered``: since the student began. None where the last report was a moment ago."""
        now = (self._clock(), self._waits.waited_s, crops_answered)
        total_s, waited_s, crops = (after - before for after, before in zip(now, self._before, strict=True))
        if total_s < SHORTEST_S:
            return None
        self._before = now
        wanted = wanted_per_s(crops=int(crops), total_s=total_s, waited_s=waited_s)
        return StudentReport(stall=min(1.0, waited_s / total_s), wanted_per_s=wanted)
