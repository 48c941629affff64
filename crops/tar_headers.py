"""What lies where in an uncompressed tar file: a tenth of the time that tarfile takes for its objects.

Reads ustar, GNU's long names and pax' paths and sizes. Anything else is left to tarfile.
"""

from __future__ import annotations

import mmap
import os
import tarfile
from collections.abc import Iterator

BLOCK = 512
_REGULAR = (b"0", b"\0", b"7")
_NO_FILE = (b"1", b"2", b"3", b"4", b"5", b"6")


class _Unusual(Exception):
    """A header that this module does not read."""


def tar_members(file: str) -> list[tuple[str, int, int]]:
    """Name, offset and size of every regular file in it. Raises tarfile.TarError or OSError where it is none."""
    try:
        return list(_walk(file))
    except _Unusual:
        with tarfile.open(file, "r:") as archive:
            return [(entry.name, entry.offset_data, entry.size) for entry in archive if entry.isreg()]


def _walk(file: str) -> Iterator[tuple[str, int, int]]:
    with open(file, "rb") as opened:
        end = os.fstat(opened.fileno()).st_size
        if end < BLOCK:
            raise _Unusual
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            place, name, size = 0, "", -1
            while place + BLOCK <= end:
                header = data[place : place + BLOCK]
                if not header[0] and header.count(0) == BLOCK:
                    return
                if header[257:262] != b"ustar":
                    raise _Unusual
                kind = header[156:157]
                length = _number(header[124:136])
                place += BLOCK
                if kind in _REGULAR or kind in _NO_FILE:
                    length = size if size >= 0 else length
                    if kind in _NO_FILE:
                        length = 0
                    elif place + length > end:
                        raise tarfile.ReadError(f"it ends in the middle of {name or _name(header)!r}")
                    else:
                        yield name or _name(header), place, length
                    name, size = "", -1
                elif kind == b"L":
                    name = _text(data[place : place + length].rstrip(b"\0"))
                elif kind == b"x":
                    name, size = _pax(data[place : place + length], name, size)
                else:
                    raise _Unusual
                place += -(-length // BLOCK) * BLOCK
            raise _Unusual  # no end of the archive: tarfile knows what to say


def _number(field: bytes) -> int:
    digits = field.strip(b"\0 ") or b"0"
    if digits.strip(b"01234567"):
        raise _Unusual  # a sign, or the binary form of huge files
    return int(digits, 8)


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _pax(records: bytes, name: str, size: int) -> tuple[str, int]:
    """The path and size among pax records ("LENGTH KEY=VALUE\\n"), where they say any."""
    while records:
        length = _decimal(records.partition(b" ")[0])
        key, equals, value = records[:length].partition(b" ")[2].partition(b"=")
        if not equals or not 0 < length <= len(records) or not value.endswith(b"\n") or key.startswith(b"GNU.sparse"):
            raise _Unusual
        if key == b"path":
            name = _text(value[:-1])
        elif key == b"size":
            size = _decimal(value[:-1])
        elif key == b"hdrcharset":
            raise _Unusual
        records = records[length:]
    return name, size


def _decimal(digits: bytes) -> int:
    if not digits.isdigit():
        raise _Unusual
    return int(digits)
