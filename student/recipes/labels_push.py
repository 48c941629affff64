"""`teacherfarm labels push`: publishes sealed labels to any place that fsspec reaches."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """\
examples:
  teacherfarm labels push labels/ s3://bucket/labels         (pip install s3fs)
  teacherfarm labels push labels/ file:///mnt/shared/labels
  teacherfarm distill DATA --labels s3://bucket/labels ...

Copies shards that are not there yet, and the manifest last: readers see the old labels or the new ones, and a push that
was interrupted goes on. What is not sealed stays here.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("location", type=Path, metavar="DIR", help="recorded labels")
    parser.add_argument("url", metavar="URL", help="where to, for example s3://bucket/labels")


def main(options: argparse.Namespace) -> int:
    """0 when all of it is there."""
    from tqdm import tqdm

    from teacherfarm.label_store.label_directory import LabelDirectory
    from teacherfarm.label_store.near_copy import publish, shard_bytes

    directory = LabelDirectory(options.location)
    content = directory.read()
    with tqdm(total=shard_bytes(content), unit="B", unit_scale=True, desc="pushing", disable=None) as bar:
        publish(options.location, options.url, progress=bar.update)
    print(f"pushed: {sum(files.num_labels for files in content.shards):,} labels to {options.url}")
    if directory.journals():
        print(f"not pushed: what is not sealed; `teacherfarm labels seal {directory}`")
    return 0
