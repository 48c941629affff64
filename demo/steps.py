"""What the demo says while it works: one line a step, with its outcome and its time."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

BAR_WIDTH = 24
LEAST_REDRAW_S = 0.1


class Step:
    """One line under way."""

    def __init__(self, title: str) -> None:
        self.outcome = ""
        self._title = title
        self._drawn_s = 0.0

    def progress(self, done: float) -> None:
        """Draw a bar, ``done`` from 0 to 1; on a terminal only."""
        now_s = time.monotonic()
        if not sys.stdout.isatty() or now_s - self._drawn_s < LEAST_REDRAW_S:
            return
        self._drawn_s = now_s
        filled = round(BAR_WIDTH * min(1.0, max(0.0, done)))
        line = f"  {self._title}  {'█' * filled}{'·' * (BAR_WIDTH - filled)} {done:4.0%}"
        sys.stdout.write("\r" + line[: shutil.get_terminal_size().columns - 1] + "\x1b[K")
        sys.stdout.flush()


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Times what happens inside; set ``outcome`` there. The line ends with both."""
    running, started_s = Step(title), time.monotonic()
    if sys.stdout.isatty():
        sys.stdout.write(f"  {title} ...")
    sys.stdout.flush()
    try:
        yield running
    except BaseException:
        sys.stdout.write("\n")
        raise
    if sys.stdout.isatty():
        sys.stdout.write("\r\x1b[K")
    print(f"  {title:<58}  {running.outcome:<32} {time.monotonic() - started_s:5.1f} s", flush=True)


def say(text: str = "") -> None:
    """A line between the steps."""
    print(text, flush=True)
