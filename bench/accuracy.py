"""``python -m bench accuracy``: a student alone and by every method, same budget, several seeds, through a live server.

Each finished run is kept: the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
import tarfile
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from pathlib import Path

from bench.accuracy_cells import (
    Budget,
    Cell,
    Contestant,
    contestants,
    keep_cell,
    read_cell,
    run_cell,
)
from bench.accuracy_table import table, write_page
from bench.farm_process import ROOT, running
from bench.report import say
from teacherfarm.protos.teacher_card import TeacherCard


def main(arguments: Sequence[str]) -> int:
    """Train what is missing, and write the page: 0, or 1 where a run failed."""
    options = parse(arguments)
    from bench.accuracy_teacher import exported_teacher

    data = unpacked(options.data, options.out)
    teacher = exported_teacher(
        options.teacher,
        data,
        options.out,
        size=options.size,
        epochs=options.teacher_epochs,
        threads=cores(),
    )
    budget = Budget(student=options.student, epochs=options.epochs)
    chosen = [one for one in contestants(options.epochs) if not options.only or one.name in options.only]
    keys = {one.name: fingerprint(one, budget, teacher) for one in chosen}
    with served(options.out) as farm:
        answer_bytes = {one.name: bytes_of_answers(one, budget, farm["zmq"]) for one in chosen}
    due = [
        (one, seed)
        for seed in range(options.seeds)
        for one in chosen
        if read_cell(options.out, one.name, seed, keys[one.name]) is None
    ]
    due.sort(key=lambda run: run[0].slow)
    failed: list[str] = []
    say(f"runs     {len(due)} to do, {len(chosen) * options.seeds - len(due)} done; {options.jobs} at a time")
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = [pool.submit(measured, one, seed, budget, data, options.out, keys[one.name]) for one, seed in due]
        try:
            for run in as_completed(runs):
                if (error := run.exception()) is not None:
                    failed.append(str(error))
                    say(f"failed   {error}")
                    continue
                cell = run.result()
                keep_cell(options.out, cell)
                say(f"seed {cell.seed}   {cell.name:10} top-1 {cell.top1:.2%}  {cell.cpu_s:.0f} CPU s")
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    cells: dict[str, list[Cell]] = {}
    for one in chosen:
        kept = [read_cell(options.out, one.name, seed, keys[one.name]) for seed in range(options.seeds)]
        cells[one.name] = [cell for cell in kept if cell is not None]
    found = table(chosen, cells, answer_bytes)
    write_page(options.write, facts(options, budget, teacher, data), found, chosen)
    say(f"\n{found}\n\nwritten  {options.write}")
    for words in failed:
        say(f"failed   {words}")
    return 1 if failed else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench accuracy", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train/CLASS and test/CLASS, or its .tar.gz"
    )
    parser.add_argument("--out", type=Path, required=True, help="where the teacher and every finished run are kept")
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / "ACCURACY.md", help="the page (docs/ACCURACY.md)")
    parser.add_argument("--teacher", default="resnet20", help="of teacherfarm.networks.cifar (default: resnet20)")
    parser.add_argument("--teacher-epochs", type=int, default=12, help="default: 12")
    parser.add_argument("--student", default="cifar:resnet8", help="default: cifar:resnet8")
    parser.add_argument("--size", type=int, default=16, help="of all crops in pixels (default: 16)")
    parser.add_argument("--epochs", type=int, default=4, help="of every student (default: 4)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these contestants, alone among them")
    parser.add_argument("--jobs", type=int, default=cores(), help="runs at a time, each with a server (default: cores)")
    options = parser.parse_args(arguments)
    known = [one.name for one in contestants(1)]
    if unknown := [name for name in options.only if name not in known]:
        parser.error(f"there is no contestant {unknown[0]!r}: {', '.join(known)}")
    if min(options.epochs, options.seeds, options.teacher_epochs, options.jobs) < 1:
        parser.error("epochs, seeds and jobs are at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def unpacked(data: Path, out: Path) -> Path:
    """The folder with train and test; an archive is unpacked once."""
    if data.is_file():
        folder = out / "data"
        if not folder.is_dir():
            part = out / "data.part"
            with tarfile.open(data) as archive:
                archive.extractall(part, filter="data")
            part.rename(folder)
        data = folder
    found = [place for place in (data, *sorted(data.iterdir())) if (place / "train").is_dir()]
    if not found or not (found[0] / "test").is_dir():
        raise SystemExit(f"{data} holds no train and test: expected train/CLASS/IMAGE and test/CLASS/IMAGE")
    return found[0].resolve()


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def served(out: Path) -> AbstractContextManager[dict[str, str]]:
    """A server of the teacher in a process of its own; its addresses."""
    places = ["--grpc=127.0.0.1:0", "--zmq=127.0.0.1:0", "--http=127.0.0.1:0"]
    return running("teacherfarm.teacher_server", [str(out / "models"), *places, "--threads=1", "--log-level=ERROR"])


def measured(one: Contestant, seed: int, budget: Budget, data: Path, out: Path, key: str) -> Cell:
    """One run against a server of its own, and what that received and sent."""
    with served(out) as farm:
        top1, cpu_s = run_cell(one, seed, budget, data=data, address=farm["zmq"], out=out)
        received, sent = payload_bytes(farm["http"])
    return Cell(name=one.name, seed=seed, top1=top1, cpu_s=cpu_s, crop_mb=received / 1e6, answer_mb=sent / 1e6, key=key)


def payload_bytes(address: str) -> tuple[float, float]:
    """What a server received and sent so far, by its own count."""
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        lines = answer.read().decode()
    return (
        sum(float(value) for value in re.findall(r"^teacherfarm_received_bytes_total\S* (\S+)$", lines, re.MULTILINE)),
        sum(float(value) for value in re.findall(r"^teacherfarm_sent_bytes_total\S* (\S+)$", lines, re.MULTILINE)),
    )


def bytes_of_answers(one: Contestant, budget: Budget, address: str) -> float:
    """Of a training crop's answer, on average over the epochs."""
    from teacherfarm.student.methods.registry import find_method
    from teacherfarm.student.recipes.method_options import given_settings, make_settings
    from teacherfarm.student.recipes.methods_catalogue import pair_of

    method = find_method(one.method)
    asked = argparse.Namespace(
        teacher_address=address, teacher="", api_key=None, student=budget.student, student_size=None
    )
    pair = pair_of(asked)
    setup = dataclasses.replace(pair.setup, epochs=budget.epochs, crops_per_image=1, num_samples=1 << 20)
    phases = method.phases(make_settings(method, given_settings(settings_of(one))), setup)
    return sum((phase.end - phase.begin) * pair.bytes_per_crop(phase) for phase in phases) / budget.epochs


