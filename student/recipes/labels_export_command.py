"""The command line of ``teacherfarm labels export``. Imports nothing heavy, so that help comes at once."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Recorded labels as FKD's files, for its own training code: OUT/train/CLASS/IMAGE.tar, each with the boxes, flips and
labels of an image's crops. Boxes are exact: FKD's replay cuts the pixels that the teacher's crops were cut from.

  form                    FKD's --soft_label_type   keeps
  full                    ori                       every class (labels recorded dense)
  hard                    hard                      the best class
  smoothing               smoothing                 the best class and its probability
  marginal_smoothing_k5   marginal_smoothing_k5     five classes, the rest spread evenly: FKD's choice
  marginal_renorm_k5      marginal_renorm           the same file, the five scaled up to 1 in training
  marginal_smoothing_k10  marginal_smoothing_k10    ten classes

Files that are there already are left alone, so an interrupted export goes on when started again.
"""

EXAMPLE = """\
examples:
  teacherfarm labels export fkd labels/ --out fkd/ --form marginal_smoothing_k5
  teacherfarm labels export fkd labels/ --out fkd/ --form marginal_smoothing_k10 --number-type float16 --views 200

then: python train_FKD.py DATA --softlabel_path fkd/ --soft_label_type marginal_smoothing_k5 ...
(with torch 2.6 or later FKD's code opens no label file, its own neither, unless TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1)
"""

FORMS = ("full", "hard", "smoothing", "marginal_smoothing_k5", "marginal_renorm_k5", "marginal_smoothing_k10")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that :func:`teacherfarm.student.recipes.labels_export.main` reads."""
    parser.usage = "%(prog)s fkd DIR --out OUT [--form FORM] [options]"
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("kind", choices=("fkd",), help="whose files to write")
    parser.add_argument("labels", metavar="DIR", help="recorded labels: a folder, or a URL that fsspec reaches")
    parser.add_argument("--out", required=True, type=Path, metavar="OUT", help="FKD's --softlabel_path")
    parser.add_argument(
        "--form", choices=FORMS, default="marginal_smoothing_k5", help="of labels (default: marginal_smoothing_k5)"
    )
    parser.add_argument(
        "--number-type",
        choices=("float32", "float16"),
        default="float32",
        help="of labels and boxes (default: float32; float16 rounds probabilities, and boxes only where that is exact)",
    )
    parser.add_argument("--views", type=int, metavar="M", help="crops an image, at most (default: all)")
    parser.add_argument("--split", default="train", metavar="NAME", help="folder below OUT (default: train)")
    parser.add_argument("--overwrite", action="store_true", help="write files anew that are there already")
    parser.add_argument("--threads", type=int, default=8, metavar="N", help="that write files (default: 8)")


def main(options: argparse.Namespace) -> int:
    """Run it; see :func:`teacherfarm.student.recipes.labels_export.main`."""
    from teacherfarm.student.recipes import labels_export

    return labels_export.main(options)
