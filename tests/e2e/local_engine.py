"""Starts a compose file's services as local processes, each in a container of its own: networks, names, ports, volumes,
start order, restarts, scale. Stands in for a Docker engine where there is none; images that cannot run here are named.
"""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.e2e.compose_file import ComposeFile, Service
from tests.e2e.container import Container, Place, Plan, run
from tests.e2e.local_images import CannotRunHere, LocalImage, local_image
from tests.e2e.name_server import NameServer
from tests.e2e.published_port import PublishedPort

POLL_S = 0.05
ONCE_S = 120.0
HEALTHY_S = 90.0
LOOK_AGAIN_S = 0.1
LONGEST_PAUSE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Network:
    """A bridge of this machine. ``prefix``: the first three numbers of its addresses."""

    bridge: str
    prefix: str
    internal: bool

    @property
    def own_address(self) -> str:
        return f"{self.prefix}.1"


class LocalEngine:
    """``up`` starts what the profiles enable; leaving the ``with`` block ends everything."""

    def __init__(self, compose: ComposeFile, folder: Path) -> None:
        self.compose = compose
        self.skipped: list[str] = []
        self.folder = folder
        self._id = f"tf{uuid.uuid4().hex[:5]}"
        self._networks: dict[str, Network] = {}
        self._names: list[NameServer] = []
        self._ports: dict[tuple[str, int], PublishedPort] = {}
        self._containers: dict[str, list[Container]] = {}
        self._images: dict[str, LocalImage] = {}
        self._addresses: dict[str, dict[str, str]] = {}
        self._stopping: set[str] = set()
        self._started = 0
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._restart_what_ends, name="restarts", daemon=True)
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        """Every enabled service, each after what it depends on."""
        services = self.compose.enabled()
        for service in services.values():
            try:
                self._images[service.name] = local_image(service)
            except CannotRunHere as reason:
                self.skipped.append(str(reason))
        self.create_networks()
        self._watcher.start()
        waiting = [service for service in services.values() if service.name in self._images]
        while waiting:
            ready = [s for s in waiting if all(d not in self._images or d in self._containers for d in s.depends_on)]
            assert ready, f"depend on each other: {[service.name for service in waiting]}"
            for service in ready:
                self._wait_for_dependencies(service)
                with self._lock:
                    self._containers[service.name] = []
                self.scale(service.name, 1)
                self._publish(service)
                waiting.remove(service)

    def create_networks(self) -> None:
        """What `up` and `run` begin with; once."""
        for name, internal in self.compose.networks.items():
            if name not in self._networks:
                self._networks[name] = self._make_network(len(self._networks), internal)

    def scale(self, name: str, replicas: int) -> list[tuple[int, float]]:
        """`--scale NAME=REPLICAS`: starts or stops the last ones. Exit code and seconds of those that it stopped."""
        stopped = []
        while len(self._containers[name]) < replicas:
            self._start(self.compose.services[name])
        while len(self._containers[name]) > replicas:
            stopped.append(self.stop(name))
        return stopped

    def stop(self, name: str, index: int = -1) -> tuple[int, float]:
        """`stop` of one container, within the service's grace period; its exit code and the seconds it took."""
        with self._lock:
            container = self._containers[name][index]
            self._stopping.add(container.plan.name)
        ended = container.stop(self.compose.services[name].stop_grace_s)
        with self._lock:
            self._containers[name].remove(container)
        container.remove()
        return ended

    def run(self, name: str, *command: str, entrypoint: tuple[str, ...] | None = None, stdin: str = "") -> str:
        """`run --rm NAME COMMAND`: a container of its own, ended when this returns; what it printed. Must succeed."""
        service = self.compose.services[name]
        image = self._images.setdefault(name, local_image(service))
        if entrypoint is not None:
            image = dataclasses.replace(image, entrypoint=entrypoint)
        container = self._make(dataclasses.replace(service, command=command), image)
        try:
            container.prepare()
            done = container.run_to_end(stdin)
        finally:
            container.remove()
        assert done.returncode == 0, f"{name} {command} ended with {done.returncode}: {done.stderr}"
        return done.stdout

    def container(self, name: str, index: int = 0) -> Container:
        return self._containers[name][index]

    def containers(self, name: str) -> list[Container]:
        return list(self._containers[name])

    def wait_healthy(self, name: str, timeout_s: float = HEALTHY_S) -> None:
        """Until the health check's own command succeeds in every replica; AssertionError with the log else."""
        check = self.compose.services[name].health
        assert check is not None, f"{name} has no health check"
        for container in self.containers(name):
            wait_until(
                lambda c=container: c.healthy(check), timeout_s, lambda c=container: f"{c} is unhealthy:\n{c.log()}"
            )

    def volume(self, name: str) -> Path:
        """Where a named volume lies on this machine."""
        return self.folder / "volumes" / name

    def published(self, name: str, target: int) -> int:
        """This machine's port for a service's port."""
        return self._ports[name, target].port

    def address(self, container: Container, network: str) -> str:
        """Its address in one of the networks."""
        return self._addresses[container.plan.name][network]

    def logs(self) -> str:
        """What every container said, ended ones too."""
        files = sorted(self.folder.glob("containers/*/log"))
        return "\n".join(f"--- {file.parent.name}\n{file.read_text(errors='replace')}" for file in files)

    def down(self) -> None:
        """End everything, whatever state it is in."""
        self._closing.set()
        if self._watcher.is_alive():
            self._watcher.join()
        for port in self._ports.values():
            port.close()
        for containers in self._containers.values():
            for container in containers:
                container.remove()
        for server in self._names:
            server.close()
        for network in self._networks.values():
            subprocess.run(["ip", "link", "del", network.bridge], capture_output=True, check=False)

    def _start(self, service: Service) -> None:
        container = self._make(service, self._images[service.name])
        with self._lock:
            self._containers[service.name].append(container)
            container.prepare()
            container.spawn()

    def _make(self, service: Service, image: LocalImage) -> Container:
        self._started += 1
        number = self._started
        name = f"{self._id}c{number}"
        addresses = {net: f"{self._networks[net].prefix}.{number + 10}" for net in service.networks}
        networks = [self._networks[net] for net in service.networks]
        open_networks = [network for network in networks if not network.internal]
        plan = Plan(
            name=name,
            command=(*image.entrypoint, *service.command),
            environment={**image.environment, **service.environment},
            user=service.user,
            places=tuple(self._places(service, image)),
            tmpfs=service.tmpfs,
            owners=image.owners,
            read_only=service.read_only,
            shm_bytes=service.shm_bytes,
            hardened=service.hardened,
            links={self._networks[net].bridge: f"{address}/24" for net, address in addresses.items()},
            gateway=open_networks[0].own_address if open_networks else "",
            name_server=networks[0].own_address if networks else "127.0.0.1",
        )
        container = Container(plan, self.folder / "containers" / f"{service.name}-{number}")
        with self._lock:
            self._addresses[name] = addresses
        return container

    def _places(self, service: Service, image: LocalImage) -> Iterator[Place]:
        for target, source in image.shown.items():
            yield Place(source=source, target=target, read_only=True)
        for mount in service.mounts:
            source = Path(mount.source)
            if mount.named:
                source = self.volume(mount.source)
                if not source.exists():
                    source.mkdir(parents=True)
                    owner = image.owners.get(mount.target, 0)
                    os.chown(source, owner, owner)
            yield Place(source=source, target=mount.target, read_only=mount.read_only)
        for secret in service.secrets:
            yield Place(source=self.compose.secrets[secret], target=f"/run/secrets/{secret}", read_only=True)

    def _wait_for_dependencies(self, service: Service) -> None:
        for name, condition in service.depends_on.items():
            if name not in self._containers:
                continue
            if condition == "service_healthy":
                self.wait_healthy(name)
            elif condition == "service_completed_successfully":
                ended = self.container(name)
                wait_until(lambda c=ended: not c.running, ONCE_S, lambda c=ended: f"{c} does not end:\n{c.log()}")
                assert ended.exit_code == 0, f"{ended} ended with {ended.exit_code}:\n{ended.log()}"

    def _publish(self, service: Service) -> None:
        """On the network that leads outside: an internal one has no published ports."""
        outside = [net for net in service.networks if not self.compose.networks[net]]
        for port in service.ports:
            assert outside, f"{service.name} publishes {port.target} and has only internal networks"

            def target(network: str = outside[0], number: int = port.target) -> tuple[str, int] | None:
                with self._lock:
                    running = [c for c in self._containers[service.name] if c.running]
                return (self.address(running[0], network), number) if running else None

            self._ports[service.name, port.target] = PublishedPort(port.address, port.published, target)

    def _make_network(self, number: int, internal: bool) -> Network:
        taken = subprocess.run(["ip", "-o", "-4", "addr"], capture_output=True, text=True, check=True).stdout
        while (prefix := f"10.{random.randrange(128, 255)}.{random.randrange(256)}") in taken:
            pass
        network = Network(bridge=f"{self._id}n{number}", prefix=prefix, internal=internal)
        # An address of its own: else it takes over a container's, and changes it as containers come and go.
        mac = ":".join(f"{byte:02x}" for byte in (2, *random.randbytes(5)))
        run("ip", "link", "add", network.bridge, "address", mac, "type", "bridge")
        run("ip", "addr", "add", f"{network.own_address}/24", "dev", network.bridge)
        run("ip", "link", "set", network.bridge, "up")
        server = NameServer(network.own_address, self._look_up)
        server.start()
        self._names.append(server)
        return network

    def _look_up(self, name: str, asking: str) -> list[str] | None:
        """Running containers of that name or alias, by their addresses in networks that the asking container is in."""
        with self._lock:
            asked_by = next((a for a in self._addresses.values() if asking in a.values()), {})
            found, known = [], False
            for service_name, containers in self._containers.items():
                for network, aliases in self.compose.services[service_name].networks.items():
                    if network in asked_by and name in (service_name, *aliases):
                        known = True
                        found += [self._addresses[c.plan.name][network] for c in containers if c.running]
        return found if known else None

    def _restart_what_ends(self) -> None:
        """The restart policy `unless-stopped`, with pauses that grow as an engine's do."""
        due_s: dict[str, float] = {}
        while not self._closing.wait(LOOK_AGAIN_S):
            now_s = time.monotonic()
            with self._lock:
                for name, containers in self._containers.items():
                    for container in containers:
                        own = container.plan.name
                        if container.running or own in self._stopping or self.compose.services[name].restart == "no":
                            continue
                        pause_s = min(LOOK_AGAIN_S * 2**container.starts, LONGEST_PAUSE_S)
                        if now_s >= due_s.setdefault(own, now_s + pause_s):
                            del due_s[own]
                            container.spawn()


@contextmanager
def running(compose: ComposeFile, folder: Path) -> Iterator[LocalEngine]:
    """All of a compose file, up."""
    with LocalEngine(compose, folder) as engine:
        engine.up()
        yield engine


def wait_until(condition: Callable[[], bool], timeout_s: float, complaint: Callable[[], str]) -> None:
    """Until ``condition()`` holds; AssertionError with ``complaint()`` when it never does."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, complaint()
        time.sleep(POLL_S)