def settings_of(one: Contestant) -> argparse.Namespace:
    """A contestant's own options, as the command parses them."""
    from teacherfarm.student.recipes.distill_command import add_arguments

    arguments = ["x", "--out", "x", "--student", "x", "--method", one.method, *one.options]
    parser = argparse.ArgumentParser()
    add_arguments(parser, arguments)
    return parser.parse_args(arguments)


def fingerprint(one: Contestant, budget: Budget, teacher: TeacherCard) -> str:
    """Names the conditions of a run: a cell of others is made anew."""
    conditions = json.dumps([one.method, one.options, dataclasses.asdict(budget), teacher.teacher_digest])
    return hashlib.sha256(conditions.encode()).hexdigest()[:16]


def facts(options: argparse.Namespace, budget: Budget, teacher: TeacherCard, data: Path) -> list[str]:
    """What was trained how."""
    import torch

    from bench.accuracy_teacher import accuracy
    from teacherfarm.crops.sample_readers import open_samples
    from teacherfarm.networks.cifar import make_cifar_network

    model = make_cifar_network(options.teacher, teacher.num_classes)
    model.load_state_dict(torch.load(options.out / "teacher.pt", weights_only=True))
    images = {split: len(open_samples(data / split)) for split in ("train", "test")}
    crops = f"crops of {options.size} pixels and at least {teacher.crop_scale[0]:.0%} of the image"
    found = accuracy(model.eval(), data, size=options.size)
    schedule = f"{budget.epochs} epochs, batches of {budget.batch_crops}, SGD with momentum 0.9"
    rate = f"learning rate {budget.peak_rate:g} falling by a cosine, weight decay {budget.weight_decay:g}"
    return [
        f"data: {data.name}, {images['train']} images to train on, {images['test']} to test; {crops}",
        f"teacher: cifar:{options.teacher}, {options.teacher_epochs} epochs of the same images: {found}",
        f"students: {budget.student}, {schedule}, {rate}",
        f"machine: {cores()} cores, {options.jobs} runs at a time; {time.strftime('%Y-%m-%d')}",
    ]
