"""One container without a Docker engine: a process with a network namespace, a root file system, a user, and volumes of
its own, as the compose file says. Needs root, iproute2 and util-linux.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.compose_file import HealthCheck

DEVICES = ("null", "zero", "full", "random", "urandom")
SHOWN_OF_ETC = ("passwd", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "nsswitch.conf", "ssl", "localtime")
LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/sbin"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """``source`` of this machine appears as ``target``."""

    source: Path
    target: str
    read_only: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a container is started from. ``user``: uid:gid. ``links``: bridge -> address with prefix length."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    user: str
    places: tuple[Place, ...]
    tmpfs: tuple[str, ...]
    owners: Mapping[str, int]
    read_only: bool
    shm_bytes: int
    hardened: bool
    links: Mapping[str, str]
    gateway: str
    name_server: str


class Container:
    """``prepare`` and ``spawn`` once; ``stop`` or ``kill`` ends it; nothing is left of it after :meth:`remove`."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.namespace = plan.name
        self.log_file = folder / "log"
        self.starts = 0

    def __repr__(self) -> str:
        return f"<Container {self.plan.name} {'running' if self.running else 'ended'}>"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def prepare(self) -> None:
        """Make its network and the script that makes its root file system."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._make_network()
        (self.folder / "start.sh").write_text(self._script())

    def spawn(self) -> None:
        """The command, at the first start or again."""
        self.starts += 1
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self._start_command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"]},
                start_new_session=True,
            )

    def run_to_end(self, stdin: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run the command in the foreground."""
        return subprocess.run(
            self._start_command,
            input=stdin,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    @property
    def _start_command(self) -> list[str]:
        # Each of them becomes the next one, so that the process's id stays and signals reach the service itself.
        return ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "sh", str(self.folder / "start.sh")]

    def run(self, command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as the container's user with its environment, as `docker exec` does."""
        assert self.process is not None, "not started"
        enter = ["nsenter", f"--target={self.process.pid}", "--mount", "--net", "--root", "--wd"]
        return subprocess.run(
            [*enter, *self._as_user(command)],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def healthy(self, check: HealthCheck) -> bool:
        """Run the health check's own command once."""
        if not self.running:
            return False
        try:
            return self.run(check.test, check.timeout_s).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def stop(self, grace_s: float) -> tuple[int, float]:
        """SIGTERM, and SIGKILL after ``grace_s``; the exit code and the seconds that it took."""
        assert self.process is not None, "not started"
        began_s = time.monotonic()
        self.process.terminate()
        try:
            code = self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            code = self.kill()
        self._end_children()
        return code, time.monotonic() - began_s

    def kill(self) -> int:
        """SIGKILL, to what it started, too."""
        assert self.process is not None, "not started"
        self.process.kill()
        code = self.process.wait()
        self._end_children()
        return code

    def remove(self) -> None:
        """Whatever state it is in: nothing of it is left but its folder."""
        if self.process is not None:
            if self.running:
                self.process.kill()
            self.process.wait()
            self._end_children()
        subprocess.run(["ip", "netns", "del", self.namespace], capture_output=True, check=False)

    def _end_children(self) -> None:
        """An engine ends all that is in a container; here, all that runs in its network namespace."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        for pid in listed.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def _make_network(self) -> None:
        run("ip", "netns", "add", self.namespace)
        run("ip", "-n", self.namespace, "link", "set", "lo", "up")
        for number, (bridge, address) in enumerate(self.plan.links.items()):
            outer = f"{self.namespace}.{number}"
            run("ip", "link", "add", outer, "type", "veth", "peer", "name", f"eth{number}", "netns", self.namespace)
            run("ip", "link", "set", outer, "master", bridge, "up")
            run("ip", "-n", self.namespace, "addr", "add", address, "dev", f"eth{number}")
            run("ip", "-n", self.namespace, "link", "set", f"eth{number}", "up")
        if self.plan.gateway:
            run("ip", "-n", self.namespace, "route", "add", "default", "via", self.plan.gateway)

    def _script(self) -> str:
        """Builds the root file system in a mount namespace of its own and becomes the command."""
        plan, root = self.plan, self.folder / "root"
        root.mkdir(exist_ok=True)
        (self.folder / "resolv.conf").write_text(f"nameserver {plan.name_server}\noptions timeout:2 attempts:2\n")
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n")
        lines = ["set -eu", f"root={shlex.quote(str(root))}", 'mount -t tmpfs -o mode=0755 none "$root"', 'cd "$root"']
        lines += ["mkdir -p usr proc dev dev/shm etc tmp run/secrets", "chmod 1777 tmp"]
        lines += [f"ln -s {target} {link}" for link, target in LINKS.items() if Path(f"/{link}").is_symlink()]
        lines += [_bind(Path("/usr"), "/usr", read_only=True)]
        lines += [
            _bind(Path(f"/etc/{n}"), f"/etc/{n}", read_only=True) for n in SHOWN_OF_ETC if Path(f"/etc/{n}").exists()
        ]
        lines += [_bind(self.folder / name, f"/etc/{name}", read_only=True) for name in ("resolv.conf", "hosts")]
        lines += [_bind(Path(f"/dev/{name}"), f"/dev/{name}", read_only=False) for name in DEVICES]
        lines += ["mount -t proc proc proc", f"mount -t tmpfs -o mode=1777,size={plan.shm_bytes} none dev/shm"]
        # Before the places: a checkout may lie below /tmp.
        lines += [f"mkdir -p .{folder}; mount -t tmpfs -o mode=1777 none .{folder}" for folder in plan.tmpfs]
        lines += [_bind(place.source, place.target, read_only=place.read_only) for place in plan.places]
        for folder, owner in plan.owners.items():
            lines.append(f"test -d .{folder} || {{ mkdir -p .{folder}; chown {owner} .{folder}; }}")
        if plan.read_only:
            lines.append('mount -o remount,bind,ro "$root"')
        lines.append(f'exec chroot "$root" {shlex.join(self._as_user(plan.command))}')
        return "\n".join(lines) + "\n"

    def _as_user(self, command: Sequence[str]) -> list[str]:
        uid, _, gid = self.plan.user.partition(":")
        hardening = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"] if self.plan.hardened else []
        variables = [f"{name}={value}" for name, value in self.plan.environment.items()]
        identity = [f"--reuid={uid}", f"--regid={gid or uid}", "--clear-groups"]
        return ["/usr/bin/setpriv", *identity, *hardening, "/usr/bin/env", "-i", *variables, *command]


def run(*command: str) -> None:
    """A command that has to succeed; what it said is in the error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{shlex.join(command)} failed: {done.stderr.strip()}")


def _bind(source: Path, target: str, *, read_only: bool) -> str:
    inside = shlex.quote(f".{target}")
    make = f"mkdir -p {inside}" if source.is_dir() else f"mkdir -p $(dirname {inside}); touch {inside}"
    mount = f"{make}; mount --bind {shlex.quote(str(source))} {inside}"
    return f"{mount}; mount -o remount,bind,ro {inside}" if read_only else mount
