"""Are recorded labels still what the teacher said? `teacherfarm labels verify DIR`: every checksum, and a random part
asked again.

Changes nothing, but with ``--drop-damaged``.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from teacherfarm.crops.cutting import cut, decode
from teacherfarm.crops.sample_names import text
from teacherfarm.crops.sample_readers import SampleReader, open_samples
from teacherfarm.label_store.manifest import TeacherIdentity
from teacherfarm.label_store.near_copy import local_folder
from teacherfarm.label_store.recorded_labels import RecordedLabels
from teacherfarm.label_store.sealing import drop_damaged
from teacherfarm.protos.faults import LabelsMismatch, UnreadableImage
from teacherfarm.protos.soft_label import SoftLabels
from teacherfarm.protos.teacher_card import GOLDEN_TOLERANCE
from teacherfarm.student.recipes.distill_command import add_teacher_arguments
from teacherfarm.student.recipes.label_drift import drift
from teacherfarm.student.recipes.recorded_stats import counted, open_with_bar

if TYPE_CHECKING:
    from teacherfarm.student.blocking import LabelFuture, TeacherClient

MOST_NAMED = 10
BATCH_CROPS = 64
BATCHES_AHEAD = 4


@dataclass(kw_only=True)
class Asked:
    """What asking again has shown so far. ``differing``: (difference, sample, view), all of them."""

    tolerance: float
    num_labels: int = 0
    worst: float = 0.0
    differing: list[tuple[float, str, int]] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Images that are not the ones that were recorded."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All that :func:`main` reads but ``location``."""
    again = parser.add_argument_group(
        "recorded labels", "with a teacher and the images, a random part is asked again and compared"
    )
    add_teacher_arguments(again, required=False, class_map=False)
    again.add_argument("--data", metavar="PATH", help="the images: a folder of class folders, tar or Parquet files")
    again.add_argument("--share", type=float, default=0.01, metavar="S", help="of the labels (default: 0.01)")
    again.add_argument("--seed", type=int, default=0, metavar="N", help="which of them (default: 0)")
    again.add_argument(
        "--drop-damaged", action="store_true", help="count what is damaged as never recorded: recording fills it"
    )


def main(options: argparse.Namespace) -> int:
    """Print what was found; 0 when all is well, 1 when labels are damaged or differ. Mistakes and faults are raised."""
    if (options.teacher_address is None) != (options.data is None):
        raise ValueError("asking a teacher again takes both --teacher-address ADDRESS and --data PATH (the images)")
    if not 0 < options.share <= 1:
        raise ValueError(f"--share lies above 0 and up to 1, got {options.share:g}")
    if options.drop_damaged and local_folder(options.location) is None:
        raise ValueError(f"--drop-damaged changes recorded labels where they lie, and {options.location} is no folder")
    labels = open_with_bar(options.location)
    blocks_are_well = check_blocks(labels)
    if options.drop_damaged and not blocks_are_well:
        dropped = drop_damaged(labels.directory.root)
        print(f"dropped: {dropped:,} labels count as never recorded; recording again asks them anew")
        labels = open_with_bar(options.location)
    answers_are_well = ask_again(labels, options) if options.teacher_address is not None else True
    return 0 if blocks_are_well and answers_are_well else 1


def check_blocks(labels: RecordedLabels) -> bool:
    """Check every checksum and print what is damaged."""
    shards = labels.content.shards
    total = sum(labels.content.geometry.shard_size(shard.number) for shard in shards)
    with tqdm(total=total, unit=" labels", unit_scale=True, desc="checksums", disable=None) as bar:
        damaged = labels.verify(progress=bar.update)
    named = [str(damage) for damage in damaged] + labels.damaged_journals
    for damage in named[:MOST_NAMED]:
        print(f"damaged: {damage}")
    if len(named) > MOST_NAMED:
        print(f"... and {len(named) - MOST_NAMED} more")
    if len(labels) > labels.num_sealed:
        unsealed = len(labels) - labels.num_sealed
        print(f"journals: {counted(unsealed, 'label')} in {counted(labels.num_journals, 'journal')} are intact")
    if named:
        print(
            f"checksums: {counted(len(named), 'damaged part')}, not used but asked again where a teacher is at hand; "
            f"`teacherfarm labels verify {labels.directory} --drop-damaged` lets recording fill them"
        )
    else:
        print(f"checksums: all of {labels.num_sealed:,} sealed labels are what was written")
    return not named


def ask_again(labels: RecordedLabels, options: argparse.Namespace) -> bool:
    """Ask a random part of the labels again, and print what differs."""
    from teacherfarm.student.blocking import TeacherClient
    from teacherfarm.student.settings import Timeouts

    with TeacherClient(
        options.teacher_address,
        options.teacher,
        api_key=options.api_key,
        digest=options.digest,
        spec=labels.manifest.spec,
        timeouts=Timeouts(answer_s=options.answer_timeout),
        on_starved="raise",
    ) as teacher:
        recorded, live = labels.manifest.teacher, TeacherIdentity.of(teacher.card)
        if recorded.teacher_digest != live.teacher_digest:
            raise LabelsMismatch(
                f"the labels in {labels.directory} have teacher_digest {recorded.teacher_digest!r} ({recorded.name}), "
                f"{options.teacher_address} serves {live.teacher_digest!r} ({live.name}): ask the one that made them"
            )
        precisions = (recorded.precision, live.precision)
        asked = Asked(tolerance=max(GOLDEN_TOLERANCE[precision] for precision in precisions))
        if recorded.artifact_digest != live.artifact_digest:
            print(f"teacher: the same in another file than recorded ({' and '.join(precisions)}), by its digests")
        places = choose(labels, options.share, options.seed)
        with tqdm(total=len(places), unit=" labels", desc="asking again", disable=None) as bar:
            compare_all(labels, teacher, open_samples(options.data), places, asked, bar)
    return tell(asked, options.share)


