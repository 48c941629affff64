"""Labels a whole data set beforehand: teacherfarm label DATA --teacher-address ... --out DIR.

Goes image by image, records what comes, and says at the end what it has and how to train from it.
"""

from __future__ import annotations

import argparse
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from teacherfarm.label_store.label_directory import JOURNALS, SHARDS, LabelDirectory
from teacherfarm.label_store.recorded_labels import RecordedLabels
from teacherfarm.student.recipes.distill_data import num_workers
from teacherfarm.student.recipes.folders import training_images
from teacherfarm.student.recipes.interrupts import StopWish
from teacherfarm.student.recipes.kept_labels import advance
from teacherfarm.student.recipes.label_command import add_arguments
from teacherfarm.student.recipes.label_job import Job, Labelling
from teacherfarm.student.recipes.label_ray import label_by_ray, seal_when_ended
from teacherfarm.student.recipes.work_meter import WorkMeter

STOPPED = 130


def main(options: argparse.Namespace) -> int:
    """Run the command: 0 when all is labelled, 1 when something is missing, 130 when it was asked to stop."""
    job, part = Job.of(options), Part.parse(options.part)
    with open_labelling(job) as labelling:
        card, samples = labelling.teacher.card, part.of(len(labelling.source))
        print(f"teacher  {card.name}: {card.num_classes or 'no'} classes, digest {card.teacher_digest[:12]}")
        print(f"data     {labelling.source.where}: {len(samples)} of {len(labelling.source)} images, {job.views} views")
        todo = labelling.todo(samples)
        due, before = len(todo.samples) * job.views, todo.count()
        if before:
            print(f"going on {before} of {due} labels are there already")
        began_s = time.monotonic()
        with StopWish() as wish, WorkMeter("labelling", total=due, done_before=before, unit="label") as meter:
            if before == due:
                came = 0
            elif options.engine == "ray":
                actors = num_workers(options)
                came = label_by_ray(
                    job, todo, actors=actors, address=options.ray_address, progress=meter, stop=lambda: wish.noted
                )
            else:
                came = labelling.label(todo, workers=num_workers(options), progress=meter, stop=lambda: wish.noted)
        took_s = max(time.monotonic() - began_s, 1e-9)
        labelling.close(seal=not wish.noted)
        if options.engine == "ray":
            seal_when_ended(job.out)
    if wish.noted:
        print(f"stopped after {came} labels; the same command goes on from there")
        return STOPPED
    return report(options, came, took_s, due_here=due)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The ``number``-th of ``count`` parts, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Raises ValueError."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise ValueError(f"--part is I/N with I from 1 to N, for example 1/4; got {text!r}")
        return cls(number=int(number), count=int(count))

    def of(self, num_samples: int) -> NDArray[np.int64]:
        """This part's samples: neighbours, which lie in the same files."""
        return np.array_split(np.arange(num_samples), self.count)[self.number - 1]


def open_labelling(job: Job) -> Labelling:
    """Connect and open; a new directory reads the data set once to index it, with a bar."""
    new = not LabelDirectory(job.out).exists()
    with logging_redirect_tqdm(), tqdm(desc="indexing", unit=" images", disable=None if new else True) as bar:
        return Labelling(job, indexing=advance(bar))


def report(options: argparse.Namespace, came: int, took_s: float, *, due_here: int) -> int:
    """Say what there is now, and how to train from it; 0 when this part is whole."""
    labels = RecordedLabels.open(options.out)
    total, there = len(labels.index) * labels.manifest.views, len(labels)
    files = [file for folder in (SHARDS, JOURNALS) for file in Path(options.out, folder).iterdir()]
    size = sum(file.stat().st_size for file in files)
    each = f", {size / there:.2f} bytes each ({size / 1e6:.1f} MB)" if there == total else ""
    print(f"labels   {there} of {total} in {options.out}{each}")
    if came:
        print(f"speed    {came} labels in {took_s:.1f} s: {came / took_s:.0f} labels/s")
    unreadable = labels.index.unreadable()
    if len(unreadable):
        named = ", ".join(labels.index.name(int(row)) for row in unreadable[:5])
        print(f"left out {len(unreadable)} images that cannot be read: {named}{', ...' if len(unreadable) > 5 else ''}")
    if there < total - len(unreadable) * labels.manifest.views:
        if options.part == "1/1":
            print("missing  some images could not be labelled (see above); the same command asks for them again")
            return 1
        print("missing  other parts are not done yet")
    if labels.num_sealed < there:
        print("unsealed another process still writes; the last one to finish seals all of it")
    print(f"train    {train_command(options, labels.manifest.views)}")
    return 0


def train_command(options: argparse.Namespace, views: int) -> str:
    """The distill command that replays these labels."""
    data = Path(options.data)
    folder = ""
    if training_images(options.data, options.train_folder) == options.data:
        data, name = data.parent, data.name
        folder = "" if name == "train" else f" --train-folder {shlex.quote(name)}"
    crops = " --crops-per-image 4" if views >= 4 else ""
    return (
        f"teacherfarm distill {shlex.quote(str(data))}{folder} --labels {shlex.quote(options.out)} "
        f"--student torchvision:resnet18 --out runs/first{crops}"
    )


__all__ = ["add_arguments", "main"]
