"""docker-compose.yml as Compose understands it: .env, interpolation, override files, profiles; nothing is started.

Reads what this project's files use and refuses the rest, so that nothing is passed over in silence.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

KNOWN = frozenset(
    [
        "image",
        "build",
        "command",
        "entrypoint",
        "user",
        "environment",
        "ports",
        "volumes",
        "tmpfs",
        "secrets",
        "networks",
        "network_mode",
        "depends_on",
        "profiles",
        "restart",
        "healthcheck",
        "stop_grace_period",
        "read_only",
        "shm_size",
        "security_opt",
        "cap_drop",
        "logging",
        "deploy",
    ]
)
_REFERENCE = re.compile(r"\$(?:(?P<dollar>\$)|(?P<bare>\w+)|\{(?P<name>\w+)(?:(?P<how>:?[-?])(?P<other>[^}]*))?\})")
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


@dataclass(frozen=True, kw_only=True)
class Mount:
    """``source`` is a folder's or file's absolute path, or a named volume's name."""

    source: str
    target: str
    read_only: bool

    @property
    def named(self) -> bool:
        return not self.source.startswith("/")


@dataclass(frozen=True, kw_only=True)
class Port:
    """``address``:``published`` of the machine is ``target`` of the container."""

    address: str
    published: int
    target: int


@dataclass(frozen=True, kw_only=True)
class HealthCheck:
    test: tuple[str, ...]
    interval_s: float
    timeout_s: float
    retries: int
    start_period_s: float


@dataclass(frozen=True, kw_only=True)
class Service:
    """One service, every reference resolved. ``networks``: name -> the further names it answers to there."""

    name: str
    image: str
    dockerfile: Path | None
    command: tuple[str, ...]
    user: str
    environment: Mapping[str, str]
    ports: tuple[Port, ...]
    mounts: tuple[Mount, ...]
    tmpfs: tuple[str, ...]
    secrets: tuple[str, ...]
    networks: Mapping[str, tuple[str, ...]]
    depends_on: Mapping[str, str]
    profiles: frozenset[str]
    restart: str
    health: HealthCheck | None
    health_disabled: bool
    stop_grace_s: float
    read_only: bool
    shm_bytes: int
    hardened: bool
    """No capabilities and no new privileges."""
    devices: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class ComposeFile:
    """The services of every profile; ``secrets``: name -> file."""

    folder: Path
    services: Mapping[str, Service]
    networks: Mapping[str, bool]
    """Name -> is it internal?"""
    volumes: frozenset[str]
    secrets: Mapping[str, Path]
    profiles: frozenset[str]

    def enabled(self) -> dict[str, Service]:
        """The services that `up` starts: those without a profile and those of COMPOSE_PROFILES."""
        return {n: s for n, s in self.services.items() if not s.profiles or s.profiles & self.profiles}


def read_compose_file(file: Path, *overrides: Path, environment: Mapping[str, str] | None = None) -> ComposeFile:
    """Read ``file`` and what its override files change. ``environment`` beats the .env file beside it."""
    folder = file.resolve().parent
    values = {**read_env_file(folder / ".env"), **(environment or {})}
    content: dict[str, Any] = {}
    for path in (file, *overrides):
        content = _merged(content, _interpolated(yaml.safe_load(path.read_text()), values))
    unknown = {key for key in content if not key.startswith("x-")} - {"services", "networks", "volumes", "secrets"}
    if unknown:
        raise ValueError(f"{file}: cannot read {', '.join(sorted(unknown))}")
    services = {name: _service(name, told, folder) for name, told in content["services"].items()}
    networks = {name: bool((told or {}).get("internal")) for name, told in (content.get("networks") or {}).items()}
    if any("default" in service.networks for service in services.values()):
        networks["default"] = False
    secrets = {name: folder / told["file"] for name, told in (content.get("secrets") or {}).items()}
    profiles = frozenset(name for name in values.get("COMPOSE_PROFILES", "").split(",") if name)
    volumes = frozenset(content.get("volumes") or {})
    found = ComposeFile(
        folder=folder, services=services, networks=networks, volumes=volumes, secrets=secrets, profiles=profiles
    )
    _check_references(found)
    return found


def read_env_file(file: Path) -> dict[str, str]:
    """KEY=VALUE lines."""
    lines = [line.strip() for line in file.read_text().splitlines()] if file.exists() else []
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """``$NAME``, ``${NAME}``, ``${NAME-other}``, ``${NAME:-other}``, ``${NAME:?complaint}`` and ``$$``."""

    def resolve(found: re.Match[str]) -> str:
        if found["dollar"]:
            return "$"
        name, how, other = found["bare"] or found["name"], found["how"] or "", found["other"] or ""
        value = values.get(name)
        if value is None or (how.startswith(":") and not value):
            if how.endswith("?"):
                raise ValueError(f"{name} is not set: {other}")
            return other if how else ""
        return value

    return _REFERENCE.sub(resolve, text)


