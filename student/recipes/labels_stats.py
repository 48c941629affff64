"""``teacherfarm labels stats``: what a server's label store, or recorded labels, hold."""

from __future__ import annotations

import argparse

from tqdm import tqdm

from teacherfarm.label_store.store_upkeep import describe, is_store, open_upkeep

DESCRIPTION = """\
What is kept at a place: in the label store of `teacherfarm serve --store`, by project and teacher, or in recorded
labels. A server may use it meanwhile.
"""

EXAMPLE = """\
examples:
  teacherfarm labels stats lmdb:/var/lib/teacherfarm/labels
  teacherfarm labels stats redis://10.0.0.11:6379/0
  teacherfarm labels stats runs/imagenet-labels             # recorded labels: a folder, or any place of fsspec's
"""
LOCATION = "lmdb:DIR or redis://HOST:PORT/0 of a store, or where labels were recorded"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The place."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("location", metavar="PLACE", help=LOCATION)


def main(options: argparse.Namespace) -> int:
    """Print a table; 0."""
    if not is_store(options.location):
        from teacherfarm.student.recipes import recorded_stats

        return recorded_stats.main(options.location)
    store = open_upkeep(options.location)
    try:
        with tqdm(total=len(store), unit=" labels", unit_scale=True, desc="counting", disable=None) as bar:
            summaries = store.summaries(bar.update)
        print(f"{sum(one.labels for one in summaries):,} labels, {store.disk_bytes() / 1e6:,.1f} MB")
        for one in summaries:
            print(f"{one.labels:>14,} labels {one.bytes / 1e6:>10,.1f} MB  {describe(one.scope)}")
    finally:
        store.close()
    return 0
