"""A real Triton server in a process of its own, as tests and benchmarks use it: start, wait until it says that it is
ready, kill -9, pause, restart on the same ports. Always ended by its own id, with what it leaves behind.
"""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

from tests.standstill import stand_still
from tools.triton_environment import TritonInstallation, find_triton

START_S = 60.0
END_S = 30.0
POLL_S = 0.02
PORTS_TRIED = 5
SHARED_MEMORY = Path("/dev/shm")
CLASH = "already in use"


class TritonServer:
    """``tritonserver`` on a model repository. Its log is kept in ``folder``; after the first start the ports stay.

    ``host``: where it listens; ``ports`` for gRPC, HTTP and metrics, where they are to be those of a server on another
    host. ``arguments``: further flags. ``prefix`` goes before the command: ``ip netns exec NAME``
    (then wait for its readiness yourself, from where ``host`` can be reached).
    """

    def __init__(
        self,
        repository: Path,
        folder: Path,
        *,
        arguments: Sequence[str] = (),
        host: str = "127.0.0.1",
        ports: tuple[int, int, int] | None = None,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        installation: TritonInstallation | None = None,
    ) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._installation = installation or find_triton()
        self._repository = repository
        self._arguments = arguments
        self._host = host
        self._prefix = prefix
        self._environment = {"OMP_NUM_THREADS": "1", **(environment or {})}
        self._ports = ports
        # Its shared memory by name: what a kill -9 leaves behind is removed without touching another server's.
        self._name = f"tf-{uuid.uuid4().hex[:12]}-"
        self._log = folder / f"triton-{self._name}.log"
        self._log_start = 0

    def __repr__(self) -> str:
        where = f"{self.grpc} (gRPC)" if self._ports else "no ports yet"
        return f"<TritonServer {where} {'running' if self.process else 'not running'}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def grpc(self) -> str:
        """HOST:PORT of its gRPC interface."""
        return f"{self._host}:{self._chosen_ports[0]}"

    @property
    def http(self) -> str:
        """Address of its HTTP interface."""
        return f"http://{self._host}:{self._chosen_ports[1]}"

    @property
    def metrics(self) -> str:
        """Address of its Prometheus page."""
        return f"http://{self._host}:{self._chosen_ports[2]}/metrics"

    @property
    def pid(self) -> int:
        assert self.process is not None, "not running"
        return self.process.pid

    def start(self, *, wait: bool = True) -> TritonServer:
        """Start it, on the ports of the last start where there was one; ``wait`` until it is ready to be asked."""
        assert self.process is None, "already running"
        again = self._ports is not None
        for left in reversed(range(PORTS_TRIED)):
            if not again:
                self._ports = free_ports(self._host)
            self._spawn()
            if not wait or self._is_ready_or_clashed():
                return self
            if not left:
                break
        raise AssertionError(f"no free ports in {PORTS_TRIED} attempts:\n{self.log()}")

    def wait_ready(self) -> None:
        """Ask until it is ready; AssertionError with the log when it ends instead or takes too long."""
        if not self._is_ready_or_clashed():
            raise AssertionError(f"its ports are taken:\n{self.log()}")

    def ready(self) -> bool:
        """Whether the server and all its models are, at this moment."""
        try:
            with urllib.request.urlopen(f"{self.http}/v2/health/ready", timeout=5.0) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def log(self) -> str:
        """What it wrote since its first start."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def signal(self, number: int) -> None:
        """Send a signal to the server's process."""
        assert self.process is not None, "not running"
        self.process.send_signal(number)

    def pause(self) -> None:
        """Stop its process, connections and all: what a partition looks like."""
        assert self.process is not None, "not running"
        stand_still(self.process)

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, its models' processes too."""
        assert self.process is not None, "not running"
        self.stop()

    def restart(self, *, wait: bool = True) -> None:
        """kill -9 if need be, and start again on the same ports."""
        self.stop()
        self.start(wait=wait)

    def terminate(self) -> int:
        """SIGTERM, and its exit code once it has ended."""
        process = self.process
        assert process is not None, "not running"
        process.terminate()
        code = process.wait(END_S)
        self.stop()
        return code

    def stop(self) -> None:
        """End it by kill -9 whatever state it is in, and remove what that leaves behind."""
        process, self.process = self.process, None
        if process is None:
            return
        models: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            models = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        for model in models:
            with contextlib.suppress(psutil.NoSuchProcess):
                model.kill()
        psutil.wait_procs(models, END_S)
        for left in SHARED_MEMORY.glob(f"{self._name}*"):
            left.unlink(missing_ok=True)

    @property
    def ports(self) -> tuple[int, int, int]:
        """For gRPC, HTTP and metrics."""
        return self._chosen_ports

    @property
    def _chosen_ports(self) -> tuple[int, int, int]:
        assert self._ports is not None, "not started"
        return self._ports

    def _spawn(self) -> None:
        grpc, http, metrics = self._chosen_ports
        places = [
            *(f"--{wire}-address={self._host}" for wire in ("grpc", "http", "metrics")),
            *(f"--grpc-port={grpc}", f"--http-port={http}", f"--metrics-port={metrics}"),
        ]
        memory = f"--backend-config=python,shm-region-prefix-name={self._name}"
        command = [*self._prefix, *self._installation.command(self._repository), *places, memory, *self._arguments]
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self._installation.environment(), **self._environment},
            )

    def _is_ready_or_clashed(self) -> bool:
        """True once it is ready, False when it ended because somebody else took a port. AssertionError otherwise."""
        end_s = time.monotonic() + START_S
        while not self.ready():
            assert self.process is not None, "not running"
            if (code := self.process.poll()) is not None:
                self.stop()
                if CLASH in self.log().encode()[self._log_start :].decode(errors="replace"):
                    return False
                raise AssertionError(f"tritonserver ended with {code} before it was ready:\n{self.log()}")
            if time.monotonic() > end_s:
                self.stop()
                raise AssertionError(f"tritonserver was not ready after {START_S:g} s:\n{self.log()}")
            time.sleep(POLL_S)
        # Somebody else's server on these ports would answer, too, while ours fails to bind.
        return self.process is not None and self.process.poll() is None


def free_ports(host: str, number: int = 3) -> tuple[int, int, int]:
    """Ports that were free a moment ago, below those that outgoing connections are given: Triton takes no port 0."""
    with contextlib.ExitStack() as held:
        found: list[int] = []
        while len(found) < number:
            holder = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                holder.bind((host, random.randrange(20000, 32000)))
                found.append(holder.getsockname()[1])
        first, second, third = found
        return first, second, third
