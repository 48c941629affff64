"""`teacherfarm labels seal`: takes the journals of writers that are done into the shards."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """\
example:
  teacherfarm labels seal labels/

Recording seals by itself when the last writer ends. This is for recordings that were killed, and for those that others
still add to: what they write stays theirs. Safe at any moment, and again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("location", type=Path, metavar="DIR", help="recorded labels")


def main(options: argparse.Namespace) -> int:
    """0 when nothing is left but what living writers hold."""
    from tqdm import tqdm

    from teacherfarm.label_store.sealing import journal_bytes, seal
    from teacherfarm.student.recipes.recorded_stats import counted

    total = journal_bytes(options.location)
    with tqdm(total=total, unit="B", unit_scale=True, desc="sealing", disable=None) as bar:
        sealed = seal(options.location, progress=bar.update)
    print(f"sealed: {sealed.new_labels:,} new labels from {counted(sealed.journals, 'journal')}")
    if sealed.live:
        print(f"left: {counted(sealed.live, 'journal')} of writers that are still at work")
    return 0
