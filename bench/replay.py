"""Labels/s from recorded labels in random batches of 1024, over FKD's and TinyViT's files of the same labels.

Everybody reads from the page cache, in one process, and is done when a batch's classes and probabilities stand in
arrays of their own, [1024, k], as a loss takes them. Nobody spreads them over all classes: that would be the same work
for all. Ours are checked against their checksums at first touch; the others have none.

FKD's files hold M crops of one image each, and its data set takes m = 4 random ones of them at a visit; so its batches
are 256 random images. TinyViT's hold 44-byte records, sought one by one; its data set takes each apart by itself, which
is what ``vs_tinyvit`` is measured against. ``vs_seeks`` leaves that out: nothing but the seeks and reads, and the whole
batch taken apart at once. Both with Python's buffer or without, whichever is faster here.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.interleave import RunSlice, fastest, interleave, plan_slices, ratio
from bench.replay_reference import FkdFiles, Labels, TinyVitFiles
from bench.report import Row, finish, say, table
from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.crops.sample_index import SampleIndex
from teacherfarm.label_store.recorded_labels import LabelRecorder, Manifest, RecordedLabels, TeacherIdentity
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.soft_label import LabelSpec

DEFAULT_SECONDS = 60.0
NUM_SAMPLES, NUM_VIEWS = 20_000, 50
NUM_CLASSES = 1000
K = 10
BATCH_LABELS = 1024
NUM_BATCHES = 512
FKD_IMAGES = 4000
"""As many as take a few seconds to write; fewer files are only easier for the file system."""
FKD_CROPS_PER_VISIT = 4
SEARCH_SHARE = 0.1


def run(seconds: float) -> None:
    """Print the table and the JSON line."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_run(seconds, Path(folder)))


