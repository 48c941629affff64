"""The command line of ``teacherfarm labels calibrate``. Imports nothing heavy, so that help comes at once."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Recorded labels as FerKD prepares them (arXiv 2312.17473), beforehand: no crop is cut in training that would not count.

Of each image's crops, the teacher's least and most certain ones are left out, uncertain ones get the data's own label,
softened, the others keep the teacher's. The crops that stay take the places of those that went, so every view has a
label; each keeps its box. Train from the result by --method fkd. (--method ferkd does the same to labels as they come,
and leaves crops out by giving them weight 0.)

The thresholds were never published: the defaults here are ours, to be tuned.
"""

EXAMPLE = """\
examples:
  teacherfarm labels calibrate labels/ --out calibrated/
  teacherfarm labels calibrate labels/ --out calibrated/ --thresholds absolute --low 0.05 --middle 0.3 --high 0.95
  teacherfarm distill DATA --labels calibrated/ --method fkd --student torchvision:resnet50 --out runs/ferkd
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that :func:`teacherfarm.student.recipes.labels_calibrate.main` reads."""
    parser.usage = "%(prog)s DIR --out OUT [options]"
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("labels", metavar="DIR", help="recorded labels: a folder, or a URL that fsspec reaches")
    parser.add_argument("--out", required=True, type=Path, metavar="OUT", help="where the calibrated labels go")
    parser.add_argument(
        "--confidence",
        choices=("max", "target"),
        default="max",
        help="what the teacher gives to its best class, or to the data's own (default: max)",
    )
    parser.add_argument(
        "--thresholds",
        choices=("quantile", "absolute"),
        default="quantile",
        help="shares of an image's own crops, or probabilities (default: quantile)",
    )
    for name, default, what in (
        ("low", 0.05, "crops of less confidence are left out"),
        ("middle", 0.2, "crops of less confidence get the data's own label, softened"),
        ("high", 0.95, "crops of more confidence are left out"),
    ):
        parser.add_argument(f"--{name}", type=float, default=default, metavar="X", help=f"{what} (default: {default})")
    parser.add_argument(
        "--epsilon",
        type=float,
        default=0.1,
        metavar="E",
        help="what a softened label leaves to the other classes (default: 0.1)",
    )
    parser.add_argument(
        "--at-least",
        type=int,
        default=4,
        metavar="M",
        help="crops that stay of each image; where fewer would, the most certain ones of the others (default: 4)",
    )
    parser.add_argument("--views", type=int, metavar="V", help="labels of each image (default: as recorded)")
    parser.add_argument(
        "--class-map", type=Path, metavar="FILE", help='lines "FOLDER = CLASS", where class names do not match'
    )


def main(options: argparse.Namespace) -> int:
    """Run it; see :func:`teacherfarm.student.recipes.labels_calibrate.main`."""
    from teacherfarm.student.recipes import labels_calibrate

    return labels_calibrate.main(options)
