"""The command line of ``teacherfarm dataset``: what a data set of images holds. Imports no torch."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

DESCRIPTION = """\
teacherfarm dataset index reads every image of a data set once, in whatever container it lies, and lists its samples:
name, hash, size and class. The same images give the same list from a folder, from tar files and from Parquet files.
"""

EXAMPLE = """\
examples:
  teacherfarm dataset index /data/imagenet/train                     a folder with one folder per class
  teacherfarm dataset index '/data/imagenet/train-{000..146}.tar'    WebDataset: KEY.jpg with KEY.cls or KEY.json
  teacherfarm dataset index /data/imagenet-1k/data/train-*.parquet   Parquet, as on the Hugging Face hub
  teacherfarm dataset index DATA --out train.npz                     keep the list; run again, it reads what changed

A server that has the images cuts crops by itself:  teacherfarm serve models/ --dataset imagenet=/data/imagenet/train
"""

UNREADABLE_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What :func:`main` reads."""
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    index = actions.add_parser(
        "index",
        help="list the samples of a data set, with a hash of each image",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    index.add_argument("path", nargs="+", metavar="PATH", help="a folder, or files; wildcards and braces will do")
    index.add_argument("--out", type=Path, metavar="FILE", help="keep the list there (.npz)")
    index.add_argument("--threads", type=int, default=8, metavar="N", help="images read side by side (default: 8)")


def main(options: argparse.Namespace) -> int:
    """0 when every image can be understood, 1 where some cannot. Raises BadDataSet."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from teacherfarm.crops.sample_index import SampleIndex, index_dataset
    from teacherfarm.crops.sample_readers import open_samples
    from teacherfarm.student.recipes.folders import training_images

    known = SampleIndex.load(options.out) if options.out is not None and options.out.exists() else None
    reader = open_samples(options.path if len(options.path) > 1 else options.path[0])
    started_s = time.monotonic()
    with logging_redirect_tqdm(), tqdm(total=len(reader), unit=" images", desc="index", disable=None) as bar:
        index = index_dataset(reader, progress=bar.update, known=known, threads=options.threads)
    took_s = time.monotonic() - started_s
    if options.out is not None:
        index.save(options.out)

    known_classes = index.targets[index.targets >= 0]
    unreadable = index.unreadable()
    sides = np.minimum(index.heights, index.widths)[index.heights > 0]
    copies = len(index) - len(np.unique(index.prefixes()))
    rows = [
        ("data set", f"{reader.where} ({reader.container})"),
        ("samples", f"{len(index)}, read in {took_s:.1f} s ({len(index) / max(took_s, 1e-9):.0f}/s)"),
        ("classes", f"{len(np.unique(known_classes))}" if len(known_classes) else "unknown"),
        (
            "shorter side",
            f"{sides.min()} to {sides.max()} px, half below {np.median(sides):.0f}" if len(sides) else "-",
        ),
        ("same images", f"{copies} are copies of others" if copies else "none"),
        ("unreadable", str(len(unreadable)) if len(unreadable) else "none"),
        ("digest", index.digest()),
    ]
    if options.out is not None:
        rows.append(("kept in", str(options.out)))
    inner = training_images(options.path[0]) if len(options.path) == 1 else options.path[0]
    if inner != options.path[0]:
        rows.append(("note", f"train and what lies beside it are taken as classes; the images to train on: {inner}"))
    for name, value in rows:
        print(f"{name:<13} {value}")
    for row in unreadable[:UNREADABLE_SHOWN].tolist():
        print(f"  cannot be read: {index.name(row)}")
    if len(unreadable) > UNREADABLE_SHOWN:
        print(f"  ... and {len(unreadable) - UNREADABLE_SHOWN} more")
    return 1 if len(unreadable) else 0
