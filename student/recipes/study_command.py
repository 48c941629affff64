"""The command line of ``teacherfarm labels study``. Imports no torch, so that help comes at once."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
What may a label and a crop weigh, before it hurts? Asks a teacher about random crops of your own images, writes its
answers down in every format, reads them back, and reports bytes against the divergence from the full-precision answers;
then the same for ways to send the crops. Names the smallest of each that keeps a budget, and the setting to write.

DATA is a folder with one folder per class, WebDataset .tar files, Parquet files, or a folder that holds train/.
Divergence is KL(label || full precision) in nats: what a student's loss is above its minimum although the student says
exactly what the teacher does.
"""

EXAMPLE = """\
examples:
  teacherfarm labels study DATA --teacher-address local://models/ --out study/
      full precision is truly float32 here; from a farm it is what travels, float16 log-probabilities
  teacherfarm labels study DATA --teacher-address zmq://farm:7001 --temperature 4 --budget 0.02 --only labels
  teacherfarm labels study --labels recorded/ --top-k 5 10 20
      of dense recorded labels; no teacher is asked, so crops are not studied

Writes labels.csv, labels.png, crops.csv, crops.png and report.md to --out.
Exit status: 0 done; 1 it could not be done; 2 wrong arguments.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that :func:`teacherfarm.student.recipes.study.main` reads."""
    parser.usage = "%(prog)s DATA --teacher-address ADDRESS [options]\n       %(prog)s --labels DIR [options]"
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("data", nargs="?", default="", metavar="DATA", help="the images; not with --labels")
    parser.add_argument("--labels", default="", metavar="DIR", help="dense recorded labels instead of a teacher")
    add_address_arguments(parser.add_argument_group("teacher"))
    study = parser.add_argument_group("study")
    study.add_argument("--budget", type=float, default=0.01, metavar="NATS", help="mean divergence (default: 0.01)")
    study.add_argument("--temperature", type=float, default=1.0, metavar="T", help="the budget's (default: 1)")
    study.add_argument(
        "--temperatures", type=float, nargs="+", default=[1.0, 4.0], metavar="T", help="in the tables (default: 1 4)"
    )
    study.add_argument(
        "--top-k",
        type=int,
        nargs="+",
        default=[1, 2, 5, 10, 20, 50, 100],
        metavar="K",
        help="classes kept (default: 1 2 5 10 20 50 100), and dense",
    )
    study.add_argument("--crops", type=int, default=500, metavar="N", help="so many crops (default: 500)")
    study.add_argument("--only", choices=["labels", "crops"], help="one of the two tables (default: both)")
    study.add_argument(
        "--crop-scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help="share of the image (default: the teacher's)"
    )
    study.add_argument("--seed", type=int, default=0, metavar="N", help="which images and crops (default: 0)")
    study.add_argument("--out", type=Path, metavar="DIR", help="write tables, pictures and report there")


def main(options: argparse.Namespace) -> int:
    """Run it; see :func:`teacherfarm.student.recipes.study.main`."""
    from teacherfarm.student.recipes import study

    return study.main(options)


def add_address_arguments(group: argparse._ArgumentGroup) -> None:
    """Which teacher to ask, where one is asked at all; shared with `teacherfarm plan`."""
    group.add_argument("--teacher-address", default="", metavar="ADDRESS", help="local://MODELS, zmq://HOST:PORT, ...")
    group.add_argument("--teacher", default="", metavar="NAME", help="which one (default: the only one there)")
    group.add_argument("--digest", default="", metavar="HEX", help="refuse any other teacher")
    group.add_argument("--api-key", metavar="KEY", help="default: the environment's TEACHERFARM_API_KEY")
    group.add_argument(
        "--answer-timeout", type=float, default=120.0, metavar="S", help="seconds without labels (default: 120)"
    )
