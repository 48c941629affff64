"""``teacherfarm labels import``: other projects' label files into recorded labels of the same images."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.crops.sample_index import SampleIndex, index_dataset
from teacherfarm.crops.sample_readers import open_samples
from teacherfarm.label_store.label_directory import LabelDirectory
from teacherfarm.label_store.manifest import Manifest
from teacherfarm.label_store.recorded_card import write_card
from teacherfarm.label_store.recorded_labels import LabelRecorder
from teacherfarm.protos.crop import CropFormat, Rendering
from teacherfarm.protos.teacher_card import TeacherCard, classes_hash
from teacherfarm.student.recipes.foreign_labels import FkdSource, ForeignLabels, RelabelSource, TinyVitSource

SEEDS_FILE = "seeds.npy"
_MOST_NAMED = 20


def main(options: argparse.Namespace) -> int:
    """Import what :mod:`labels_import_command`'s arguments say; 1 where files were damaged. Raises UnsafeLabelFile."""
    card = teacher_card(options)
    if not options.source.is_dir():
        raise ValueError(f"{options.source} is not a folder of label files")
    index = _index(options.data, options.out)
    source = open_source(options, index, card)
    manifest = Manifest.of(
        card,
        source.spec,
        plan=source.plan,
        rendering=card.rendering,
        views=source.views,
        samples=index.digest(),
        has_boxes=source.has_boxes,
        mixing=source.mixing,
    )
    named = absent = added = 0
    with LabelRecorder(str(options.out), manifest, index) as recorder:
        write_card(options.out, card)
        seeds = _seeds(options.out, manifest) if source.mixing != "none" else None
        rows = _missing(recorder, index, source.views)
        done_before = (len(index) - len(rows)) * source.total // max(1, len(index))
        with tqdm(total=source.total, initial=done_before, desc="importing", unit=source.unit, disable=None) as bar:
            for part in source.parts(manifest.record_dtype, rows):
                recorder.add(part.rows, part.views, part.records, part.boxes)
                if seeds is not None and part.seeds is not None:
                    seeds[part.views, part.rows] = part.seeds
                for problem in part.problems:
                    named += 1
                    if named <= _MOST_NAMED:
                        tqdm.write(f"left out: {problem}" + (" (no more are named)" if named == _MOST_NAMED else ""))
                absent += part.absent
                added += len(part.rows)
                bar.update(part.done)
    print(
        f"imported {added} labels into {options.out}: {source.views} views of {len(index)} images, by {card.name}"
        + (f"; {done_before} {source.unit}s were there already" if done_before else "")
    )
    if absent:
        print(f"{absent} {'keys have no image' if source.mixing != 'none' else 'images have no label file'} there")
    if named:
        print(f"{named} files are damaged and were left out: get them again and start the import once more")
    return 1 if named else 0


def open_source(options: argparse.Namespace, index: SampleIndex, card: TeacherCard) -> ForeignLabels:
    """The files that the options name. Raises ValueError where there are none."""
    if options.kind == "tinyvit":
        return TinyVitSource(options.source, index, card)
    if options.kind == "relabel":
        plan = CropPlan(seed=options.seed, scale=tuple(options.crop_scale))
        return RelabelSource(
            options.source,
            index,
            card,
            plan=plan,
            views=options.views or 50,
            num_kept=options.top_k,
            upright=options.upright,
            threads=options.threads,
        )
    train = options.source / (options.split or "train")
    folder = train if options.split or train.is_dir() else options.source
    return FkdSource(
        folder,
        index,
        card,
        form=options.form,
        views=options.views,
        temperature=options.temperature,
        threads=options.threads,
    )


def teacher_card(options: argparse.Namespace) -> TeacherCard:
    """The given card, or one that says what the options know. Raises ValueError."""
    if options.card is not None:
        card = TeacherCard.from_json(options.card.read_text(encoding="utf-8"))
        if card.activation != "softmax":
            raise ValueError(f"{options.card}: teacher {card.name!r} has no softmax, and such files hold probabilities")
        return card
    classes: tuple[str, ...] = ()
    if options.class_names is not None:
        classes = tuple(options.class_names.read_text(encoding="utf-8").splitlines())
    number = options.num_classes or len(classes)
    if not number:
        raise ValueError("how many classes does the teacher know? Give --num-classes N, --class-names FILE or --card")
    if classes and number != len(classes):
        raise ValueError(f"{options.class_names} names {len(classes)} classes, --num-classes is {number}")
    size = options.teacher_size or (224 if options.kind == "tinyvit" else 475)
    return TeacherCard(
        name=options.teacher_name or options.source.resolve().name,
        teacher_digest="",
        artifact_digest="",
        model_file="",
        crop_format=CropFormat(height=size, width=size),
        rendering=Rendering(height=size, width=size, interpolation="bicubic"),
        num_classes=number,
        activation="softmax",
        features=(),
        classes=classes,
        classes_hash=classes_hash(classes),
    )


def _index(data: str, out: Path) -> SampleIndex:
    """The data set's index; images that have not changed since an earlier import are not read again."""
    kept = LabelDirectory(out)
    known = kept.read_samples(kept.read().manifest) if kept.exists() else None
    samples = open_samples(data)
    with tqdm(total=len(samples), desc="indexing", unit=" images", disable=None) as bar:

        def advance(done: int) -> None:
            bar.update(done)

        return index_dataset(samples, known=known, progress=advance)


def _missing(recorder: LabelRecorder, index: SampleIndex, views: int) -> NDArray[np.int64]:
    """Rows of images that can be cut and whose last view is not recorded yet: views of an image come together."""
    rows = np.flatnonzero(index.heights)
    return rows[~recorder.present(rows, np.full(len(rows), views - 1))]


def _seeds(out: Path, manifest: Manifest) -> NDArray[np.int32]:
    path = out / SEEDS_FILE
    if path.exists():
        kept: NDArray[np.int32] = np.load(path, mmap_mode="r+")
        return kept
    num_samples = len(LabelDirectory(out).read_samples(manifest))
    seeds = np.lib.format.open_memmap(path, "w+", np.dtype("<i4"), (manifest.views, num_samples))
    seeds[:] = -1
    return seeds