def seconds(text: str) -> float:
    """``1m30s`` in seconds."""
    parts = re.findall(r"(\d+)(ms|[hms])", text)
    if "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"not a duration: {text!r}")
    return sum(int(number) * _UNITS_S[unit] for number, unit in parts)


def _interpolated(told: Any, values: Mapping[str, str]) -> Any:
    if isinstance(told, str):
        return interpolate(told, values)
    if isinstance(told, list):
        return [_interpolated(part, values) for part in told]
    if isinstance(told, dict):
        return {key: _interpolated(part, values) for key, part in told.items()}
    return told


def _merged(first: Any, second: Any) -> Any:
    """An override file's rule: mappings are joined, lists get longer, anything else is replaced; so is a command."""
    if isinstance(first, dict) and isinstance(second, dict):
        joined = dict(first)
        for key, told in second.items():
            joined[key] = told if key in ("command", "test") or key not in first else _merged(first[key], told)
        return joined
    if isinstance(first, list) and isinstance(second, list):
        return first + [part for part in second if part not in first]
    return second


def _service(name: str, told: Mapping[str, Any], folder: Path) -> Service:
    if unknown := told.keys() - KNOWN:
        raise ValueError(f"service {name}: cannot read {', '.join(sorted(unknown))}")
    build, command = told.get("build"), told.get("command", [])
    environment = told.get("environment") or {}
    if isinstance(environment, list):
        environment = dict(line.split("=", 1) for line in environment)
    networks = told.get("networks") or ([] if "network_mode" in told else ["default"])
    if isinstance(networks, list):
        networks = dict.fromkeys(networks)
    depends_on = told.get("depends_on") or []
    if isinstance(depends_on, list):
        depends_on = {other: {"condition": "service_started"} for other in depends_on}
    health = told.get("healthcheck") or {}
    resources = ((told.get("deploy") or {}).get("resources") or {}).get("reservations") or {}
    return Service(
        name=name,
        image=told.get("image", ""),
        dockerfile=folder / build["context"] / build["dockerfile"] if build else None,
        command=tuple(shlex.split(command) if isinstance(command, str) else map(str, command)),
        user=str(told.get("user", "")),
        environment={key: str(value) for key, value in environment.items()},
        ports=tuple(_port(text) for text in told.get("ports") or []),
        mounts=tuple(_mount(text, folder) for text in told.get("volumes") or []),
        tmpfs=tuple(told.get("tmpfs") or []),
        secrets=tuple(told.get("secrets") or []),
        networks={net: tuple((details or {}).get("aliases") or []) for net, details in networks.items()},
        depends_on={other: details["condition"] for other, details in depends_on.items()},
        profiles=frozenset(told.get("profiles") or []),
        restart=told.get("restart", ""),
        health=_health(health) if health.get("test") else None,
        health_disabled=bool(health.get("disable")),
        stop_grace_s=seconds(told["stop_grace_period"]) if "stop_grace_period" in told else 10.0,
        read_only=bool(told.get("read_only")),
        shm_bytes=_bytes(str(told.get("shm_size", "64mb"))),
        hardened=told.get("cap_drop") == ["ALL"] and told.get("security_opt") == ["no-new-privileges:true"],
        devices=tuple(resources.get("devices") or []),
    )


def _port(text: str) -> Port:
    address, published, target = text.split(":")
    return Port(address=address, published=int(published), target=int(target))


def _mount(text: str, folder: Path) -> Mount:
    source, target, *rest = text.split(":")
    source = str((folder / source).resolve()) if source.startswith((".", "/")) else source
    return Mount(source=source, target=target, read_only=rest == ["ro"])


def _health(told: Mapping[str, Any]) -> HealthCheck:
    kind, *test = told["test"]
    if kind != "CMD":
        raise ValueError(f"a health check is a list that begins with CMD, got {kind}")
    return HealthCheck(
        test=tuple(test),
        interval_s=seconds(told["interval"]),
        timeout_s=seconds(told["timeout"]),
        retries=int(told["retries"]),
        start_period_s=seconds(told["start_period"]),
    )


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)(kb|mb|gb)", text)
    if found is None:
        raise ValueError(f"not a size: {text!r}")
    return int(found[1]) * {"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}[found[2]]


def _check_references(found: ComposeFile) -> None:
    for service in found.services.values():
        wanted = {
            "network": set(service.networks) - found.networks.keys(),
            "service": set(service.depends_on) - found.services.keys(),
            "secret": set(service.secrets) - found.secrets.keys(),
            "volume": {mount.source for mount in service.mounts if mount.named} - found.volumes,
        }
        for kind, names in wanted.items():
            if names:
                raise ValueError(f"service {service.name} names no {kind} of the file: {', '.join(sorted(names))}")
