"""``teacherfarm methods [NAME]``: the methods of distillation, what each asks of a teacher, and its settings."""

from __future__ import annotations

import argparse

EPILOG = """\
examples:
  teacherfarm methods
  teacherfarm methods simkd
  teacherfarm methods --teacher-address zmq://127.0.0.1:7001 --student torchvision:resnet18

Without a teacher, bytes are those of two pairs that papers compare on: a ResNet-50 for a ResNet-18 at 224 pixels and
1000 classes, and a ResNet-32x4 for a ResNet-8x4 at 32 pixels and 100 classes, the teacher exported with all that the
method can use. Crops go the other way: 150528 and 3072 bytes as pixels, 20 by reference.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``teacherfarm methods`` takes."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="all about one method")
    parser.add_argument("--teacher-address", metavar="ADDRESS", help="what would each ask of the teacher served there?")
    parser.add_argument("--teacher", default="", metavar="NAME", help="which one (default: the only one served)")
    parser.add_argument("--api-key", metavar="KEY", help="default: the environment's TEACHERFARM_API_KEY")
    parser.add_argument(
        "--student",
        default="torchvision:resnet18",
        metavar="SOURCE",
        help="for which student (with --teacher-address; default: torchvision:resnet18)",
    )
    parser.add_argument("--student-size", type=int, metavar="PX", help="its crops' size (default: the teacher's)")


def main(options: argparse.Namespace) -> int:
    """Print the list, or all about one method."""
    from teacherfarm.student.methods.registry import METHODS, find_method
    from teacherfarm.student.recipes import methods_catalogue as catalogue

    if options.name:
        find_method(options.name)  # a name that does not exist is said before anything is asked
    pairs = catalogue.typical_pairs() if options.teacher_address is None else [catalogue.pair_of(options)]
    if options.name:
        print(catalogue.describe(find_method(options.name), pairs))
    else:
        print(catalogue.table([find_method(name) for name in METHODS], pairs))
    return 0
