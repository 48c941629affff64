"""CURVE keys of ZeroMQ as text: the files that ``teacherfarm keys curve`` writes and both ends read. Knows no socket.

A key is 32 bytes, written as 40 characters of Z85 (ZeroMQ RFC 32). A file is what ZeroMQ's own tools write and read: a
line ``public-key = "..."``, and in a secret file a line ``secret-key = "..."`` too.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

KEY_CHARACTERS = 40
Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
PLAIN = frozenset(Z85) - frozenset("+^!*?&<>()[]{}%$#")
"""Characters that mean nothing to shells, in URLs and in TOML: keys made here have no others, so they can be pasted."""
PUBLIC_SUFFIX, SECRET_SUFFIX = ".public", ".secret"
MAKE_SOME = "teacherfarm keys curve --out DIR makes a pair"

_LINE = re.compile(r'^\s*(public|secret)-key\s*=\s*"([^"]*)"\s*$')


@dataclass(frozen=True, kw_only=True)
class CurvePair:
    """A public key and its secret one, which shows nowhere: not in ``repr``, so in no log and no traceback."""

    public: str
    secret: str = field(repr=False)


def check_key(text: str, what: str) -> str:
    """``text`` when it is a key. Raises ValueError that says what is wrong with ``what``, without the text: it may be
    a secret at the wrong place.
    """
    if len(text) != KEY_CHARACTERS:
        raise ValueError(
            f"{what} must be a CURVE key, {KEY_CHARACTERS} characters of Z85, got {len(text)} characters; it stands "
            f"after public-key in a {PUBLIC_SUFFIX} file ({MAKE_SOME})"
        )
    if strange := sorted(set(text) - set(Z85)):
        raise ValueError(f"{what} must be a CURVE key, {KEY_CHARACTERS} characters of Z85, which has no {strange[0]!r}")
    for start in range(0, KEY_CHARACTERS, 5):
        number = 0
        for character in text[start : start + 5]:
            number = number * 85 + Z85.index(character)
        if number >> 32:
            raise ValueError(f"{what} must be a CURVE key: its characters are Z85, but they stand for no bytes")
    return text


def read_pair(file: str | Path, what: str) -> CurvePair:
    """The pair in a secret file. Raises ValueError naming ``what`` (an option) and the file."""
    if _is_key(str(file)) and not Path(file).exists():
        raise ValueError(f"{what} must be the path of a {SECRET_SUFFIX} file, not a key: options end up in logs")
    keys = _read_lines(Path(file), what)
    for kind in ("public", "secret"):
        if kind not in keys:
            hint = f": that is a public file; the secret one ends in {SECRET_SUFFIX}" if kind == "secret" else ""
            raise ValueError(f"{what}: {file} has no line {kind}-key{hint}. {MAKE_SOME}")
    return CurvePair(public=keys["public"], secret=keys["secret"])


def is_readable_by_others(file: str | Path) -> bool:
    """Whether the file's permissions let other users read it."""
    return bool(Path(file).stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


def read_allow_list(place: str | Path, what: str) -> Mapping[str, str]:
    """Public keys and whose they are: from every ``*.public`` file of a folder, or from one file, a key a line
    (``KEY NAME``; "#" begins a comment). Raises ValueError naming the file and line.
    """
    place = Path(place)
    if not place.is_dir():
        return _read_list(place, what)
    # Sorted, so that the same folder is always told in the same way.
    files = sorted(file for file in place.iterdir() if file.suffix == PUBLIC_SUFFIX)
    allowed = {}
    for file in files:
        keys = _read_lines(file, what)
        if "public" not in keys:
            raise ValueError(f"{what}: {file} has no line public-key. {MAKE_SOME}")
        allowed[keys["public"]] = file.stem
    return allowed


def write_pair(folder: str | Path, name: str, pair: CurvePair) -> tuple[Path, Path]:
    """Write ``NAME.public`` and ``NAME.secret`` (for its owner's eyes only). Raises ValueError where one is there."""
    folder = Path(folder)
    public_file, secret_file = folder / f"{name}{PUBLIC_SUFFIX}", folder / f"{name}{SECRET_SUFFIX}"
    for file in (public_file, secret_file):
        if file.exists():
            raise ValueError(f"{file} is there already, and a lost key cannot be made again: take another --name")
    folder.mkdir(parents=True, exist_ok=True)
    # Never readable by others, not even for the moment between writing and chmod.
    descriptor = os.open(secret_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as secret:
        secret.write(
            f"# CURVE key pair of {name!r}. Secret: it stays on this machine; whoever reads it can pass for {name!r}.\n"
            f'curve\n    public-key = "{pair.public}"\n    secret-key = "{pair.secret}"\n'
        )
    public_file.write_text(
        f'# CURVE public key of {name!r}. Give it away freely.\ncurve\n    public-key = "{pair.public}"\n'
    )
    return public_file, secret_file


def _is_key(text: str) -> bool:
    try:
        return bool(check_key(text, ""))
    except ValueError:
        return False


def _read_lines(file: Path, what: str) -> dict[str, str]:
    keys = {}
    for number, line in enumerate(_text(file, what).splitlines(), 1):
        if found := _LINE.match(line):
            keys[found[1]] = check_key(found[2], f"{what}: {file}, line {number}: {found[1]}-key")
    return keys


def _read_list(file: Path, what: str) -> dict[str, str]:
    allowed = {}
    for number, line in enumerate(_text(file, what).splitlines(), 1):
        where = f"{what}: {file}, line {number}"
        if found := _LINE.match(line):
            if found[1] == "secret":
                raise ValueError(f"{where} is a secret key; an allow-list holds public keys")
            allowed[check_key(found[2], where)] = f"line {number}"
        # No key begins with "#": that would stand for more than 32 bits.
        elif (words := line.split()) and words[0] not in ("curve", "metadata") and not words[0].startswith("#"):
            allowed[check_key(words[0], where)] = " ".join(words[1:]) or f"line {number}"
    return allowed


def _text(file: Path, what: str) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"{what}: cannot read {file}: {why}. {MAKE_SOME}") from error
