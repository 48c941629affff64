"""``teacherfarm serve`` in a process of its own, which ends with ours. Knows its command line and its ready line."""

from __future__ import annotations

import ctypes
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from teacherfarm.demo.steps import step

PR_SET_PDEATHSIG = 1
END_S = 10.0


class Farm:
    """A running server of a models directory, on free ports. ``addresses`` by scheme: zmq, grpc, http."""

    def __init__(self, models: Path, log: Path) -> None:
        self.addresses: dict[str, str] = {}
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        flags = [f"--{wire}=127.0.0.1:0" for wire in ("grpc", "zmq", "http")]
        self._command = [sys.executable, "-m", "teacherfarm.cli", "serve", str(models), *flags]

    def start(self) -> None:
        """Wait until it is ready; RuntimeError with its log when it ends instead."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=_end_with_parent
            )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("ready after"):
                found = line.partition(": ")[2].split()
                self.addresses = {address.partition("://")[0]: address for address in found}
                return
        self.stop()
        raise RuntimeError(
            f"the server ended before it was ready: {shlex.join(self._command)}\n{self._log.read_text()}"
        )

    def stop(self) -> None:
        """End it; safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            assert process.stdout is not None
            process.stdout.close()


@contextmanager
def serving(models: Path, log: Path, title: str) -> Iterator[Farm]:
    """A farm for as long as the context lasts, whatever ends it; ``title`` is the step's."""
    farm = Farm(models, log)
    try:
        with step(title) as running:
            farm.start()
            running.outcome = f"{farm.addresses['zmq']} and gRPC"
        yield farm
    finally:
        farm.stop()


def _end_with_parent() -> None:
    # Between fork and exec: even a parent that is killed outright leaves no server behind.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
