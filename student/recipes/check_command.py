"""The command line of `teacherfarm check`. Imports no torch, so that help comes at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from teacherfarm.student.recipes.distill_command import add_teacher_arguments

DESCRIPTION = """\
Does this teacher fit these images? Asks it for the labels of the validation set and of training crops as the student
will see them, compares them with the folder's classes, and says what is wrong and what to do.

DATA holds val/CLASS/IMAGE.jpg and, where there is one, train/CLASS/IMAGE.jpg (or is itself a folder of class folders).
WebDataset tars and Parquet files will do, too: DATA/val-*.tar, DATA/train-*.parquet, or DATA is such a file.
"""

EXAMPLE = """\
example:
  teacherfarm serve models/ --zmq 127.0.0.1:7001
  teacherfarm check DATA --teacher-address zmq://127.0.0.1:7001 --picture worst.png

Exit status: 0 the teacher fits, 1 it does not (or it cannot be told).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that :func:`teacherfarm.student.recipes.check.main` reads."""
    parser.usage = "%(prog)s DATA --teacher-address ADDRESS [options]"
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "data", type=Path, metavar="DATA", help="folder with val and train: class folders, tar or Parquet files"
    )
    parser.add_argument("--train-folder", default="train", metavar="NAME", help="below DATA (default: train)")
    parser.add_argument("--val-folder", default="val", metavar="NAME", help="below DATA (default: val)")
    add_teacher_arguments(parser.add_argument_group("teacher"))
    parser.add_argument("--images", type=int, default=2000, metavar="N", help="at most so many of each (default: 2000)")
    parser.add_argument(
        "--crop-scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help="share of the image (default: the teacher's)"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write the worst disagreements as a picture")
    parser.add_argument("--batch-size", type=int, default=64, metavar="CROPS", help="default: 64")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that cut crops (default: one per core, at most 8)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which images and crops (default: 0)")


def main(options: argparse.Namespace) -> int:
    """Run it; see :func:`teacherfarm.student.recipes.check.main`."""
    from teacherfarm.student.recipes import check

    return check.main(options)
