"""``teacherfarm labels verify``: checks every kept label against its checksum."""

from __future__ import annotations

import argparse

from tqdm import tqdm

from teacherfarm.label_store.store_upkeep import is_store, open_upkeep
from teacherfarm.student.recipes.labels_stats import LOCATION

DESCRIPTION = """\
Checks every label of a label store, or of recorded labels, against its checksum. What is damaged is named; a server
that meets it asks the teacher again and never uses it. Recorded labels can be held against a live teacher, too.
"""

EXAMPLE = """\
examples:
  teacherfarm labels verify lmdb:/var/lib/teacherfarm/labels
  teacherfarm labels verify redis://10.0.0.11:6379/0
  teacherfarm labels verify runs/labels
  teacherfarm labels verify runs/labels --teacher-address zmq://127.0.0.1:7001 --data DATA/train --share 0.05

Exit status: 0 all is as it was written, 1 something is damaged or differs.
"""
MOST_NAMED = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The place, and what recorded labels may be held against."""
    from teacherfarm.student.recipes import recorded_verify

    parser.description, parser.epilog = DESCRIPTION, EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("location", metavar="PLACE", help=LOCATION)
    recorded_verify.add_arguments(parser)


def main(options: argparse.Namespace) -> int:
    """Print what was found; 0 when all is whole."""
    if not is_store(options.location):
        from teacherfarm.student.recipes import recorded_verify

        return recorded_verify.main(options)
    store = open_upkeep(options.location)
    try:
        with tqdm(total=len(store), unit=" labels", unit_scale=True, desc="checksums", disable=None) as bar:
            verdict = store.verify(bar.update)
    finally:
        store.close()
    for damage in verdict.damaged[:MOST_NAMED]:
        print(f"damaged: {damage}")
    if len(verdict.damaged) > MOST_NAMED:
        print(f"... and {len(verdict.damaged) - MOST_NAMED:,} more")
    what_then = "; they read as absent, and are asked again" if verdict.damaged else ""
    print(f"{verdict.checked:,} labels checked, {len(verdict.damaged) or 'none'} damaged{what_then}")
    return 1 if verdict.damaged else 0
