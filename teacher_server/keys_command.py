"""``teacherfarm keys``: makes, lists and revokes the API keys of a projects file. A key is shown once, when made.

Editing the file needs a library that students, who make CURVE keys here, do not have: it is imported where it is used.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import date
from pathlib import Path

from teacherfarm.teacher_server import curve_command
from teacherfarm.teacher_server.projects.api_keys import PREFIX, SHOWN_DIGITS, digest_of, make_key
from teacherfarm.teacher_server.projects.projects_file import BadProjectsFile, ProjectEntry, read_projects

DESCRIPTION = """\
Who may use a farm: API keys, each of one project, in the projects file that `teacherfarm serve --projects` reads.
A key is shown once, when it is made, and kept as a digest. The server takes a change up on SIGHUP.
`curve` makes another kind of key: a pair that encrypts ZeroMQ and lets a student's machine in.
"""

EXAMPLE = """\
example:
  teacherfarm keys create vision --projects projects.toml --note "alice's cluster" > vision.key
  teacherfarm serve models/ --projects projects.toml
  TEACHERFARM_API_KEY=$(cat vision.key) teacherfarm teachers zmq://127.0.0.1:7001

  teacherfarm keys list --projects projects.toml
  teacherfarm keys revoke 3f6c1a90b2d4 --projects projects.toml
  kill -HUP PID        # of the server: the revoked key's open sessions end, all others go on

To replace a key without a pause: create another for the same project, hand it out, then revoke the first.
"""

CREATE = """\
Makes a key of 256 random bits for a project and prints it, alone on standard output: it cannot be shown again.
A project that the file does not have yet is added, without limits; so is the file. Comments in the file stay.
"""
LEAST_ID_DIGITS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sub-commands of ``teacherfarm keys``; each says by ``run`` what it does."""
    _describe(parser, DESCRIPTION, EXAMPLE)
    commands = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)

    create = commands.add_parser("create", help="make a key for a project and show it once")
    _describe(create, CREATE, "example: teacherfarm keys create vision --projects projects.toml")
    create.add_argument("project", metavar="PROJECT", help="whose key")
    create.add_argument("--note", default="", metavar="TEXT", help="kept as a comment behind the key, with the date")
    create.set_defaults(run=_create)

    listing = commands.add_parser("list", help="projects, what they may use, and their keys' ids and notes")
    _describe(listing, "Lists projects, their allowances and their keys by id.", "example: teacherfarm keys list")
    listing.set_defaults(run=_list)

    revoke = commands.add_parser("revoke", help="take a key out of the file")
    about = "Takes a key out. Sessions that it opened end once the server got SIGHUP."
    _describe(revoke, about, "example: teacherfarm keys revoke 3f6c1a90b2d4 --projects projects.toml")
    revoke.add_argument("id", metavar="ID", help="of the key, as `teacherfarm keys list` shows it (or the key itself)")
    revoke.set_defaults(run=_revoke)

    curve = commands.add_parser("curve", help="make a key pair for ZeroMQ by CURVE: a farm's or a student's")
    curve_command.add_arguments(curve)
    curve.set_defaults(run=curve_command.make)

    for command in (create, listing, revoke):
        command.add_argument(
            "--projects", type=Path, metavar="FILE", help="the projects file (default: $TEACHERFARM_PROJECTS)"
        )


def main(options: argparse.Namespace) -> int:
    """Run the chosen action. Raises ValueError for a mistake."""
    return int(options.run(options))


def _describe(parser: argparse.ArgumentParser, description: str, example: str) -> None:
    parser.description, parser.epilog = description, example
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def _file(options: argparse.Namespace) -> Path:
    given = options.projects or os.environ.get("TEACHERFARM_PROJECTS", "")
    if not given:
        raise ValueError("which projects file? --projects FILE, or TEACHERFARM_PROJECTS in the environment")
    return Path(given)


def _create(options: argparse.Namespace) -> int:
    from teacherfarm.teacher_server.projects.projects_edit import add_key, rewrite

    file, key = _file(options), make_key()
    known = file.exists() and any(entry.name == options.project for entry in read_projects(file))
    # One line, whatever was given.
    comment = " ".join(f"{date.today()} {options.note}".split())
    digest = digest_of(key)
    rewrite(file, lambda text: add_key(text, options.project, digest, comment))
    new = "" if known else ", which is new and has no limits,"
    print(
        f"Key {digest[:SHOWN_DIGITS]} of project {options.project!r}{new} is in {file}. It is shown this once:",
        file=sys.stderr,
    )
    print(key)
    print(
        "Students: TEACHERFARM_API_KEY=... in the environment, or api_key=. A server that runs already: kill -HUP PID.",
        file=sys.stderr,
    )
    return 0


def _list(options: argparse.Namespace) -> int:
    from teacherfarm.teacher_server.projects.projects_edit import comment_of

    file = _file(options)
    entries = read_projects(file)
    text = file.read_text()
    rows: list[tuple[str, ...]] = [("PROJECT", "WEIGHT", "CROPS/S", "IN FLIGHT", "STREAMS", "TEACHERS", "KEY", "NOTE")]
    for entry in entries:
        allowed = entry.allowance
        limits = (allowed.crops_per_second, allowed.crops_in_flight, allowed.streams)
        head = (
            entry.name,
            f"{allowed.weight:g}",
            *(f"{limit:g}" if limit else "-" for limit in limits),
            ",".join(allowed.teachers) or "none",
        )
        keys = [(digest[:SHOWN_DIGITS], comment_of(text, digest)) for digest in entry.keys] or [("none", "")]
        rows.append((*head, *keys[0]))
        rows += [(*("",) * len(head), *key) for key in keys[1:]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _revoke(options: argparse.Namespace) -> int:
    from teacherfarm.teacher_server.projects.projects_edit import remove_key, rewrite

    file = _file(options)
    entry, digest = _find(read_projects(file), options.id, file)
    rewrite(file, lambda text: remove_key(text, digest))
    left = len(entry.keys) - 1
    print(
        f"Key {digest[:SHOWN_DIGITS]} is out; project {entry.name!r} has {left or 'no'} key{'' if left == 1 else 's'} "
        "left. A server that runs already: kill -HUP PID."
    )
    return 0


def _find(entries: tuple[ProjectEntry, ...], key_id: str, file: Path) -> tuple[ProjectEntry, str]:
    if key_id.startswith(PREFIX):
        key_id = digest_of(key_id)
    if len(key_id) < LEAST_ID_DIGITS:
        raise ValueError(f"a key's id has {LEAST_ID_DIGITS} digits or more, got {key_id!r}: teacherfarm keys list")
    found = [(entry, digest) for entry in entries for digest in entry.keys if digest.startswith(key_id.lower())]
    if len(found) != 1:
        how_many = "several keys" if found else "no key"
        raise BadProjectsFile(f"{file} has {how_many} with an id {key_id!r}: teacherfarm keys list shows them")
    return found[0]
