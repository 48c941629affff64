"""The projects file: TOML, one ``[projects.NAME]`` a tenant, read whole or not at all. Errors name file and line."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacherfarm.teacher_server.projects.api_keys import PREFIX, is_digest
from teacherfarm.teacher_server.projects.project import Allowance

PROJECT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
NAME_RULE = "a project's name is 1 to 63 letters, digits, '.', '_' and '-', the first a letter or a digit"
KEYS = "keys"
NAMES = ("teachers", "datasets")
LIMITS = tuple(field.name for field in dataclasses.fields(Allowance))


class BadProjectsFile(ValueError):
    """The projects file cannot be used; the sentence says where and why."""


@dataclass(frozen=True, kw_only=True)
class ProjectEntry:
    """One project as the file has it. ``keys``: digests of the keys that open it."""

    name: str
    allowance: Allowance
    keys: tuple[str, ...] = ()


def read_projects(file: Path) -> tuple[ProjectEntry, ...]:
    """Every project in the file. Raises BadProjectsFile."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadProjectsFile(f"cannot read the projects file {file}: {error}") from error
    return parse_projects(text, str(file))


def parse_projects(text: str, source: str) -> tuple[ProjectEntry, ...]:
    """Every project in the text of a file named ``source``. Raises BadProjectsFile."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadProjectsFile(f"{source} is not TOML: {error}") from error
    except (ValueError, RecursionError) as error:
        # tomllib lets these through: a number of thousands of digits, brackets thousands deep.
        raise BadProjectsFile(f"{source} cannot be read: {error}") from error
    return _Reader(text, source).read(tables)


class _Reader:
    def __init__(self, text: str, source: str) -> None:
        self._lines = text.splitlines()
        self._source = source

    def read(self, tables: dict[str, object]) -> tuple[ProjectEntry, ...]:
        for name in tables:
            if name != "projects":
                raise self._error((), name, f"unknown key {name!r}; expected tables [projects.NAME]")
        projects = tables.get("projects", {})
        if not isinstance(projects, dict):
            raise self._error((), "projects", f"projects must be tables [projects.NAME], got {projects!r}")
        entries: list[ProjectEntry] = []
        owners: dict[str, str] = {}
        for name, table in projects.items():
            entry = self._entry(name, table)
            for digest in entry.keys:
                if digest in owners:
                    raise self._error(
                        ("projects", name),
                        KEYS,
                        f"the key {digest[:12]} is given twice, to {owners[digest]!r} and to {name!r}",
                    )
                owners[digest] = name
            entries.append(entry)
        return tuple(entries)

    def _entry(self, name: str, table: object) -> ProjectEntry:
        if not PROJECT_NAME.fullmatch(name):
            raise self._error(("projects", name), None, f"{name!r}: {NAME_RULE}")
        if not isinstance(table, dict):
            raise self._error(("projects",), name, f"project {name!r} must be a table [projects.{name}], got {table!r}")
        for key, value in table.items():
            if key not in (*LIMITS, KEYS):
                known = ", ".join((*LIMITS, KEYS))
                raise self._error(
                    ("projects", name), key, f"project {name!r} has an unknown key {key!r}; known are {known}"
                )
            self._check_type(name, key, value)
        for digest in table.get(KEYS, ()):
            if not is_digest(digest):
                # Not repeated where it could be a key itself: this sentence is logged.
                got = "what looks like the key itself" if digest.startswith(PREFIX) else repr(digest[:80])
                raise self._error(
                    ("projects", name),
                    KEYS,
                    f"keys of project {name!r} must be digests of 64 hexadecimal digits, got {got}",
                )
        limits: dict[str, Any] = {key: value for key, value in table.items() if key != KEYS}
        limits |= {key: tuple(limits[key]) for key in NAMES if key in limits}
        try:
            allowance = Allowance(**limits)
        except ValueError as error:
            raise self._error(("projects", name), str(error).partition(" ")[0], f"project {name!r}: {error}") from error
        return ProjectEntry(name=name, allowance=allowance, keys=tuple(table.get(KEYS, ())))

    def _check_type(self, name: str, key: str, value: object) -> None:
        if key in (*NAMES, KEYS):
            right = isinstance(value, list) and all(isinstance(item, str) for item in value)
            expected = "a list of texts"
        elif key == "share_labels":
            right, expected = type(value) is bool, "true or false"
        elif key in ("crops_in_flight", "streams"):
            right, expected = type(value) is int, "a whole number"
        else:
            right, expected = type(value) in (int, float), "a number"
        if not right:
            shown = "" if key == KEYS else f", got {value!r}"
            raise self._error(("projects", name), key, f"{key} of project {name!r} must be {expected}{shown}")

    def _error(self, path: tuple[str, ...], key: str | None, sentence: str) -> BadProjectsFile:
        line = self._line_of(path, key)
        place = f"{self._source}, line {line}" if line else self._source
        return BadProjectsFile(f"{place}: {sentence}")

    def _line_of(self, path: tuple[str, ...], key: str | None) -> int:
        """Where a key of a table stands; the table's head, or 0, where it is not found (an inline table's)."""
        head = 0
        current: tuple[str, ...] = ()
        for number, line in enumerate(self._lines, start=1):
            found = _table_of(line)
            if found is not None:
                current = found
                if current == path:
                    head = number
                if key is not None and current[: len(path) + 1] == (*path, key):
                    return number
            elif current == path and key is not None and re.match(rf"""\s*["']?{re.escape(key)}["']?\s*[=.]""", line):
                return number
        return head


def _table_of(line: str) -> tuple[str, ...] | None:
    """The path that a line like ``[projects.NAME]`` opens, or None."""
    if not line.lstrip().startswith("["):
        return None
    try:
        table: object = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None
    path = []
    while isinstance(table, dict) and table:
        [(name, table)] = table.items()
        path.append(name)
    return tuple(path)
