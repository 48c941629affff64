"""A whole server whose teacher is no model: zeros, at once or at a given pace. For wire, stall and fairness."""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from teacherfarm.protos.allocator import keep_large_buffers
from teacherfarm.protos.crop import CropFormat, Rendering
from teacherfarm.protos.teacher_card import GOLDEN_FILE, TeacherCard
from teacherfarm.teacher_server.backends.scripted_backend import ScriptedBackend
from teacherfarm.teacher_server.farm.model_directory import ExportedTeacher
from teacherfarm.teacher_server.server import Server
from teacherfarm.teacher_server.settings import ServerSettings

TEACHER = "simulated"
SIZE = 224
NUM_CLASSES = 1000


def make_card(size: int = SIZE) -> TeacherCard:
    """A classifier of square crops into 1000 classes, as it would stand on disk."""
    return TeacherCard(
        name=TEACHER,
        teacher_digest="0" * 64,
        artifact_digest="0" * 64,
        model_file="none",
        crop_format=CropFormat(height=size, width=size),
        rendering=Rendering(height=size, width=size),
        num_classes=NUM_CLASSES,
        activation="softmax",
        features=(),
    )


def make_server(
    folder: Path,
    *,
    largest_batch: int,
    crops_per_second: float,
    size: int = SIZE,
    projects: str = "",
    host: str = "127.0.0.1",
    datasets: Sequence[str] = (),
) -> Server:
    """A server on free ports; ``crops_per_second`` 0 answers at once. ``folder`` takes a golden file, and
    the indexes of ``datasets`` (NAME=PATH).
    """
    card = make_card(size)
    # Zeros for log-probabilities are the even distribution.
    even = np.full((1, NUM_CLASSES), 1 / NUM_CLASSES, np.float32)
    np.savez(folder / GOLDEN_FILE, crops=np.zeros((1, size, size, 3), np.uint8), probabilities=even)
    return Server(
        ServerSettings(
            grpc=f"{host}:0",
            zmq=f"{host}:0",
            http="off",
            projects=projects,
            allow_plaintext=host != "127.0.0.1",
            dataset=tuple(datasets),
            dataset_cache=str(folder),
        ),
        make_backend=lambda _, card: ScriptedBackend(
            card,
            seconds_per_crop=1 / crops_per_second if crops_per_second else 0.0,
            largest_batch=largest_batch,
        ),
        teachers=[ExportedTeacher(name=TEACHER, folder=folder, card=card)],
    )


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m bench.scripted_farm", description=__doc__)
    parser.add_argument("--largest-batch", type=int, required=True)
    parser.add_argument("--crops-per-second", type=float, default=0.0, help="the teacher's pace (0: answers at once)")
    parser.add_argument("--size", type=int, default=SIZE, help="of its square crops, in pixels")
    parser.add_argument("--projects", default="", help="as serve's")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen")
    parser.add_argument("--dataset", action="append", default=[], help="as serve's")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    keep_large_buffers()
    with tempfile.TemporaryDirectory() as folder:
        server = make_server(
            Path(folder),
            largest_batch=options.largest_batch,
            crops_per_second=options.crops_per_second,
            size=options.size,
            projects=options.projects,
            host=options.host,
            datasets=options.dataset,
        )
        asyncio.run(server.run_until_signalled(lambda ready: print("ready", *ready.addresses(), flush=True)))


if __name__ == "__main__":
    main()
