"""The command line of `teacherfarm distill`. Imports no torch, so that help comes at once."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Train a student from a teacher's stream of soft labels, on a folder of images.

DATA holds train/CLASS/IMAGE.jpg and val/CLASS/IMAGE.jpg, or WebDataset tars (train-*.tar, val-*.tar), or Parquet
files (also the hub's data/train-*.parquet). The teacher runs elsewhere: every crop is sent to it, and
its answer is what the student learns. The folder's own labels are for evaluation, unless --hard-weight says otherwise.
"""

EXAMPLE = """\
example, in two terminals:
  teacherfarm serve models/ --zmq 127.0.0.1:7001
  teacherfarm check   DATA --teacher-address zmq://127.0.0.1:7001
  teacherfarm distill DATA --teacher-address zmq://127.0.0.1:7001 --student torchvision:resnet18 --out runs/first

four crops of each image at a time, five classes of each label, as in FKD (arXiv 2112.01528):
  teacherfarm distill DATA --teacher-address zmq://farm:7001 --student torchvision:resnet50 --out runs/fkd \\
      --crops-per-image 4 --top-k 5 --epochs 300 --batch-size 1024 --lr 0.2 --weight-decay 1e-4 --amp bf16

from labels that were recorded beforehand, with no teacher at all (m of the recorded views at each visit, as in FKD):
  teacherfarm label   DATA --teacher-address zmq://farm:7001 --views 50 --top-k 10 --out labels/
  teacherfarm distill DATA --labels labels/ --student torchvision:resnet50 --out runs/replayed --crops-per-image 4
or record what the first student streams (--record labels/), and let the others replay it (--labels labels/).

eight GPUs of one machine (--batch-size is per process; scale --lr with the total):
  torchrun --nproc-per-node 8 --no-python teacherfarm distill DATA ... --device cuda

What it writes to --out: step-*.pt (checkpoints), student.pt (weights, at the end), log.csv, tensorboard/, curves.png,
result.json. Interrupted? The same command with --resume goes on, as if nothing had happened.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that :func:`teacherfarm.student.recipes.distill.main` reads."""
    parser.usage = "%(prog)s DATA (--teacher-address ADDRESS | --labels DIR) --student SOURCE --out FOLDER [options]"
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "data", type=Path, metavar="DATA", help="folder with train and val: class folders, tar or Parquet files"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the run is kept")
    parser.add_argument("--train-folder", default="train", metavar="NAME", help="below DATA (default: train)")
    parser.add_argument("--val-folder", default="val", metavar="NAME", help="below DATA (default: val)")

    teacher = parser.add_argument_group("teacher")
    add_teacher_arguments(teacher, required=False)
    teacher.add_argument(
        "--labels",
        metavar="DIR",
        help="train from labels recorded there (a folder or fsspec URL); a teacher given as well is asked for others",
    )
    teacher.add_argument(
        "--record", metavar="DIR", help="keep what the teacher streams; with the same --labels, ask for nothing twice"
    )
    teacher.add_argument(
        "--top-k", type=int, metavar="K", help="ask for the K best classes (default: all, or as recorded)"
    )
    teacher.add_argument(
        "--completion",
        choices=["smoothing", "renorm"],
        default="smoothing",
        help="what the other classes get with --top-k: an even share of the rest, or nothing (default: smoothing)",
    )
    teacher.add_argument(
        "--on-starved",
        choices=["wait", "raise", "skip"],
        default="wait",
        help="no label within --answer-timeout: wait on, stop, or train without those crops (default: wait)",
    )
    teacher.add_argument(
        "--hard-fallback", action="store_true", help="with --on-starved skip: use those crops' hard labels instead"
    )
    teacher.add_argument(
        "--by-reference",
        default="",
        metavar="NAME",
        help="the server has the training images, too (serve --dataset NAME=PATH): name crops instead of sending them",
    )
    teacher.add_argument(
        "--on-refused",
        choices=["send", "skip", "raise"],
        default="send",
        help="with --by-reference, a sample that differs there: send its pixels, leave it out, or stop (default: send)",
    )
    teacher.add_argument("--prefetch-batches", type=int, metavar="N", help="batches asked ahead (default: 1024 crops)")

    student = parser.add_argument_group("student")
    student.add_argument(
        "--student",
        required=True,
        metavar="SOURCE",
        help="torchvision:NAME, timm:NAME, or package.module:function, called with num_classes=",
    )
    student.add_argument("--student-size", type=int, metavar="PX", help="its crops' size (default: the teacher's)")
    for name, imagenets in (("--mean", [0.485, 0.456, 0.406]), ("--std", [0.229, 0.224, 0.225])):
        student.add_argument(
            name,
            type=float,
            nargs=3,
            default=imagenets,
            metavar=("R", "G", "B"),
            help="what its input is normalised by, for pixels in 0..1 (default: ImageNet's)",
        )

    crops = parser.add_argument_group("crops")
    crops.add_argument(
        "--crops-per-image",
        type=int,
        default=1,
        metavar="M",
        help="crops cut from each image at once; one pass counts M epochs, the last M are single (default: 1)",
    )
    crops.add_argument(
        "--order",
        choices=["fresh", "cycle", "permute"],
        help="new crops at each visit, or the same --views again, in turn or drawn (default: fresh; --labels: permute)",
    )
    crops.add_argument(
        "--views",
        type=int,
        metavar="N",
        help="how many different crops of each image, not with fresh (default: as many as recorded)",
    )
    crops.add_argument(
        "--crop-scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help="share of the image (default: the teacher's)"
    )

    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=int, default=30, metavar="E", help="default: 30")
    training.add_argument(
        "--batch-size", type=int, default=128, metavar="CROPS", help="crops per process (default: 128)"
    )
    training.add_argument("--optimizer", choices=["sgd", "adamw"], default="sgd", help="default: sgd, momentum 0.9")
    training.add_argument("--lr", type=float, default=0.1, help="highest learning rate (default: 0.1)")
    training.add_argument(
        "--lr-per", choices=["pass", "step"], default="pass", help="how often it changes (default: pass)"
    )
    training.add_argument("--warmup-epochs", type=float, default=0.0, metavar="E", help="linear warm-up (default: 0)")
    training.add_argument("--weight-decay", type=float, default=1e-4, metavar="W", help="default: 1e-4")
    training.add_argument(
        "--clip-norm", type=float, default=0.0, metavar="NORM", help="clip gradients (default: 0, no)"
    )
    training.add_argument(
        "--ema", type=float, default=0.0, metavar="DECAY", help="average the weights (default: 0, no)"
    )
    training.add_argument(
        "--temperature", type=float, metavar="T", help="of both sides (default: 1, or as the recorded top-k labels)"
    )
    training.add_argument(
        "--loss",
        choices=["soft-ce", "kd", "kd-t2"],
        default="soft-ce",
        help="soft cross-entropy, KL divergence, or that times T squared (default: soft-ce)",
    )
    training.add_argument(
        "--hard-weight", type=float, default=0.0, metavar="SHARE", help="share of the folder's own labels (default: 0)"
    )
    training.add_argument(
        "--amp", choices=["off", "bf16", "fp16"], default="off", help="mixed precision (default: off)"
    )
    training.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda or auto (default: auto)")
    training.add_argument(
        "--workers", type=int, metavar="N", help="processes that cut crops (default: one per core, at most 8)"
    )
    training.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, order and crops (default: 0)")
    training.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out, if any")
    training.add_argument(
        "--checkpoint-steps", type=int, default=0, metavar="N", help="also every N steps (default: 0, no)"
    )
    training.add_argument("--keep", type=int, default=2, metavar="N", help="checkpoints kept (default: 2)")


def main(options: argparse.Namespace) -> int:
    """Run it; see :func:`teacherfarm.student.recipes.distill.main`."""
    from teacherfarm.student.recipes import distill

    return distill.main(options)


def add_teacher_arguments(group: argparse._ArgumentGroup, *, required: bool = True, class_map: bool = True) -> None:
    """Where the teacher is; shared with `teacherfarm check` and `teacherfarm label`."""
    group.add_argument(
        "--teacher-address",
        required=required,
        metavar="ADDRESS",
        help="zmq://HOST:PORT, grpc://HOST:PORT, local://MODELS; several, separated by commas, are alternatives",
    )
    group.add_argument("--teacher", default="", metavar="NAME", help="which one (default: the only one served)")
    group.add_argument("--digest", default="", metavar="HEX", help="refuse any other teacher")
    group.add_argument("--api-key", metavar="KEY", help="default: the environment's TEACHERFARM_API_KEY")
    group.add_argument(
        "--answer-timeout", type=float, default=120.0, metavar="S", help="seconds without labels (default: 120)"
    )
    if class_map:
        group.add_argument(
            "--class-map",
            type=Path,
            metavar="FILE",
            help="lines FOLDER = CLASS where names cannot be matched by themselves",
        )
