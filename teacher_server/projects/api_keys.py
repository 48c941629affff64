"""API keys: made here, shown once, kept as a digest. A key is 256 random bits, so its digest needs no salt."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from typing import TypeVar

PREFIX = "tf_"
"""Lets people and scanners of leaked secrets recognise a key."""
KEY_BYTES = 32
DIGEST_DIGITS = 64
SHOWN_DIGITS = 12
"""Of a digest, where a key is named to people: tells keys apart and lets nobody in."""

_DIGEST = re.compile(rf"[0-9a-f]{{{DIGEST_DIGITS}}}")

T = TypeVar("T")


def make_key() -> str:
    """A new key as its user sees it."""
    return PREFIX + secrets.token_hex(KEY_BYTES)


def digest_of(key: str) -> str:
    """What is kept of a key: SHA-256 of its text, as hexadecimal digits."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def is_digest(text: str) -> bool:
    """Whether this could be a key's digest."""
    return _DIGEST.fullmatch(text) is not None


def find_holder(key: str, holders: Mapping[str, T]) -> tuple[str, T] | None:
    """The digest and the holder of a key. Takes the same time whichever digest matches, if any."""
    digest = digest_of(key).encode()
    found = None
    for known, holder in holders.items():
        if hmac.compare_digest(digest, known.encode()):
            found = (known, holder)
    return found
