"""The server's settings: flag beats environment beats TOML file beats default; unknown keys are refused."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teacherfarm.protos.local_link import is_loopback
from teacherfarm.teacher_server.backends.triton_addresses import parse_addresses

ENVIRONMENT_PREFIX = "TEACHERFARM_"
LIST = "tuple[str, ...]"
TOML_TYPES = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), LIST: (list,)}
SMALLEST_STORE_GB = 0.02
MOST_STORE_DAYS = 36_500
MOST_STORE_TIMEOUT_S = 60


def _setting(default: Any, about: str) -> Any:
    return field(default=default, metadata={"help": about})


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Everything ``teacherfarm serve`` can be told. Field names are the TOML keys, the flags and the environment's."""

    models: str = _setting("", "directory of exported teachers")
    grpc: str = _setting("127.0.0.1:7000", "gRPC address HOST:PORT, or 'off'; port 0 takes a free one")
    zmq: str = _setting("127.0.0.1:7001", "ZeroMQ address HOST:PORT, or 'off'")
    http: str = _setting(
        "127.0.0.1:7002",
        "address of /metrics, /healthz and /readyz, or 'off'; they show names and numbers, no crops, labels or keys",
    )
    tls_cert: str = _setting("", "PEM file with this server's certificate: gRPC speaks TLS (grpcs://) and nothing else")
    tls_key: str = _setting("", "PEM file with the key of that certificate")
    tls_client_ca: str = _setting("", "PEM file of authorities: a student needs a certificate of theirs (mutual TLS)")
    curve_key: str = _setting(
        "", "secret file of this server (teacherfarm keys curve): ZeroMQ speaks CURVE and nothing else"
    )
    curve_clients: str = _setting(
        "", "folder of .public files, or file with a key a line: who may in; 'any': whoever knows the server's key"
    )
    allow_plaintext: bool = _setting(
        False,
        "listen beyond this machine without TLS or CURVE, or without asking who it is: everybody on the way sees and "
        "alters crops, labels and API keys, and whoever reaches the port uses the teachers or the server's memory",
    )
    triton: str = _setting(
        "",
        "have the teachers run by NVIDIA Triton: HOST:PORT,... of its gRPC interface, or dns://NAME:PORT for every "
        "address that the name has at the moment",
    )
    triton_deadline_s: float = _setting(20.0, "how long Triton may take for a teacher batch before it counts as gone")
    providers: str = _setting("", "ONNX Runtime providers, comma-separated (default: TensorRT, CUDA, CPU as available)")
    threads: int = _setting(0, "calls side by side per teacher (default: one per core on a CPU, 2 on a GPU)")
    max_batch: int = _setting(
        0, "largest teacher batch in crops (default: what a message carries on a CPU, 64 on a GPU)"
    )
    preferred_batch: int = _setting(1, "start a teacher batch as soon as so many crops wait")
    max_wait_ms: float = _setting(0.0, "... or when the first of them has waited so long")
    memory_mb: int = _setting(1024, "memory for crops in flight, shared by all sessions")
    window: int = _setting(1024, "most crops in flight of one session")
    max_sessions: int = _setting(256, "most open sessions on each wire")
    max_strangers: int = _setting(128, "most connections on each wire that have not said Hello")
    idle_session_s: float = _setting(
        60.0, "close a session whose student has been silent for so long (it pings every 2 s)"
    )
    payload_kib: int = _setting(
        2400, "most KiB of pixels or labels in one message (more only for a single larger crop)"
    )
    drain_s: float = _setting(20.0, "on SIGTERM, how long to go on answering what was accepted")
    projects: str = _setting(
        "", "TOML file of projects and their API keys; read again on SIGHUP (default: nobody needs a key)"
    )
    store: str = _setting(
        "off",
        "keep labels, so that a crop that comes again is not computed again: 'memory' (while the server runs), "
        "lmdb:DIR (memory over this machine's disk) or redis://HOST:PORT/0 (memory over a Redis that several servers "
        "share; rediss:// by TLS, a password in TEACHERFARM_STORE rather than here); 'off' where no crop comes twice",
    )
    store_memory_mb: int = _setting(
        256, "memory for kept labels: 120,000 dense ones of 1000 classes, or 800,000 top-10"
    )
    store_max_gb: float = _setting(20.0, "disk for kept labels (lmdb): the oldest are dropped; Redis has its maxmemory")
    store_max_days: float = _setting(30.0, "how long labels are kept (lmdb, redis)")
    store_timeout_s: float = _setting(
        0.25,
        "how long finding kept labels may take (redis); after it the teacher computes, until Redis answers again",
    )
    dataset: tuple[str, ...] = _setting(
        (),
        "NAME=PATH of a data set (class folders, tar or Parquet files) that students may name crops of instead of "
        "sending them; may be given several times (environment: separated by spaces, quoted as in a shell)",
    )
    dataset_cache: str = _setting(
        "",
        "folder that keeps the indexes of data sets between starts (default: teacherfarm in the user's cache folder)",
    )
    cut_threads: int = _setting(0, "images decoded side by side for such crops (default: one per core)")
    log_level: str = _setting("INFO", "DEBUG, INFO, WARNING or ERROR")
    log_json: bool = _setting(False, "log one JSON object a line")

    def __post_init__(self) -> None:
        for name in ("threads", "max_batch", "max_wait_ms", "drain_s", "cut_threads"):
            # Also false for NaN.
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.idle_session_s > 0:
            raise ValueError(f"idle_session_s must be positive, got {self.idle_session_s}")
        for name in ("preferred_batch", "memory_mb", "window", "max_sessions", "max_strangers", "payload_kib"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.triton_deadline_s > 0:
            raise ValueError(f"triton_deadline_s must be positive, got {self.triton_deadline_s}")
        if self.triton:
            parse_addresses(self.triton)
        if self.triton and (self.providers or self.threads):
            raise ValueError("providers and threads are for teachers that run here; with triton they run there")
        if self.log_level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ValueError(f"log_level is DEBUG, INFO, WARNING or ERROR, got {self.log_level!r}")
        if self.grpc == "off" and self.zmq == "off":
            raise ValueError("both wires are off: give --grpc or --zmq an address")
        for name in ("grpc", "zmq", "http"):
            address = getattr(self, name)
            host, _, port = address.rpartition(":")
            if address != "off" and not (host and port.isdigit() and int(port) < 65536):
                raise ValueError(f"{name} must be HOST:PORT or 'off', got {address!r}")
        self._check_store()
        self.datasets()
        self._check_security()

    def datasets(self) -> dict[str, str]:
        """The paths of ``dataset`` by name. Raises ValueError."""
        found: dict[str, str] = {}
        for entry in self.dataset:
            name, _, path = entry.partition("=")
            if not (name and path):
                raise ValueError(f"dataset is NAME=PATH, for example imagenet=/data/imagenet/train, got {entry!r}")
            if name in found:
                raise ValueError(f"dataset {name!r} is given twice: {found[name]} and {path}")
            found[name] = path
        return found

    def _check_store(self) -> None:
        kind, _, place = self.store.partition(":")
        known = self.store in ("off", "memory") or (kind in ("lmdb", "redis", "rediss") and place.strip("/"))
        if not known:
            # What stands behind the colon may be a password.
            raise ValueError(
                f"store is 'off', 'memory', 'lmdb:DIR' or 'redis://HOST:PORT/0' (by TLS rediss://), got {kind!r}"
                f"{' and no place' if kind in ('lmdb', 'redis', 'rediss') else ''}"
            )
        if self.store_memory_mb < 1:
            raise ValueError(f"store_memory_mb must be at least 1, got {self.store_memory_mb}")
        if not self.store_max_gb >= SMALLEST_STORE_GB:
            raise ValueError(f"store_max_gb must be at least {SMALLEST_STORE_GB}, got {self.store_max_gb}")
        if not 0 < self.store_max_days <= MOST_STORE_DAYS:
            raise ValueError(
                f"store_max_days must be more than 0 and at most {MOST_STORE_DAYS}, got {self.store_max_days}"
            )
        if not 0 < self.store_timeout_s <= MOST_STORE_TIMEOUT_S:
            raise ValueError(
                f"store_timeout_s must be more than 0 and at most {MOST_STORE_TIMEOUT_S}, got {self.store_timeout_s}"
            )

    def _check_security(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key come together: the certificate and its key")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError("tls_client_ca asks students for certificates, which needs tls_cert and tls_key, too")
        if bool(self.curve_key) != bool(self.curve_clients):
            raise ValueError(
                "curve_key and curve_clients come together: the server's secret file, and who may in (a folder of "
                ".public files, a file with a key a line, or 'any')"
            )
        for name, wire in (("tls_cert", "grpc"), ("curve_key", "zmq")):
            if getattr(self, name) and getattr(self, wire) == "off":
                raise ValueError(f"{name} has no effect with {wire} = 'off'")
        # The status page is no wire: it takes no crops and answers no labels.
        asks_who = "--tls-client-ca", bool(self.tls_client_ca)
        self._check_listening("grpc", "TLS (--tls-cert, --tls-key)", bool(self.tls_cert), *asks_who)
        asks_who = "an allow-list in --curve-clients", self.curve_clients != "any"
        self._check_listening("zmq", "CURVE (--curve-key, --curve-clients)", bool(self.curve_key), *asks_who)

    def _check_listening(self, name: str, mechanism: str, encrypted: bool, list_of_peers: str, asks_who: bool) -> None:
        address = getattr(self, name)
        if address == "off" or is_loopback(address.rpartition(":")[0]) or self.allow_plaintext:
            return
        beyond = f"{name} = {address!r} would listen beyond this machine"
        if not encrypted:
            raise ValueError(
                f"{beyond} in the clear. Give it {mechanism}, use 127.0.0.1, or say --allow-plaintext if everybody who "
                "can reach that port may use the teachers, and everybody on the way see crops, labels and API keys"
            )
        if not asks_who and not self.projects:
            raise ValueError(
                f"{beyond}, encrypted but for anybody. Say who may in by {list_of_peers} or by --projects (API keys), "
                "or say --allow-plaintext if everybody who can reach that port may use the teachers"
            )


EXAMPLES = """\
examples:
  teacherfarm serve models/                                          gRPC on port 7000, ZeroMQ on 7001, this machine
  teacherfarm serve models/ --grpc off --zmq 127.0.0.1:7101 --http off
  teacherfarm serve models/ --store lmdb:kept/ --store-max-gb 50     keep labels: crops that come again are not computed
  teacherfarm serve models/ --dataset imagenet=/data/imagenet/train  students may name crops instead of sending them
  teacherfarm serve --config farm.toml

Every setting can come from the environment, too (TEACHERFARM_ZMQ=...); what is given here counts most.
Ctrl-C or SIGTERM answers what was accepted, then ends.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``teacherfarm serve``."""
    parser.usage = "%(prog)s [MODELS] [options]"
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("models", nargs="?", help="directory of exported teachers (teacherfarm export NAME --out DIR)")
    parser.add_argument("--config", type=Path, help="TOML file with any of these settings (underscores for dashes)")
    for setting in dataclasses.fields(ServerSettings):
        if setting.name == "models":
            continue
        flag, about = f"--{setting.name.replace('_', '-')}", setting.metadata["help"]
        shown = f"{about} [{setting.default}]" if setting.default not in ("", 0, False, ()) else about
        if setting.type == "bool":
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=about)
        elif setting.type == LIST:
            parser.add_argument(flag, action="append", default=None, help=about, metavar="NAME=PATH")
        else:
            kind = {"int": int, "float": float, "str": str}[str(setting.type)]
            parser.add_argument(flag, type=kind, default=None, help=shown, metavar=setting.name.upper())


def load_settings(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> ServerSettings:
    """Settings from parsed flags, the environment (TEACHERFARM_GRPC=...) and the TOML file. Raises ValueError."""
    known = {setting.name: str(setting.type) for setting in dataclasses.fields(ServerSettings)}
    values: dict[str, Any] = {}
    if options.config is not None:
        values |= _from_toml(options.config, known)
    for name, kind in known.items():
        text = environment.get(ENVIRONMENT_PREFIX + name.upper())
        if text is not None:
            values[name] = _parse(text, kind, ENVIRONMENT_PREFIX + name.upper())
    values |= {name: getattr(options, name) for name in known if getattr(options, name, None) is not None}
    values |= {name: tuple(values[name]) for name, kind in known.items() if kind == LIST and name in values}
    settings = ServerSettings(**values)
    if not settings.models:
        raise ValueError(
            "which teachers? teacherfarm serve models/ (make some with teacherfarm export NAME --out models/)"
        )
    return settings


def _from_toml(file: Path, known: Mapping[str, str]) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot read settings from {file}: {error}") from error
    if unknown := sorted(values.keys() - known.keys()):
        raise ValueError(f"{file} has unknown settings {', '.join(unknown)}; known are {', '.join(known)}")
    for name, value in values.items():
        kinds: Sequence[type] = TOML_TYPES[known[name]]
        if type(value) not in kinds or (known[name] == LIST and not all(isinstance(entry, str) for entry in value)):
            raise ValueError(f"{file}: {name} must be {known[name]}, got {value!r}")
    return values


def _parse(text: str, kind: str, where: str) -> Any:
    try:
        if kind == "bool":
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        if kind == LIST:
            return shlex.split(text)
        return {"int": int, "float": float, "str": str}[kind](text)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{where} must be {kind}, got {text!r}") from error
