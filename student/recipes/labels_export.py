"""``teacherfarm labels export``: recorded labels as FKD's label files."""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from teacherfarm.crops.crop_plan import BOX
from teacherfarm.label_store.fkd_files import KEPT, FkdForm, NumberType, fkd_labels, label_paths, write_fkd
from teacherfarm.label_store.recorded_labels import RecordedLabels
from teacherfarm.label_store.rounded_probabilities import probabilities
from teacherfarm.protos.soft_label import LABELS

_LABELS_AT_ONCE = 65536

_FKDS_NAME = {"full": "ori", "marginal_renorm_k5": "marginal_renorm"}
"""Where FKD's trainer calls a form otherwise than its generator."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """What every file of one export has in common."""

    form: FkdForm
    number_type: NumberType
    views: int


def main(options: argparse.Namespace) -> int:
    """Export what :mod:`labels_export_command`'s arguments say. Raises ValueError where the labels keep too little."""
    recorded = RecordedLabels.open(options.labels)
    check_form(recorded, options.form)
    views = min(options.views or recorded.manifest.views, recorded.manifest.views)
    export = Export(form=options.form, number_type=options.number_type, views=views)
    names = [recorded.index.name(row) for row in range(len(recorded.index))]
    folder = options.out / options.split
    paths = [f"{folder}/{path}" for path in label_paths(names)]
    for parent in sorted({os.path.dirname(path) for path in paths}):
        os.makedirs(parent, exist_ok=True)
    wanted = np.array([row for row, path in enumerate(paths) if options.overwrite or not os.path.exists(path)], int)
    at_once = max(1, _LABELS_AT_ONCE // views)
    written = empty = 0
    with (
        ThreadPoolExecutor(max(1, options.threads), thread_name_prefix="export") as pool,
        tqdm(total=len(paths), initial=len(paths) - len(wanted), desc="exporting", unit=" images", disable=None) as bar,
    ):
        for first in range(0, len(wanted), at_once):
            rows = wanted[first : first + at_once]
            for wrote in pool.map(lambda image: image.write(), images(recorded, rows, paths, export)):
                written += wrote
                empty += not wrote
                bar.update()
    there = len(paths) - len(wanted)
    print(
        f"exported {written} of {len(paths)} images to {folder}, {views} crops each"
        + (f"; {there} were there already" if there else "")
        + (f"; {empty} have no labels recorded" if empty else "")
    )
    fkds_name = _FKDS_NAME.get(options.form, options.form)
    print(f"train: python train_FKD.py DATA --softlabel_path {options.out} --soft_label_type {fkds_name} ...")
    return 0


def check_form(recorded: RecordedLabels, form: FkdForm) -> None:
    """Raise ValueError where labels like these cannot be written in a form."""
    manifest = recorded.manifest
    spec = manifest.spec
    if LABELS not in spec.outputs or manifest.teacher.activation != "softmax":
        raise ValueError(
            f"{recorded.directory} holds {', '.join(spec.outputs)} of a teacher with activation "
            f"{manifest.teacher.activation!r}; FKD's files hold probabilities of softmax classes"
        )
    if manifest.plan is None and not manifest.has_boxes:
        raise ValueError(f"{recorded.directory} knows no boxes ({manifest.mixing}), and FKD's files need them")
    if spec.top_k and not 0 < KEPT[form] <= spec.top_k:
        raise ValueError(
            f"form {form} needs {KEPT[form] or 'all'} classes of each label, and {recorded.directory} keeps the "
            f"{spec.top_k} best: choose a smaller --form, or record with a larger top-k (0: dense)"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageLabels:
    """One image's labels on their way into a file."""

    path: str
    name: str
    classes: NDArray[np.unsignedinteger] | None
    probabilities: NDArray[np.float32]
    boxes: NDArray[np.void]
    size: tuple[int, int]
    export: Export

    def write(self) -> bool:
        """Write the file; False where there is nothing to write."""
        if not len(self.boxes):
            return False
        form, number_type = self.export.form, self.export.number_type
        labels = fkd_labels(
            self.classes,
            self.probabilities,
            self.boxes,
            self.size,
            form,
            number_type=number_type,
            name=self.name,
        )
        write_fkd(self.path, labels)
        return True


def images(recorded: RecordedLabels, rows: NDArray[np.int64], paths: list[str], export: Export) -> list[ImageLabels]:
    """The labels of some rows, image by image, in the order of views; absent views are left out."""
    index, manifest = recorded.index, recorded.manifest
    every_row = np.repeat(rows, export.views)
    every_view = np.tile(np.arange(export.views), len(rows))
    records, present = recorded.read(every_row, every_view)
    # An image that could not be read has no size, so no crops.
    present &= index.heights[every_row] > 0
    heights, widths = index.heights[every_row[present]], index.widths[every_row[present]]
    boxes = np.zeros(len(records), BOX)
    if manifest.plan is not None:
        numbers = index.numbers()[every_row[present]]
        boxes[present] = manifest.plan.boxes(numbers, every_view[present], heights, widths)
    else:
        kept = recorded.boxes(every_row, every_view)
        assert kept is not None
        boxes = kept
    found = []
    for place, row in enumerate(rows.tolist()):
        here = slice(place * export.views, (place + 1) * export.views)
        some = records[here][present[here]]
        dense = not manifest.spec.top_k
        found.append(
            ImageLabels(
                path=paths[row],
                name=index.name(row),
                classes=None if dense else some["classes"],
                probabilities=probabilities(some[LABELS if dense else "log_probabilities"], whole=dense),
                boxes=boxes[here][present[here]],
                size=(int(index.heights[row]), int(index.widths[row])),
                export=export,
            )
        )
    return found
