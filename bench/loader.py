"""Crops/s that ``crop_dataset`` cuts from JPEG files, four per decoded image, over torchvision's ImageFolder and
RandomResizedCrop, which cut one.

Fair, because both sides read the same files in a random order, by a DataLoader with as many workers, hand over batches
of as many uint8 crops, and make their pixels alike: the box is resized by Pillow, bilinear and antialiased, so that one
box gives the same bits on either side. A slice is a pass of equally many batches for each worker, which all begin idle.
What differs is what ``crop_dataset`` is for: one decoding for several crops, by simplejpeg; boxes by the plan; crops
cut straight into the batch's memory. It also makes the keys, which ImageFolder has not. Its speed at one crop per image
is shown beside it. Nothing is simulated; the files lie in the page cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from bench.interleave import RunSlice, interleave, plan_slices, ratio
from bench.photographs import write_photographs
from bench.report import Row, finish, say, table
from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.crops.view_schedule import ViewSchedule
from teacherfarm.protos.allocator import keep_large_buffers
from teacherfarm.protos.crop import Rendering
from teacherfarm.student.crop_dataset import CropDataset, collate_crops

if TYPE_CHECKING:
    from torchvision.transforms import Compose

DEFAULT_SECONDS = 240.0
SIZE = 224
BATCH_CROPS = 128
"""What each GPU got in FKD's runs."""
VIEWS = 4
NUM_IMAGES = 200
WORKERS = len(os.sched_getaffinity(0))
FIRST_BATCHES = 2
"""For each worker, in a slice before any that counts; then as many as the last slice's rate gives."""

TEACHER = Rendering(height=SIZE, width=SIZE)
STUDENT = Rendering(height=SIZE, width=SIZE, interpolation="bicubic")
"""For the second figure: as large as the teacher's, and dearer."""
REFERENCE = "ImageFolder + RandomResizedCrop"


def run(seconds: float, data: str = "") -> None:
    """Print the table and the JSON line; ``data``: a folder of class folders instead of the made photographs."""
    keep_large_buffers()
    with contextlib.ExitStack() as stack:
        if not data:
            data = stack.enter_context(tempfile.TemporaryDirectory())
            write_photographs(Path(data), NUM_IMAGES)
        asyncio.run(_run(seconds, data))


async def _run(seconds: float, data: str) -> None:
    ours = {
        f"m = {VIEWS}": crop_loader(data, VIEWS),
        f"m = {VIEWS}, the student sees bicubic": crop_loader(data, VIEWS, STUDENT),
        "m = 1": crop_loader(data, 1),
    }
    names = list(ours)
    num_files = sum(1 for file in Path(data).glob("*/*") if file.is_file())
    loaders = ours | {REFERENCE: reference_loader(data)}
    say(
        f"loader: {num_files:,} JPEG files, {WORKERS} workers, batches of {BATCH_CROPS} crops of "
        f"{SIZE} px, uint8; m: crops of one decoded image. Where the student sees another rendering, a crop is the pair"
    )
    contestants = {name: slices(loader) for name, loader in loaders.items()}
    plan = plan_slices(seconds, len(contestants), shortest_s=1.0, longest_s=2.0)
    rates = await interleave(contestants, rounds=plan.rounds, slice_s=plan.slice_s)
    ratios = {name: ratio(rates[name], rates[REFERENCE]) for name in names}
    rows = [Row(name=f"crop_dataset, {name}", rates=rates[name], ratio=ratios[name]) for name in names]
    say(table([*rows, Row(name=REFERENCE, rates=rates[REFERENCE])]))
    figures = dict(zip(("ratio", "ratio_two_renderings", "ratio_one_crop"), ratios.values(), strict=True))
    finish(
        {name: found.value for name, found in figures.items()}
        | {f"{name}_spread": found.spread for name, found in figures.items()}
    )


class SomeBatches(Sampler[list[int]]):
    """``num_batches`` batches of indices a pass; the passes go through the images in random order, again and again."""

    def __init__(self, num_images: int, batch_images: int) -> None:
        self.num_batches = FIRST_BATCHES * WORKERS
        self._batch_images = batch_images
        random = np.random.default_rng(0)
        orders = (random.permutation(num_images).tolist() for _ in itertools.count())
        self._indices = itertools.chain.from_iterable(orders)

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.num_batches):
            yield list(itertools.islice(self._indices, self._batch_images))


def crop_loader(data: str | Path, views: int, student: Rendering | None = None) -> DataLoader[Any]:
    """``views`` crops of each image; the same boxes again by the student's rendering where it is given."""
    dataset = CropDataset(
        data,
        teacher_rendering=TEACHER,
        student_rendering=student,
        plan=CropPlan(seed=1),
        schedule=ViewSchedule(per_visit=views),
    )
    return _loader(dataset, BATCH_CROPS // views, collate_crops)


def reference_loader(data: str | Path) -> DataLoader[Any]:
    """What a training script without a teacher would cut, but for the conversion to float."""
    from torchvision.datasets import ImageFolder

    return _loader(ImageFolder(data, reference_transform()), BATCH_CROPS, None)


def reference_transform() -> Compose:
    """torchvision's own settings throughout."""
    from torchvision import transforms

    return transforms.Compose(
        [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    )


def _loader(dataset: Any, batch_images: int, collate: Callable[..., Any] | None) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=SomeBatches(len(dataset), batch_images),
        num_workers=WORKERS,
        persistent_workers=True,
        collate_fn=collate,
    )


def slices(loader: DataLoader[Any]) -> RunSlice:
    """A loader as a contestant; each slice sets how many batches the next one has."""
    sampler, visits = loader.batch_sampler, itertools.count()
    assert isinstance(sampler, SomeBatches)

    async def run_slice(seconds: float) -> float:
        if isinstance(loader.dataset, CropDataset):
            loader.dataset.set_epoch(next(visits))
        started_s = time.perf_counter()
        num_batches = sum(1 for _ in loader)
        batches_per_s = num_batches / (time.perf_counter() - started_s)
        # As many for each worker, so that none is idle at the end.
        sampler.num_batches = max(1, round(seconds * batches_per_s / WORKERS)) * WORKERS
        return batches_per_s * BATCH_CROPS

    return run_slice
