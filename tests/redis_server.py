"""A Redis server for tests, the real one: on a port of its own, in a folder of its own, ended by its own id."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Self

from tests.farm_process import wait_for
from tests.real_parts import absent
from tests.standstill import stand_still

PROGRAM = "redis-server"
START_S = 20.0


class RedisServer:
    """``with RedisServer(folder) as redis``: ``redis.url``. It can be killed, stopped, frozen and started again on the
    same port.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        if shutil.which(PROGRAM) is None:
            absent(f"{PROGRAM} is not installed (Debian: apt-get install {PROGRAM})")
        self.folder = folder
        self.port = _free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._options = options

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert self.process is None, "already running"
        command = [PROGRAM, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([*command, *self._options], stdout=log, stderr=log)
        wait_for(self._answers, START_S)

    def freeze(self) -> None:
        """It keeps its connections and answers nobody."""
        assert self.process is not None
        stand_still(self.process)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, whatever state it is in; what it held is lost."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "redis.log").read_text()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