def choose(labels: RecordedLabels, share: float, seed: int) -> NDArray[np.int64]:
    """Places of a random part of the labels that are there, at least one, sample by sample."""
    size = len(labels.index)
    here = np.flatnonzero(np.unpackbits(labels.present().bits, bitorder="little"))
    if not len(here):
        raise ValueError(f"no label is recorded in {labels.directory}")
    chosen = np.random.default_rng(seed).choice(here, max(1, round(share * len(here))), replace=False)
    ordered: NDArray[np.int64] = chosen[np.lexsort((chosen // size, chosen % size))]
    return ordered


def compare_all(
    labels: RecordedLabels,
    teacher: TeacherClient,
    samples: SampleReader,
    places: NDArray[np.int64],
    asked: Asked,
    bar: tqdm[Any],
) -> None:
    """Cut the crops at ``places``, ask the teacher, and put what differs into ``asked``."""
    waiting: deque[tuple[LabelFuture, NDArray[np.int64]]] = deque()

    def finish_one() -> None:
        future, batch = waiting.popleft()
        compare(labels, future.result(), batch, asked)
        bar.update(len(batch))

    for crops, batch in batches(labels, samples, places, asked):
        waiting.append((teacher.submit(crops), batch))
        if len(waiting) >= BATCHES_AHEAD or teacher.room() < BATCH_CROPS:
            finish_one()
    while waiting:
        finish_one()


def batches(
    labels: RecordedLabels, samples: SampleReader, places: NDArray[np.int64], asked: Asked
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Pixels of at most 64 crops and their places; each image is decoded once. Images that changed are left out."""
    import xxhash

    index, size = labels.index, len(labels.index)
    where = {text(name): number for number, name in enumerate(samples.names)}
    pixels: list[NDArray[np.uint8]] = []
    kept: list[NDArray[np.int64]] = []
    rows, starts = np.unique(places % size, return_index=True)
    for row, mine in zip(rows.tolist(), np.split(places, starts[1:]), strict=True):
        name = index.name(row)
        try:
            data = samples.read(where[name])
        except (KeyError, UnreadableImage):
            data = b""
        if xxhash.xxh3_128_digest(data) != index.hashes[row].tobytes():
            asked.changed.append(name)
            continue
        pixels.append(cut(decode(data, name), boxes_of(labels, row, mine // size), labels.manifest.rendering))
        kept.append(mine)
        while sum(map(len, kept)) >= BATCH_CROPS:
            crops, batch = np.concatenate(pixels), np.concatenate(kept)
            yield crops[:BATCH_CROPS], batch[:BATCH_CROPS]
            pixels, kept = [crops[BATCH_CROPS:]], [batch[BATCH_CROPS:]]
    if sum(map(len, kept)):
        yield np.concatenate(pixels), np.concatenate(kept)


def boxes_of(labels: RecordedLabels, row: int, views: NDArray[np.int64]) -> NDArray[np.void]:
    """The boxes of some views of a sample: by the plan, or those that were recorded."""
    plan, index = labels.manifest.plan, labels.index
    recorded = labels.boxes(np.full(len(views), row), views)
    if recorded is not None:
        return recorded
    assert plan is not None
    return plan.boxes(index.numbers()[row], views, index.heights[row], index.widths[row])


def compare(labels: RecordedLabels, live: SoftLabels, places: NDArray[np.int64], asked: Asked) -> None:
    """Hold the teacher's answers against what was recorded."""
    views, rows = np.divmod(places, len(labels.index))
    recorded = labels.soft_labels(rows, views)
    both = (recorded.weight > 0) & (live.weight > 0)  # a damaged block was told already
    rows, views = rows[both], views[both]
    differences = drift(recorded.take(both), live.take(both))
    asked.num_labels += len(differences)
    asked.worst = max(asked.worst, float(differences.max(initial=0.0)))
    asked.differing += [
        (float(differences[place]), labels.index.name(int(rows[place])), int(views[place]))
        for place in np.flatnonzero(~(differences <= asked.tolerance))
    ]


def tell(asked: Asked, share: float) -> bool:
    """Print the verdict."""
    for difference, name, view in sorted(asked.differing, reverse=True)[:MOST_NAMED]:
        print(f"differs: view {view} of {name} by {difference:.3g}")
    if len(asked.differing) > MOST_NAMED:
        print(f"... and {len(asked.differing) - MOST_NAMED:,} more")
    if asked.changed:
        named = ", ".join(asked.changed[:MOST_NAMED])
        print(f"images: {len(asked.changed)} are missing or not those that were recorded, and were not asked: {named}")
    print(
        f"teacher: {asked.num_labels:,} labels asked again ({share:.2%}), {len(asked.differing):,} differ by more than "
        f"{asked.tolerance:g}, the largest difference is {asked.worst:.2g}"
    )
    well = not asked.differing and not asked.changed and asked.num_labels > 0
    words = "these labels are what this teacher says" if well else "do not train from these labels as they are"
    print(f"verdict: {words}")
    return well
