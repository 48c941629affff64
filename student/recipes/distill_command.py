"""The command line of `teacherfarm distill`. Imports no torch, so that help comes at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from teacherfarm.student.recipes.run_config import DEFAULT_METHOD, apply_config, look_ahead

DESCRIPTION = """\
Train a student from a teacher's stream of soft labels, on a folder of images.

DATA holds train/CLASS/IMAGE.jpg and val/CLASS/IMAGE.jpg, or WebDataset tars (train-*.tar, val-*.tar), or Parquet
files (also the hub's data/train-*.parquet), or what Hugging Face's save_to_disk wrote, or the unpacked Python archive
of CIFAR-10 or CIFAR-100. The teacher runs elsewhere: every crop is sent to it, and its answer is what the student
learns, by a --method: teacherfarm methods lists them, and teacherfarm distill --method NAME --help has the settings of
one.
"""

EXAMPLE = """\
example, in two terminals:
  teacherfarm serve models/ --zmq 127.0.0.1:7001
  teacherfarm check   DATA --teacher-address zmq://127.0.0.1:7001
  teacherfarm distill DATA --teacher-address zmq://127.0.0.1:7001 --student torchvision:resnet18 --out runs/first

four crops of each image at a time, five classes of each label, as in FKD (arXiv 2112.01528):
  teacherfarm distill DATA --teacher-address zmq://farm:7001 --student torchvision:resnet50 --out runs/fkd \\
      --preset fkd-imagenet

a teacher's last feature maps and its classifier, as in SimKD (arXiv 2203.14001):
  teacherfarm export  ... --tap layer3
  teacherfarm distill DATA --teacher-address zmq://farm:7001 --student cifar:resnet8x4 --out runs/simkd \\
      --preset simkd-cifar100 --lr 0.02 --factor 4

from labels that were recorded beforehand, with no teacher at all (m of the recorded views at each visit, as in FKD):
  teacherfarm label   DATA --teacher-address zmq://farm:7001 --views 50 --top-k 10 --out labels/
  teacherfarm distill DATA --labels labels/ --student torchvision:resnet50 --out runs/replayed --crops-per-image 4
or record what the first student streams (--record labels/), and let the others replay it (--labels labels/).

eight GPUs of one machine (--batch-size is per process; scale --lr with the total):
  torchrun --nproc-per-node 8 --no-python teacherfarm distill DATA ... --device cuda

What it writes to --out: config.yaml (all options: --config takes it), step-*.pt (checkpoints), student.pt and
student.json (the finished student), log.csv, tensorboard/, curves.png, result.json, report.html. Interrupted? The same
command with --resume goes on, as if nothing had happened.
"""


def add_arguments(parser: argparse.ArgumentParser, arguments: Sequence[str] = ()) -> None:
    """Everything that :func:`teacherfarm.student.recipes.distill.main` reads; ``arguments``: what will be parsed, as
    the method that they name has settings of its own, and their files have defaults.
    """
    chosen = look_ahead(arguments)
    add_common_arguments(parser)
    asks_help = bool({"-h", "--help"} & set(arguments))
    if chosen.method or not asks_help:
        # Help without a method does not wait for torch.
        from teacherfarm.student.methods.registry import find_method
        from teacherfarm.student.recipes.method_options import PREFIX, add_settings

        method = chosen.method or DEFAULT_METHOD
        add_settings(parser, find_method(method))
        parser.set_defaults(method=method)
        for config in chosen.configs:
            apply_config(parser, config, method, PREFIX)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes by any method."""
    parser.usage = "%(prog)s DATA (--teacher-address ADDRESS | --labels DIR) --student SOURCE --out FOLDER [options]"
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "data",
        type=Path,
        nargs="?",
        metavar="DATA",
        help="folder with train and val: class folders, tar, Parquet or Arrow files, or CIFAR's",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the run is kept")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="options as YAML; those that are given as well count more"
    )
    parser.add_argument("--train-folder", default="train", metavar="NAME", help="below DATA (default: train)")
    parser.add_argument("--val-folder", default="val", metavar="NAME", help="below DATA (default: val)")

    method = parser.add_argument_group("method")
    method.add_argument(
        "--method",
        metavar="NAME",
        help=f"what is learnt from the teacher: teacherfarm methods lists them (default: {DEFAULT_METHOD})",
    )
    method.add_argument(
        "--preset",
        metavar="NAME",
        help="a paper's recipe, where no option says otherwise, for example simkd-cifar100 (teacherfarm methods NAME "
        "lists those of a method)",
    )
    for side, which in (("teacher", "exported with --tap"), ("student", "by the names of its modules")):
        method.add_argument(
            f"--{side}-taps",
            nargs="+",
            default=[],
            metavar="NAME",
            help=f"the {side}'s stages to compare, first to last, {which} (default: all)",
        )
    method.add_argument(
        "--measure-link",
        type=float,
        default=2.0,
        metavar="S",
        help="measure for so long whether the teacher's answers can feed the student, and stop where the link cannot "
        "carry what the method asks (default: 2; 0: do not measure)",
    )

    teacher = parser.add_argument_group("teacher")
    add_teacher_arguments(teacher, required=False)
    teacher.add_argument(
        "--labels",
        metavar="DIR",
        help="train from labels recorded there (a folder or fsspec URL); a teacher given as well is asked for others",
    )
    teacher.add_argument(
        "--label-maps",
        metavar="DIR",
        help="train from ReLabel's label maps, CLASS/IMAGE.pt, without a teacher (--method relabel, or fkd)",
    )
    teacher.add_argument(
        "--upright-maps", action="store_true", help="their last axis runs across the image, not down it as ReLabel's"
    )
    teacher.add_argument(
        "--record", metavar="DIR", help="keep what the teacher streams; with the same --labels, ask for nothing twice"
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
        help="torchvision:NAME, timm:NAME, cifar:NAME, or package.module:function, called with num_classes=",
    )
    student.add_argument(
        "--init",
        default="",
        metavar="FROM",
        help="begin with the weights of a student.pt, or with 'pretrained' ones of torchvision or timm",
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
    training.add_argument(
        "--accumulate", type=int, default=1, metavar="N", help="batches of each step of the optimiser (default: 1)"
    )
    training.add_argument(
        "--optimizer",
        choices=["sgd", "nesterov", "adam", "adamw"],
        default="sgd",
        help="default: sgd, momentum 0.9; nesterov: the same with Nesterov's",
    )
    training.add_argument("--lr", type=float, default=0.1, help="highest learning rate (default: 0.1)")
    training.add_argument(
        "--lr-per", choices=["pass", "step"], default="pass", help="how often it changes (default: pass)"
    )
    training.add_argument(
        "--lr-schedule",
        choices=["cosine", "steps", "constant"],
        default="cosine",
        help="half a cosine, by --lr-factor at each of --lr-steps, or none, after the warm-up (default: cosine)",
    )
    training.add_argument(
        "--lr-steps", type=float, nargs="+", default=[], metavar="E", help="epochs at which the learning rate drops"
    )
    training.add_argument("--lr-factor", type=float, default=0.1, metavar="F", help="to this share (default: 0.1)")
    training.add_argument("--lr-floor", type=float, default=0.0, metavar="LR", help="of the cosine (default: 0)")
    training.add_argument("--warmup-epochs", type=float, default=0.0, metavar="E", help="linear warm-up (default: 0)")
    training.add_argument("--weight-decay", type=float, default=1e-4, metavar="W", help="default: 1e-4")
    training.add_argument(
        "--clip-norm", type=float, default=0.0, metavar="NORM", help="clip gradients (default: 0, no)"
    )
    training.add_argument(
        "--ema", type=float, default=0.0, metavar="DECAY", help="average the weights (default: 0, no)"
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
