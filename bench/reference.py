"""Labels/s of crops that the server cuts itself, by reference, over the same crops sent as raw pixels, on a slow link.

Real: a server and a student in network namespaces of their own, a link of 200 Mbit/s between them, ZeroMQ, the client,
and on the server's side files read, images decoded and crops cut; no decoded image is kept, no label is. Simulated by
time: the teacher, faster than either side. Flattering to pixels: the student's crops are cut beforehand, so that they
cost it nothing. The machine's cores are shared by all, as on no real farm. JPEG crops are shown beside them.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.farm_process import ROOT, running
from bench.interleave import high, ratio
from bench.photographs import write_photographs
from bench.report import Row, finish, say, table
from tests.namespaces import CannotMakeNamespaces, Hosts

DEFAULT_SECONDS = 240.0
MBIT = 200.0
TEACHER_PER_S = 8000.0
TEACHER_BATCH = 64
NUM_IMAGES = 200
DATASET = "photographs"


def run(seconds: float) -> None:
    """Print the table and the JSON line."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_photographs(folder, NUM_IMAGES)
        try:
            hosts = stack.enter_context(Hosts("farm", "student"))
            farm_address, _ = hosts.shaped_link("farm", "student", mbit=MBIT)
        except CannotMakeNamespaces as error:
            raise SystemExit(f"bench reference: {error}; it needs root on Linux, with iproute2") from error
        farm = stack.enter_context(
            running(
                "bench.scripted_farm",
                [
                    f"--largest-batch={TEACHER_BATCH}",
                    f"--crops-per-second={TEACHER_PER_S}",
                    f"--host={farm_address}",
                    f"--dataset={DATASET}={folder}",
                ],
                prefix=hosts.on("farm"),
            )
        )
        student = subprocess.run(
            [
                *hosts.on("student"),
                *(sys.executable, "-m", "bench.reference_student", farm["zmq"], str(folder), DATASET, str(seconds)),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found = json.loads(student.stdout.splitlines()[-1])
    rates, bytes_per_crop = found["rates"], found["bytes_per_crop"]
    speedup = ratio(rates["by reference"], rates["raw pixels"])
    by_jpeg = sorted(rates["JPEG pixels"])[len(rates["JPEG pixels"]) // 2]
    say(
        f"reference: crops of 224 px, 4 of each image, batches of {found['batch_crops']}, a link of {MBIT:g} Mbit/s; a "
        f"simulated teacher of {TEACHER_PER_S:,.0f} crops/s"
    )
    say(
        table(
            [
                Row(name="by reference", rates=rates["by reference"], ratio=speedup),
                Row(name="raw pixels", rates=rates["raw pixels"]),
            ],
            unit="labels/s",
        )
    )
    say(f"the same crops as JPEG, measured afterwards: {by_jpeg:,.0f} labels/s")
    say("bytes a crop, handed to the transport: " + ", ".join(f"{n} {b:,.1f}" for n, b in bytes_per_crop.items()))
    finish(
        {
            "speedup": speedup.value,
            "speedup_spread": speedup.spread,
            "bytes_per_crop": bytes_per_crop["by reference"],
            "labels_per_s": high(rates["by reference"]),
            "labels_per_s_jpeg": by_jpeg,
        }
    )
