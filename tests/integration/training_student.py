"""A student as a process of its own, which trains a small network from soft labels once it is told to go.

``python -m tests.integration.training_student ADDRESS CROPS.npy STEPS`` says "ready", waits for a line, trains, and
says what it had as one line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import time

import numpy as np
import torch
from torch import nn

from teacherfarm.student import TeacherClient
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.losses import soft_cross_entropy

BATCH = 64


def connect_s(address: str) -> float:
    """How long a TCP connection takes: one round trip."""
    host, _, port = address.partition("://")[2].partition("?")[0].rpartition(":")
    began_s = time.monotonic()
    socket.create_connection((host, int(port)), timeout=10).close()
    return time.monotonic() - began_s


def main(address: str, crops_file: str, steps: str) -> None:
    """Train for so many steps over the crops of a file, in order and from the start again."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    crops = np.load(crops_file)
    rows = [np.arange(step * BATCH, (step + 1) * BATCH) % len(crops) for step in range(int(steps))]
    student = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10))
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    seen, losses = hashlib.sha256(), []
    round_trip_s = min(connect_s(address) for _ in range(3))
    with TeacherClient(address) as teacher:
        print("ready", flush=True)
        sys.stdin.readline()
        began_s = time.monotonic()
        batches = [{"crops": crops[chosen]} for chosen in rows]
        for batch, labels in LabelledLoader(batches, teacher, lambda batch: batch["crops"]):
            seen.update(labels.records.tobytes())
            images = torch.from_numpy(batch["crops"]).permute(0, 3, 1, 2).float() / 255
            loss = soft_cross_entropy(student(images), labels, temperature=1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        ended_s, stats = time.monotonic(), teacher.stats
    said = {
        "labels": seen.hexdigest(),
        "losses": losses,
        "began_s": began_s,
        "ended_s": ended_s,
        "round_trip_s": round_trip_s,
        "answered": stats.crops_answered,
        "sessions": stats.sessions,
    }
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
