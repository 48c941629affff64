"""The client's settings as small frozen values, and addresses parsed from text."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

OnStarved = Literal["wait", "raise", "skip"]
Scheme = Literal["zmq", "grpc", "local", "loopback"]
SCHEMES: tuple[Scheme, ...] = ("zmq", "grpc", "local")

WINDOW_CROPS = 1024


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long to wait, in seconds.

    ``connect_s``: for the first session, including a server that still loads its teachers. ``answer_s``: for the labels
    of one crop batch, before the client's ``on_starved`` policy acts. ``close_s``: for a last goodbye.
    """

    connect_s: float = 30.0
    answer_s: float = 120.0
    close_s: float = 2.0

    def __post_init__(self) -> None:
        for name in ("connect_s", "answer_s", "close_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"timeouts.{name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a teacher is served, and over which transport."""

    scheme: Scheme
    place: str
    """HOST:PORT, or the model directory of ``local``."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}"


def parse_addresses(text: str) -> tuple[Address, ...]:
    """Addresses separated by commas; each is an alternative. Raises ValueError naming what is wrong."""
    addresses = tuple(_parse_address(part.strip()) for part in text.split(",") if part.strip())
    if not addresses:
        raise ValueError("no address: give for example zmq://127.0.0.1:7001, grpc://HOST:7000 or local://models/")
    return addresses


def _parse_address(text: str) -> Address:
    scheme, found, place = text.partition("://")
    if not found or scheme not in SCHEMES:
        raise ValueError(
            f"{text!r} is not an address: expected one of {', '.join(name + '://' for name in SCHEMES)}, "
            "for example zmq://127.0.0.1:7001"
        )
    if scheme == "local":
        if not place:
            raise ValueError("local:// needs a model directory, for example local://models/")
        return Address(scheme="local", place=place)
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error
    if not parts.hostname or not port:
        raise ValueError(f"{text!r} needs a host and a port, for example {scheme}://127.0.0.1:7001")
    if unknown := [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]:
        raise ValueError(f"{text!r} has unknown options {', '.join(unknown)}; {scheme}:// takes none")
    if parts.path not in ("", "/"):
        raise ValueError(f"{text!r} has a path ({parts.path}); an address is {scheme}://HOST:PORT")
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Address(scheme=scheme, place=f"{name}:{port}")


def preference(addresses: tuple[Address, ...], teacher: str) -> tuple[Address, ...]:
    """Alternatives in the order to try them: rendezvous hashing brings a teacher's students to one gateway."""

    def rank(address: Address) -> bytes:
        return hashlib.sha256(f"{teacher}\0{address}".encode()).digest()

    return tuple(sorted(addresses, key=rank))


def check_digest(digest: str) -> str:
    """A digest to insist on, in lower case; empty means none. Raises ValueError where it can match no digest."""
    lower = digest.lower()
    if lower and not (8 <= len(lower) <= 64 and set(lower) <= set("0123456789abcdef")):
        raise ValueError(
            f"digest must be the first 8 to 64 hexadecimal digits of a teacher's digest, got {digest!r}; "
            "teacherfarm teachers ADDRESS shows them"
        )
    return lower
