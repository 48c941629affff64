"""Small recordings: an index of samples that were never images, a manifest, and records that their place tells.

Run as a program, records until it is killed: ``python -m tests.recordings FOLDER SAMPLES VIEWS SEED``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.crop_plan import BOX, CropPlan
from teacherfarm.crops.sample_index import SampleIndex
from teacherfarm.label_store.recorded_labels import LabelRecorder, Manifest, RecordedLabels, TeacherIdentity
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.soft_label import LabelSpec

NUM_CLASSES = 1000

Rows = NDArray[np.int64]


def index_of(num_samples: int, *, seed: int = 0) -> SampleIndex:
    """Samples c/0000000, c/0000001, ..."""
    rng = np.random.default_rng(seed)
    return SampleIndex(
        names=np.array([b"c/%07d" % number for number in range(num_samples)]),
        hashes=rng.integers(0, 256, (num_samples, 16), np.uint8).view("V16").reshape(-1),
        heights=np.full(num_samples, 300, np.uint32),
        widths=np.full(num_samples, 400, np.uint32),
        targets=np.arange(num_samples) % NUM_CLASSES,
    )


def manifest_of(
    index: SampleIndex, views: int, *, top_k: int = 10, has_boxes: bool = False, teacher_digest: str = "aa"
) -> Manifest:
    """Top-k labels, or dense ones of a few classes where ``top_k`` is 0."""
    num_classes = NUM_CLASSES if top_k else 8
    fields: list[tuple[str, str, tuple[int]]] = [("labels", "<f2", (num_classes,))]
    if top_k:
        fields = [("classes", "<u2", (top_k,)), ("log_probabilities", "<f2", (top_k,))]
    return Manifest(
        teacher=TeacherIdentity(
            name="some-teacher",
            teacher_digest=teacher_digest,
            artifact_digest="bb",
            num_classes=num_classes,
            activation="softmax",
        ),
        plan=None if has_boxes else CropPlan(seed=3),
        rendering=Rendering(height=224, width=224),
        spec=LabelSpec(outputs=("labels",), top_k=top_k),
        views=views,
        record_dtype=np.dtype(fields),
        samples=index.digest(),
        has_boxes=has_boxes,
    )


def records_of(manifest: Manifest, rows: Rows, views: Rows, *, salt: int = 0) -> NDArray[np.void]:
    """A record for each (row, view) that no other one has."""
    records = np.zeros(len(rows), manifest.record_dtype)
    number = (np.asarray(rows) * 7919 + np.asarray(views) * 104729 + salt * 31)[:, None]
    for name in manifest.record_dtype.names or ():
        width = records[name].shape[1]
        values = (number + 13 * np.arange(width)) % NUM_CLASSES
        records[name] = values if name == "classes" else -1.0 - values / 64
    return records


def boxes_of(rows: Rows, views: Rows) -> NDArray[np.void]:
    boxes = np.zeros(len(rows), BOX)
    boxes["top"], boxes["left"], boxes["height"], boxes["width"], boxes["flip"] = rows, views, 7, 9, rows % 2
    return boxes


def everything(num_samples: int, num_views: int) -> tuple[Rows, Rows]:
    """Rows and views of all labels, view by view."""
    views, rows = np.divmod(np.arange(num_samples * num_views), num_samples)
    return rows, views


def record(
    folder: Path,
    num_samples: int,
    num_views: int,
    *,
    rows: Rows | None = None,
    views: Rows | None = None,
    seal: bool = True,
) -> RecordedLabels:
    """Record some labels, or all; and open them."""
    index = index_of(num_samples)
    manifest = manifest_of(index, num_views)
    if rows is None or views is None:
        rows, views = everything(num_samples, num_views)
    recorder = LabelRecorder(str(folder), manifest, index)
    recorder.add(rows, views, records_of(manifest, rows, views))
    recorder.close(seal=seal)
    return RecordedLabels.open(str(folder))


def record_until_killed(folder: str, num_samples: int, num_views: int, seed: int) -> None:
    """Record every label again and again in random order, and tell what is committed: place counts on stdout."""
    rng = np.random.default_rng(seed)
    index = index_of(num_samples)
    manifest = manifest_of(index, num_views)
    rows, views = everything(num_samples, num_views)
    while True:
        recorder = LabelRecorder(folder, manifest, index, commit_every_s=60.0)
        order = rng.permutation(len(rows))
        for start in range(0, len(order), 97):
            part = order[start : start + 97]
            recorder.add(rows[part], views[part], records_of(manifest, rows[part], views[part]))
            recorder.commit()
            print(*part.tolist(), flush=True)
            if rng.random() < 0.2:
                break
        recorder.close()


if __name__ == "__main__":
    record_until_killed(sys.argv[1], *(int(argument) for argument in sys.argv[2:5]))
