"""A server in a process of its own: started, waited for by its ready line, and stopped whatever happens."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
READY_WITHIN_S = 60.0
STOP_WITHIN_S = 30.0


@contextmanager
def running(module: str, arguments: Sequence[str], *, prefix: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """Run ``python -m module arguments``; gives its addresses by scheme ("zmq" -> "zmq://127.0.0.1:4711").

    ``prefix`` goes before python: ``ip netns exec NAME``. The program says when it is ready by a line of its output
    that starts with "ready" and holds its addresses. Raises RuntimeError when it ends or stays silent before that.
    """
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", module, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    overdue = threading.Timer(READY_WITHIN_S, process.kill)
    overdue.start()
    try:
        addresses = _addresses(process, module)
        overdue.cancel()
        yield addresses
    finally:
        overdue.cancel()
        _stop(process)


def _addresses(process: subprocess.Popen[str], module: str) -> dict[str, str]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready"):
            # Nobody reads what it may still say: its pipe must not fill up.
            threading.Thread(target=_read_on, args=(process.stdout,), daemon=True).start()
            return {found[1]: found[0] for found in re.finditer(r"(\w+)://\S+", line)}
    raise RuntimeError(f"{module} was not ready within {READY_WITHIN_S:.0f} s (exit status {process.wait()})")


def _read_on(output: IO[str]) -> None:
    with output:
        output.read()


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
