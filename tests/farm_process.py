"""A server in a process of its own, as fixtures and network namespaces use it: start, wait for its ready line, kill,
restart on the same ports, drain. Always ended by its own id.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

from tests.standstill import stand_still

ROOT = Path(__file__).resolve().parent.parent
START_S = 60.0
END_S = 30.0


class FarmProcess:
    """``python -m MODULE ARGUMENTS`` plus the three addresses. ``prefix`` goes before python: ``ip netns exec NAME``.

    ``host``: where it listens. After the first start the ports stay the same. Logs are kept in ``folder``.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str | Path,
        module: str = "teacherfarm.teacher_server",
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.addresses: dict[str, str] = {}
        self.process: subprocess.Popen[str] | None = None
        self._command = [*prefix, sys.executable, "-m", module, *map(str, arguments)]
        self._host = host
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._log = folder / f"farm-{id(self)}.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def zmq(self) -> str:
        return self.addresses["zmq"]

    @property
    def grpc(self) -> str:
        return self.addresses["grpc"]

    @property
    def http(self) -> str:
        return self.addresses["http"]

    @property
    def pid(self) -> int:
        assert self.process is not None, "not started"
        return self.process.pid

    def start(self, *, wait: bool = True) -> FarmProcess:
        """Start it, on the ports of the last start where there was one; ``wait`` until it says that it is ready."""
        assert self.process is None, "already running"
        places = [f"--{wire}={self._place(wire)}" for wire in ("grpc", "zmq", "http")]
        with self._log.open("a") as log:
            process = self.process = subprocess.Popen(
                [*self._command, *places],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=self._environment,
            )
        self._lines = queue.Queue()
        threading.Thread(target=_read_lines, args=(process, self._lines), daemon=True).start()
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait for the ready line and take the addresses from it; AssertionError with the log when it ended instead."""
        while True:
            try:
                line = self._lines.get(timeout=START_S)
            except queue.Empty:
                raise AssertionError(f"not ready after {START_S} s:\n{self.log()}") from None
            if line is None:
                raise AssertionError(f"the server ended with {self.wait()} before it was ready:\n{self.log()}")
            if line.startswith("ready after"):
                found = line.partition(": ")[2].split()
                # Also by TLS, grpcs://, it is the same wire.
                wires = [address.partition("://")[0].replace("grpcs", "grpc") for address in found]
                self.addresses = dict(zip(wires, found, strict=True))
                return

    def log(self) -> str:
        """What it wrote to standard error since its first start."""
        return self._log.read_text() if self._log.exists() else ""

    def kill(self) -> None:
        """kill -9."""
        self.signal(signal.SIGKILL)
        self.wait()

    def restart(self, *, wait: bool = True) -> None:
        """kill -9 if need be, and start again on the same ports."""
        if self.process is not None:
            self.kill()
        self.start(wait=wait)

    def signal(self, number: int) -> None:
        """Send a signal to this one process."""
        assert self.process is not None, "not running"
        self.process.send_signal(number)

    def pause(self) -> None:
        """Let it stand still, its connections open."""
        assert self.process is not None, "not running"
        stand_still(self.process)

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
        self.signal(signal.SIGCONT)

    def terminate(self) -> int:
        """SIGTERM, and its exit code once it ended."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self, timeout_s: float = END_S) -> int:
        """Its exit code once it ended by itself."""
        process = self.process
        assert process is not None, "not running"
        code = process.wait(timeout_s)
        self.process = None
        return code

    def stop(self) -> None:
        """End it whatever state it is in."""
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def rss_bytes(self) -> int:
        """Its memory at this moment."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page of its status front-end."""
        try:
            with urllib.request.urlopen(self.http + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(f'{key}="{label}"' in sample for key, label in labels.items()):
                total += float(value)
        return total

    def _place(self, wire: str) -> str:
        if wire not in self.addresses:
            return f"{self._host}:0"
        return self.addresses[wire].partition("://")[2].partition("?")[0]


def wait_for(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Until ``condition()`` holds; AssertionError when it never does."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"waited {timeout_s:g} s in vain"
        time.sleep(0.005)


def _read_lines(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line.rstrip("\n"))
    lines.put(None)
