"""``teacherfarm labels evict``: takes labels out of a server's label store."""

from __future__ import annotations

import argparse

from tqdm import tqdm

from teacherfarm.label_store.label_store import SHARED, StoreScope
from teacherfarm.label_store.store_upkeep import Chosen, is_store, open_upkeep

DESCRIPTION = """\
Takes labels out of the label store of `teacherfarm serve --store`: those that all of the given conditions hold for.
They are computed again when they are asked again. A server may use the store meanwhile; what its memory holds already
it still answers with, until it is restarted.
"""

EXAMPLE = """\
examples:
  teacherfarm labels evict lmdb:labels --older-than 7d             whole files, the oldest first
  teacherfarm labels evict lmdb:labels --project vision
  teacherfarm labels evict redis://10.0.0.11:6379/0 --teacher 3f6c1a90b2d4      (labels stats shows the digests)
  teacherfarm labels evict lmdb:labels --all
"""
UNITS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
LEAST_DIGITS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The place and the conditions."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("location", metavar="STORE", help="lmdb:DIR or redis://HOST:PORT/0")
    parser.add_argument("--older-than", metavar="AGE", help="as 12h, 7d or 4w: files last written before (LMDB)")
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--project", metavar="NAME", help="of this project ('default' without a projects file)")
    whose.add_argument("--shared", action="store_true", help="that projects share")
    parser.add_argument("--teacher", metavar="DIGEST", help="of this teacher or file: 8 first digits or more")
    parser.add_argument("--all", action="store_true", help="everything")


def main(options: argparse.Namespace) -> int:
    """Take them out and say how many; 0."""
    if not is_store(options.location):
        raise ValueError(f"{options.location} is no label store: expected lmdb:DIR or redis://HOST:PORT/0")
    conditions = (options.older_than, options.project, options.shared, options.teacher)
    if options.all == any(conditions):
        raise ValueError("which labels? --older-than, --project, --shared, --teacher, or --all alone")
    older_than_s = parse_age(options.older_than) if options.older_than else 0.0
    store = open_upkeep(options.location)
    try:
        with tqdm(total=len(store), unit=" labels", unit_scale=True, desc="evicting", disable=None) as bar:
            removed = store.evict(chosen_by(options), older_than_s, bar.update)
    finally:
        store.close()
    print(f"{removed:,} labels taken out")
    return 0


def chosen_by(options: argparse.Namespace) -> Chosen | None:
    """Which scopes the conditions hold for; None: for all."""
    project = SHARED if options.shared else options.project
    teacher = options.teacher
    if teacher is not None and len(teacher) < LEAST_DIGITS:
        raise ValueError(f"--teacher takes {LEAST_DIGITS} first digits of a digest or more, got {teacher!r}")
    if project is None and teacher is None:
        return None

    def chosen(scope: StoreScope) -> bool:
        of_teacher = (
            teacher is None or scope.artifact_digest.startswith(teacher) or (scope.teacher_digest.startswith(teacher))
        )
        return of_teacher and (project is None or scope.project == project)

    return chosen


def parse_age(text: str) -> float:
    """Seconds. ValueError for what is no age."""
    number, unit = text[:-1], UNITS.get(text[-1:])
    try:
        age_s = float(number) * (unit or 0)
    except ValueError:
        age_s = 0.0
    if not 0 < age_s < float("inf"):
        raise ValueError(f"--older-than is a number of hours, days or weeks, as 12h, 7d or 4w; got {text!r}")
    return age_s