async def _run(seconds: float, folder: Path) -> None:
    say(
        f"replay: the {K} best classes of {NUM_SAMPLES:,} images x {NUM_VIEWS} views, random batches of {BATCH_LABELS} "
        "labels, page cache warm\nsimulated: the teacher (random classes)"
    )
    index = some_index(NUM_SAMPLES)
    names = [index.name(row) for row in range(NUM_SAMPLES)]
    classes, log_probabilities = some_labels(NUM_SAMPLES, NUM_VIEWS, K)
    labels = record(folder / "ours", index, classes, log_probabilities)
    figures = {"bytes_per_label": bytes_per_label(labels)}
    small = record(folder / "ours5", index, classes[..., :5], log_probabilities[..., :5])
    figures["bytes_per_label_at_5"] = bytes_per_label(small)
    sizes = f"{figures['bytes_per_label']:.3f} bytes per label at k = {K}, {figures['bytes_per_label_at_5']:.3f} at 5"
    say(f"  ours: {sizes}")
    probabilities = np.exp(log_probabilities.astype(np.float32))
    for name in ("fkd", "tinyvit"):
        (folder / name).mkdir()
    FkdFiles.write(folder / "fkd", classes[:FKD_IMAGES], probabilities[:FKD_IMAGES])
    TinyVitFiles.write(folder / "tinyvit", names, classes, probabilities.astype(np.float16))

    rows, views = random_batches()
    with ExitStack() as stack:

        def tinyvit(buffered: bool, *, at_once: bool) -> RunSlice:
            files = stack.enter_context(closing(TinyVitFiles(folder / "tinyvit", NUM_VIEWS, K, buffered=buffered)))
            read = files.read_at_once if at_once else files.read
            batches = [([names[row] for row in r], v) for r, v in zip(rows.tolist(), views.tolist(), strict=True)]
            return contestant(read, batches)

        def ours(rows: NDArray[np.int64], views: NDArray[np.int64]) -> Labels:
            found = labels.soft_labels(rows, views)
            return found.classes, found.log_probabilities

        images = rows[:, : BATCH_LABELS // FKD_CROPS_PER_VISIT] % FKD_IMAGES
        fkd = FkdFiles(folder / "fkd", FKD_IMAGES, FKD_CROPS_PER_VISIT)
        chosen = {
            "ours": contestant(ours, list(zip(rows, views, strict=True))),
            "FKD's files": contestant(fkd.read, [(batch,) for batch in images.tolist()]),
        }
        for name, at_once in (("TinyViT's files", False), ("bare seeks", True)):
            ways = {how: tinyvit(how == "buffered", at_once=at_once) for how in ("buffered", "unbuffered")}
            best = await fastest(ways, seconds=seconds * SEARCH_SHARE / 2)
            say(f"  {name}: faster {best}")
            chosen[name] = ways[best]
        plan = plan_slices(seconds * (1 - SEARCH_SHARE), len(chosen), shortest_s=0.1, longest_s=0.4)
        rates = await interleave(chosen, rounds=plan.rounds, slice_s=plan.slice_s)
    if labels.damaged:
        raise RuntimeError(f"labels were damaged: {labels.damaged[0]}")
    references = {"vs_fkd": "FKD's files", "vs_tinyvit": "TinyViT's files", "vs_seeks": "bare seeks"}
    found = {figure: ratio(rates["ours"], rates[name]) for figure, name in references.items()}
    rows_of_table = [Row(name="ours", rates=rates["ours"])]
    rows_of_table += [Row(name=name, rates=rates[name], ratio=found[figure]) for figure, name in references.items()]
    say(table(rows_of_table, unit="labels/s"))
    say("ratio: ours over that reference")
    for figure, value in found.items():
        figures |= {figure: value.value, f"{figure}_spread": value.spread}
    finish(figures)


def contestant(read: Callable[..., Labels], batches: Sequence[tuple[object, ...]]) -> RunSlice:
    """Reads batch after batch; labels/s."""
    turn: Iterator[tuple[object, ...]] = itertools.cycle(batches)

    async def run_slice(seconds: float) -> float:
        started_s = time.perf_counter()
        num_labels = 0
        while (passed_s := time.perf_counter() - started_s) < seconds:
            classes, values = read(*next(turn))
            if classes.shape != (BATCH_LABELS, K) or values.shape != (BATCH_LABELS, K):
                raise RuntimeError(f"a batch came as {classes.shape} and {values.shape}")
            num_labels += len(classes)
        return num_labels / passed_s

    return run_slice


def random_batches() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and views [batches, 1024]."""
    rng = np.random.default_rng(1)
    shape = (NUM_BATCHES, BATCH_LABELS)
    return rng.integers(0, NUM_SAMPLES, shape), rng.integers(0, NUM_VIEWS, shape)


def some_labels(num_samples: int, num_views: int, k: int) -> tuple[NDArray[np.uint16], NDArray[np.float16]]:
    """Classes and log-probabilities [samples, views, k], most probable first."""
    rng = np.random.default_rng(0)
    shape = (num_samples, num_views, k)
    log_probabilities = -0.05 - 0.4 * np.arange(k, dtype=np.float16) - rng.random(shape, np.float32).astype(np.float16)
    return rng.integers(0, NUM_CLASSES, shape, np.uint16), log_probabilities.astype(np.float16)


def some_index(num_samples: int) -> SampleIndex:
    """Samples with names as long as ImageNet's."""
    names = np.array([b"n%08d/n%08d_%d" % (row % 1000, row % 1000, row) for row in range(num_samples)])
    return SampleIndex(
        names=names,
        hashes=np.random.default_rng(2).integers(0, 256, (num_samples, 16), np.uint8).view("V16").reshape(-1),
        heights=np.full(num_samples, 375, np.uint32),
        widths=np.full(num_samples, 500, np.uint32),
        targets=np.arange(num_samples) % NUM_CLASSES,
    )


def record(
    folder: Path, index: SampleIndex, classes: NDArray[np.uint16], log_probabilities: NDArray[np.float16]
) -> RecordedLabels:
    """Record labels [samples, views, k], view by view, seal and open them."""
    num_samples, num_views, k = classes.shape
    fields = np.dtype([("classes", "<u2", (k,)), ("log_probabilities", "<f2", (k,))])
    teacher = TeacherIdentity(
        name="random", teacher_digest="0", artifact_digest="0", num_classes=NUM_CLASSES, activation="softmax"
    )
    manifest = Manifest(
        teacher=teacher,
        plan=CropPlan(),
        rendering=Rendering(height=224, width=224),
        spec=LabelSpec(outputs=("labels",), top_k=k),
        views=num_views,
        record_dtype=fields,
        samples=index.digest(),
    )
    rows = np.arange(num_samples)
    with LabelRecorder(str(folder), manifest, index) as recorder:
        for view in range(num_views):
            records = np.empty(num_samples, fields)
            records["classes"], records["log_probabilities"] = classes[:, view], log_probabilities[:, view]
            recorder.add(rows, np.full(num_samples, view), records)
    return RecordedLabels.open(str(folder))


def bytes_per_label(labels: RecordedLabels) -> float:
    """Everything but the index of samples: labels, tables, manifest."""
    files = (
        path for path in labels.directory.root.rglob("*") if path.is_file() and path != labels.directory.samples_path
    )
    return sum(path.stat().st_size for path in files) / len(labels)
