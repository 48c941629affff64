"""The command line of ``teacherfarm plan``. Imports no torch, so that help comes at once."""

from __future__ import annotations

import argparse

from teacherfarm.student.recipes.study_command import add_address_arguments

DESCRIPTION = """\
Teacher in the loop, streaming, or recording and replaying: what does each cost, for your images, your student and your
teacher? Measures a sample of the images on this machine (and your farm, where one is given), computes hours, bytes,
disk and cores for each way, and says which is cheapest and why. What is assumed is printed and can be given.

DATA is a folder with one folder per class, WebDataset .tar files, Parquet files, or a folder that holds train/.
"""

EPOCHS, CROPS_PER_IMAGE, LINK_MBIT_S = 300, 4, 1000.0

EXAMPLE = """\
examples:
  teacherfarm plan DATA --student-rate 2500 --teacher-rate 900
      a student that trains 2500 crops/s when it never waits; one teacher labels 900
  teacherfarm plan DATA --student-rate 2500 --teacher-address zmq://farm:7001
      the teacher's rate, rendering and classes are the farm's, measured and read from its card
  teacherfarm plan DATA --student-rate 2500 --teacher-rate 900 --epochs 300 --runs 3 --views 500 --top-k 5 --link 10000
  teacherfarm plan SAMPLE.tar --images 1281167 --student-rate 2500 --teacher-rate 900 --json
      the whole of ImageNet, from a sample of it, for a program

Where to find a student's rate: train without a teacher for a minute (teacherfarm distill prints images/s and stall).
Exit status: 0 done; 1 it could not be done; 2 wrong arguments.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that :func:`teacherfarm.student.recipes.plan.main` reads."""
    parser.usage = "%(prog)s DATA --student-rate CROPS/S (--teacher-rate CROPS/S | --teacher-address ADDRESS) [options]"
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("data", metavar="DATA", help="the images")
    parser.add_argument("--images", type=int, metavar="N", help="plan for so many (default: as many as are in DATA)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")

    student = parser.add_argument_group("student")
    student.add_argument("--student-rate", type=float, required=True, metavar="CROPS/S", help="when it never waits")
    student.add_argument("--student-devices", type=int, default=1, metavar="N", help="that give this rate (default: 1)")
    student.add_argument("--student-size", type=int, metavar="PX", help="its crops' size (default: the teacher's)")
    student.add_argument("--epochs", type=int, default=EPOCHS, metavar="E", help="of one run (default: 300)")
    student.add_argument("--runs", type=int, default=1, metavar="R", help="runs with the same teacher (default: 1)")
    student.add_argument(
        "--crops-per-image",
        type=int,
        default=CROPS_PER_IMAGE,
        metavar="M",
        help="cut from one decoded image (default: 4)",
    )
    student.add_argument(
        "--cores", type=float, metavar="N", help="for loading, at the student (default: this machine's)"
    )

    teacher = parser.add_argument_group("teacher")
    teacher.add_argument("--teacher-rate", type=float, metavar="CROPS/S", help="of one teacher (default: measured)")
    teacher.add_argument("--teachers", type=float, metavar="N", help="default: the farm's, or as many as are needed")
    teacher.add_argument(
        "--loop-rate", type=float, metavar="CROPS/S", help="on the student's device (default: --teacher-rate)"
    )
    add_address_arguments(teacher)
    teacher.add_argument("--measure", type=float, default=6.0, metavar="S", help="seconds on the farm (default: 6)")
    teacher.add_argument("--dedicated", action="store_true", help="the farm stands by for these runs alone")

    labels = parser.add_argument_group("labels and wire")
    labels.add_argument("--top-k", type=int, default=10, metavar="K", help="classes kept, 0: dense (default: 10)")
    labels.add_argument("--classes", type=int, metavar="C", help="of the teacher (default: its card's, or 1000)")
    labels.add_argument("--views", type=int, metavar="V", help="recorded per image (default: 50, or all that are used)")
    labels.add_argument("--link", type=float, default=LINK_MBIT_S, metavar="MBIT/S", help="each way (default: 1000)")
    labels.add_argument("--size", type=int, metavar="PX", help="the teacher's crops (default: its card's, or 224)")

    prices = parser.add_argument_group("prices, per device and hour")
    prices.add_argument("--student-price", type=float, default=1.0, metavar="P", help="default: 1")
    prices.add_argument("--teacher-price", type=float, default=1.0, metavar="P", help="default: 1")
    parser.add_argument("--sample", type=int, default=64, metavar="N", help="images measured (default: 64)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which of them (default: 0)")


def main(options: argparse.Namespace) -> int:
    """Run it; see :func:`teacherfarm.student.recipes.plan.main`."""
    from teacherfarm.student.recipes import plan

    return plan.main(options)
