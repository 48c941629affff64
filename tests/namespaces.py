"""Network namespaces as hosts, joined by slow links: ``with Hosts("farm", "one") as hosts``. Needs root."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from tests.farm_process import ROOT

END_S = 30.0


class CannotMakeNamespaces(Exception):
    """Not here: no root, no iproute2, or a kernel or container that forbids it."""


class SlowLink:
    """10 ms and 1 Gbit/s between two hosts, and the address of each end."""

    def __init__(self, one: str, other: str, number: int) -> None:
        self.addresses = (f"10.77.{number}.1", f"10.77.{number}.2")
        self.carried_bytes = (0, 0)
        places = [one, self.addresses[0], other, self.addresses[1]]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.slow_link", *places], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def wait_up(self) -> None:
        """Until packets go through."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "up\n"

    def close(self) -> None:
        """End it; ``carried_bytes`` then says how much went each way."""
        self._process.terminate()
        said, _ = self._process.communicate(timeout=END_S)
        if len(said.split()) == 2:
            there, back = map(int, said.split())
            self.carried_bytes = (there, back)


class Hosts:
    """Namespaces of these names, gone at the end."""

    _numbers = itertools.count(1)

    def __init__(self, *names: str) -> None:
        self._namespaces = {name: f"teacherfarm-{os.getpid()}-{name}" for name in names}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        try:
            for namespace in self._namespaces.values():
                _ip("netns", "add", namespace)
                self._open.callback(_ip, "netns", "delete", namespace)
                _ip("-n", namespace, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            self._open.close()
            why = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
            raise CannotMakeNamespaces(f"network namespaces cannot be made here: {why.strip()}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def on(self, name: str) -> list[str]:
        """What goes before a command that runs on a host."""
        return ["ip", "netns", "exec", self._namespaces[name]]

    def shaped_link(self, one: str, other: str, *, mbit: float) -> tuple[str, str]:
        """Join two hosts by a link of a rate that the kernel keeps, without delay; the address of each end."""
        number = next(self._numbers)
        ends = {one: (f"veth{number}a", f"10.78.{number}.1"), other: (f"veth{number}b", f"10.78.{number}.2")}
        (near, _), (far, _) = ends.values()
        here, there = self._namespaces[one], self._namespaces[other]
        try:
            _ip("-n", here, "link", "add", near, "type", "veth", "peer", "name", far, "netns", there)
            for name, (device, address) in ends.items():
                namespace = self._namespaces[name]
                _ip("-n", namespace, "address", "add", f"{address}/24", "dev", device)
                _ip("-n", namespace, "link", "set", device, "up")
                shape = ["tbf", "rate", f"{mbit}mbit", "burst", "128kb", "latency", "50ms"]
                subprocess.run(
                    ["tc", "-n", namespace, "qdisc", "add", "dev", device, "root", *shape],
                    check=True,
                    capture_output=True,
                    text=True,
                )
        except (OSError, subprocess.CalledProcessError) as error:
            why = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
            raise CannotMakeNamespaces(f"a link of {mbit} Mbit/s cannot be made here: {why.strip()}") from error
        return ends[one][1], ends[other][1]

    def link(self, one: str, other: str) -> SlowLink:
        """Join two hosts."""
        link = SlowLink(self._namespaces[one], self._namespaces[other], next(self._numbers))
        self._open.callback(link.close)
        link.wait_up()
        return link


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
