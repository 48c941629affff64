"""Changes to the projects file that keep its owner's comments and layout: keys are added and taken out, no more."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import tomlkit
from tomlkit.items import Array

from teacherfarm.teacher_server.projects.projects_file import (
    KEYS,
    NAME_RULE,
    PROJECT_NAME,
    BadProjectsFile,
    parse_projects,
)

NEW_FILE = """\
# Who may use this farm: one table [projects.NAME] each. After a change send the server SIGHUP (kill -HUP): it acts on
# open sessions, too. What a table may hold beside its keys, and the defaults; 0 is no limit:
#   weight = 1.0            share of each teacher against other projects that want labels at the same time
#   crops_per_second = 0
#   crops_in_flight = 0     received and not yet answered, over all sessions of the project
#   streams = 0             open sessions (0: an equal share of the server's --max-sessions)
#   teachers = ["*"]        names or patterns
"""
OWNER_ONLY = 0o600
NOT_OTHERS = 0o660


def add_key(text: str, project: str, digest: str, comment: str) -> str:
    """The file's text with one key more; with the project, too, where it is new. Raises BadProjectsFile."""
    if not PROJECT_NAME.fullmatch(project):
        raise BadProjectsFile(f"{project!r}: {NAME_RULE}")
    document = tomlkit.parse(text)
    projects = document.setdefault("projects", tomlkit.table(is_super_table=True))
    if project not in projects:
        projects[project] = tomlkit.table()
    table = projects[project]
    keys = table.get(KEYS)
    if keys is None:
        table[KEYS] = tomlkit.array()
        keys = table[KEYS]
    if not isinstance(keys, Array):
        raise BadProjectsFile(f"keys of project {project!r} must be a list of texts")
    empty = not len(keys)
    keys.add_line(digest, comment=comment, indent="    ")
    if empty:
        keys.add_line(indent="")
    return tomlkit.dumps(document)


def remove_key(text: str, digest: str) -> str:
    """The file's text without a key."""
    document = tomlkit.parse(text)
    for table in document["projects"].values():
        keys = table.get(KEYS, [])
        if digest in keys:
            del keys[keys.index(digest)]
    return tomlkit.dumps(document)


def comment_of(text: str, digest: str) -> str:
    """What stands behind a key on its line."""
    found = re.search(rf"""["']{digest}["']\s*,?[ \t]*#[ \t]*(.*)""", text)
    return found[1].strip() if found else ""


def rewrite(file: Path, change: Callable[[str], str]) -> None:
    """Apply ``change`` to the file's text: written whole or not at all, and read back before it counts.

    A new file can be read by its owner only; an existing one keeps its owner, and its mode but for "others".
    """
    if not file.parent.is_dir():
        raise BadProjectsFile(f"there is no folder {file.parent} to keep {file.name} in")
    with _locked(file.parent):
        text = file.read_text() if file.exists() else NEW_FILE
        parse_projects(text, str(file))
        changed = change(text)
        parse_projects(changed, f"{file}, once changed,")
        _write_atomically(file, changed)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two who make keys at once must not lose one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        # Also makes the new name last.
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_atomically(file: Path, text: str) -> None:
    # The link stays, and what it names is replaced.
    file = file.resolve()
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w") as stream:
            if file.exists():
                before = file.stat()
                if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode) & NOT_OTHERS)
            else:
                os.fchmod(descriptor, OWNER_ONLY)
            stream.write(text)
            stream.flush()
            os.fsync(descriptor)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
