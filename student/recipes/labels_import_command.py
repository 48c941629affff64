"""The command line of ``teacherfarm labels import``. Imports nothing heavy, so that help comes at once."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Other projects' soft labels as recorded labels: one checked, mapped store in place of a million files. A label of the 5
best classes takes 20 bytes, its box 17.

  fkd      FKD's files, one per image (boxes, flips and labels of 200 to 500 crops): SRC/[train/]CLASS/IMAGE.tar
  relabel  ReLabel's label maps: SRC/CLASS/IMAGE.pt; a crop plan chooses the crops, whose labels are pooled from the map
  tinyvit  TinyViT's sparse labels: SRC/logits_top100_epoch0/...; each epoch one view. Only TinyViT's own augmentation
           can cut these crops again, from the seeds, which are kept beside the labels (seeds.npy, [epochs, images])

DATA is the same images: a folder with one folder per class, WebDataset .tar files or Parquet files. The files are never
unpickled: one that asks for more than arrays is refused by name. An interrupted import goes on when started again.
"""

EXAMPLE = """\
examples:
  teacherfarm labels import fkd FKD_soft_label_500_crops_marginal_smoothing_k_5/imagenet --data imagenet/train \\
      --num-classes 1000 --teacher-name tf_efficientnet_l2_ns_475 --out fkd-labels/
  teacherfarm labels import relabel label_top5_train_nfnet --data imagenet/train --num-classes 1000 --views 50 \\
      --out relabel-labels/
  teacherfarm labels import tinyvit teacher_logits/ --data imagenet/train --class-names classes.txt --out tv-labels/

Exit status: 0 done (images without labels are counted, not an error); 1 some files are damaged, and named; 2 wrong
arguments.
"""

KINDS = ("fkd", "relabel", "tinyvit")
FORMS = ("full", "hard", "smoothing", "marginal_smoothing_k5", "marginal_renorm_k5", "marginal_smoothing_k10")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that :func:`teacherfarm.student.recipes.labels_import.main` reads."""
    parser.usage = "%(prog)s fkd|relabel|tinyvit SRC --data DATA --out DIR --num-classes N [options]"
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("kind", choices=KINDS, help="whose files they are")
    parser.add_argument("source", type=Path, metavar="SRC", help="the folder that holds them")
    parser.add_argument("--data", required=True, metavar="DATA", help="the images that were labelled")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the recorded labels go")
    teacher = parser.add_argument_group("teacher (give --card, or what is known)")
    teacher.add_argument("--card", type=Path, metavar="FILE", help="card.json of the teacher, if it was exported here")
    teacher.add_argument("--teacher-name", default="", metavar="NAME", help="for the reader (default: SRC's name)")
    teacher.add_argument("--num-classes", type=int, metavar="N", help="how many classes it knows")
    teacher.add_argument("--class-names", type=Path, metavar="FILE", help="their names in order, one a line")
    teacher.add_argument("--teacher-size", type=int, metavar="PX", help="of its crops (default: 475; tinyvit 224)")
    teacher.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="that the labels were made at (default: 1)"
    )
    which = parser.add_argument_group("which labels")
    which.add_argument("--split", metavar="NAME", help="fkd: folder below SRC (default: train, where there is one)")
    which.add_argument("--form", choices=FORMS, help="fkd: refuse files of any other form")
    which.add_argument("--views", type=int, metavar="M", help="crops an image (fkd: as in the first file; relabel: 50)")
    which.add_argument("--top-k", type=int, default=10, metavar="K", help="relabel: classes kept, 0 all (default: 10)")
    which.add_argument("--seed", type=int, default=0, metavar="N", help="relabel: of the crop plan (default: 0)")
    which.add_argument(
        "--crop-scale",
        type=float,
        nargs=2,
        default=(0.08, 1.0),
        metavar=("LOW", "HIGH"),
        help="relabel: share of the image that the plan's crops cover (default: 0.08 1)",
    )
    which.add_argument(
        "--upright",
        action="store_true",
        help="relabel: maps whose last axis runs across the image; ReLabel's own training reads it as running down",
    )
    parser.add_argument("--threads", type=int, default=8, metavar="N", help="that read files (default: 8)")


def main(options: argparse.Namespace) -> int:
    """Run it; see :func:`teacherfarm.student.recipes.labels_import.main`."""
    from teacherfarm.student.recipes import labels_import

    return labels_import.main(options)
