"""The client's settings as small frozen values, and addresses parsed from text."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit

from teacherfarm.protos.curve_keys import KEY_CHARACTERS, Z85, check_key

OnStarved = Literal["wait", "raise", "skip"]
Scheme = Literal["zmq", "grpc", "grpcs", "triton", "local", "loopback"]
SCHEMES: tuple[Scheme, ...] = ("zmq", "grpc", "grpcs", "triton", "local")
OPTIONS: dict[str, tuple[str, ...]] = {"grpcs": ("ca", "cert", "key"), "zmq": ("server_key", "client_key")}
"""What may stand after the ``?`` of an address."""

WINDOW_CROPS = 1024
API_KEY_VARIABLE = "TEACHERFARM_API_KEY"


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
class TlsFiles:
    """PEM files of ``grpcs://``. ``ca``: whom to believe who the server is (empty: the usual public authorities).
    ``cert`` and ``key``: who this student is, for servers that ask. Read again for every session.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class CurveKeys:
    """Keys of ``zmq://``. ``client_key``: this student's secret file (empty: a key for one session alone, for servers
    that let in whoever knows their key).
    """

    server_key: str
    client_key: str = field(default="", repr=False)
    """Not shown: it may be a secret key by mistake."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a teacher is served, and over which transport. ``curve``: None is ZeroMQ in the clear."""

    scheme: Scheme
    place: str
    """HOST:PORT, or the model directory of ``local``."""
    tls: TlsFiles | None = None
    curve: CurveKeys | None = None

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
    # Options are files and keys: messages show what stands before them.
    shown, _, query = text.partition("?")
    parts = urlsplit(shown)
    if "@" in parts.netloc:
        # Not shown: what stands there is likely a key.
        raise ValueError(
            f"an address is {scheme}://HOST:PORT, with nothing before an @: an API key goes into {API_KEY_VARIABLE} or "
            "api_key="
        )
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{shown!r}: {error}") from error
    if not parts.hostname or not port:
        raise ValueError(f"{shown!r} needs a host and a port, for example {scheme}://127.0.0.1:7001")
    if parts.path not in ("", "/"):
        raise ValueError(f"{shown!r} has a path ({parts.path}); an address is {scheme}://HOST:PORT")
    options = _parse_options(query, scheme, shown)
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Address(
        scheme=scheme,
        place=f"{name}:{port}",
        tls=_tls_files(options, shown) if scheme == "grpcs" else None,
        curve=_curve_keys(options, shown) if scheme == "zmq" and options else None,
    )


def _parse_options(query: str, scheme: Scheme, shown: str) -> dict[str, str]:
    options: dict[str, str] = {}
    while query:
        name, _, rest = query.partition("=")
        start, after = rest[:KEY_CHARACTERS], rest[KEY_CHARACTERS : KEY_CHARACTERS + 1]
        is_key = name == "server_key" or (name == "client_key" and set(start) <= set(Z85))
        if is_key and after in ("", "&"):
            # As it is: a key may hold characters that mean something in URLs. Percent-encoded, it would be longer.
            value, query = start, rest[KEY_CHARACTERS + 1 :]
        else:
            value, _, query = rest.partition("&")
            value = unquote(value)
        if name not in OPTIONS.get(scheme, ()):
            takes = ", ".join(OPTIONS.get(scheme, ())) or "none"
            others = "".join(
                f"; {other}:// takes {', '.join(known)}" for other, known in OPTIONS.items() if name in known
            )
            raise ValueError(f"{shown!r} has an unknown option {name}; {scheme}:// takes {takes}{others}")
        if name in options or not value:
            raise ValueError(f"{shown!r} has the option {name} {'twice' if name in options else 'without a value'}")
        options[name] = value
    return options


def _tls_files(options: dict[str, str], shown: str) -> TlsFiles:
    if ("cert" in options) != ("key" in options):
        given, absent = ("cert", "key") if "cert" in options else ("key", "cert")
        raise ValueError(f"{shown!r} has {given}= but not {absent}=: a certificate and its key come together")
    return TlsFiles(**options)


def _curve_keys(options: dict[str, str], shown: str) -> CurveKeys:
    if "server_key" not in options:
        raise ValueError(f"{shown!r} has client_key= but not server_key=, the farm's public key")
    check_key(options["server_key"], f"server_key of {shown!r}")
    return CurveKeys(**options)


def preference(addresses: tuple[Address, ...], teacher: str) -> tuple[Address, ...]:
    """Alternatives in the order to try them: rendezvous hashing brings a teacher's students to one gateway."""

    def rank(address: Address) -> bytes:
        return hashlib.sha256(f"{teacher}\0{address}".encode()).digest()

    return tuple(sorted(addresses, key=rank))


def choose_api_key(given: str | None) -> str:
    """The API key that was given, or else the environment's; empty for farms that ask for none."""
    return os.environ.get(API_KEY_VARIABLE, "").strip() if given is None else given


def check_digest(digest: str) -> str:
    """A digest to insist on, in lower case; empty means none. Raises ValueError where it can match no digest."""
    lower = digest.lower()
    if lower and not (8 <= len(lower) <= 64 and set(lower) <= set("0123456789abcdef")):
        raise ValueError(
            f"digest must be the first 8 to 64 hexadecimal digits of a teacher's digest, got {digest!r}; "
            "teacherfarm teachers ADDRESS shows them"
        )
    return lower
