"""The command line of `teacherfarm label`. Imports no torch, so that help comes at once."""

from __future__ import annotations

import argparse

from teacherfarm.student.recipes.distill_command import add_teacher_arguments

DESCRIPTION = """\
Label a whole data set beforehand: every crop that a student will train on, asked of a farm once and recorded.

DATA is a folder with one folder per class, WebDataset tars ('train-{000..146}.tar'), Parquet files, or a folder that
holds train/ as for distill. Each image is decoded once for all its views. Stop it, kill it, run it again: it goes on
where it was. Labels take 4 bytes a class kept (top-10: 40 bytes), so 50 views of ImageNet-1k are 2.6 GB.
"""

EXAMPLE = """\
example, then train from it without any teacher:
  teacherfarm label   DATA --teacher-address zmq://farm:7001 --views 50 --top-k 10 --out labels/
  teacherfarm distill DATA --labels labels/ --student torchvision:resnet50 --out runs/first --crops-per-image 4

four machines that share DATA and labels/ (the last one to finish seals what all have recorded):
  teacherfarm label DATA --teacher-address zmq://farm:7001 --views 50 --out labels/ --part 1/4      # and 2/4, 3/4, 4/4

the same by Ray, on the cluster of RAY_ADDRESS or else on this machine (pip install 'teacherfarm[ray]'):
  teacherfarm label DATA --teacher-address zmq://farm:7001 --views 50 --out labels/ --engine ray --workers 8

How many views? FKD's results are for 500, hold for 100, and students overfit to fewer than 50.

Exit status: 0 done; 1 something is missing, and why; 130 stopped, the same command goes on.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that :func:`teacherfarm.student.recipes.label.main` reads."""
    parser.usage = "%(prog)s DATA --teacher-address ADDRESS --out DIR [options]"
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("data", metavar="DATA", help="class folders, tar or Parquet files, or a folder with train/")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the labels are recorded")
    parser.add_argument("--train-folder", default="train", metavar="NAME", help="below DATA (default: train)")

    add_teacher_arguments(parser.add_argument_group("teacher"), class_map=False)

    labels = parser.add_argument_group("labels")
    labels.add_argument("--views", type=int, default=50, metavar="N", help="crops of each image (default: 50)")
    kind = labels.add_mutually_exclusive_group()
    # The default is text, so that argparse sees a --top-k 10 that was given, and refuses it beside --dense.
    kind.add_argument("--top-k", type=int, default="10", metavar="K", help="keep the K best classes (default: 10)")
    kind.add_argument(
        "--dense", action="store_true", help="keep all classes: any temperature later, 2 bytes a class (2 kB for 1000)"
    )
    labels.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="at which the K best are cut and used (default: 1)"
    )
    labels.add_argument(
        "--crop-scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help="share of the image (default: the teacher's)"
    )
    labels.add_argument(
        "--by-reference",
        default="",
        metavar="NAME",
        help="the farm has these images, too (serve --dataset NAME=PATH): send 20 bytes a crop, and let it cut them",
    )
    labels.add_argument("--seed", type=int, default=0, metavar="N", help="of the crops (default: 0)")

    work = parser.add_argument_group("work")
    work.add_argument("--part", default="1/1", metavar="I/N", help="label the I-th of N parts of the data set")
    work.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="this machine, or Ray Data (default: local)"
    )
    work.add_argument(
        "--workers", type=int, metavar="N", help="processes that cut crops (default: one per core, max. 8)"
    )
    work.add_argument(
        "--ray-address", metavar="ADDRESS", help="a Ray cluster (default: RAY_ADDRESS, else one of our own)"
    )
    work.add_argument("--batch-size", type=int, default=128, metavar="CROPS", help="crops asked at once (default: 128)")


def main(options: argparse.Namespace) -> int:
    """Run it; see :func:`teacherfarm.student.recipes.label.main`."""
    from teacherfarm.student.recipes import label

    return label.main(options)
