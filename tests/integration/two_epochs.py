"""A training loop as users write it, for test_fork_safety: ``python -m tests.integration.two_epochs`` and HOW,
ADDRESS, MODELS.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import sys
import warnings

import torch
from torch.utils.data import DataLoader, Dataset

from teacherfarm.student import TeacherClient
from teacherfarm.student.labelled_loader import LabelledLoader

SAMPLES, BATCH, EPOCHS = 48, 8, 2


class RandomCrops(Dataset[dict[str, torch.Tensor]]):
    """Crops that depend on their index alone."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        crop = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=generator)
        return {"crops": crop, "index": torch.tensor(index)}


def two_epochs(how: str, address: str, right: bytes, *, persistent: bool, client_first: bool) -> int:
    """How many batches came with the right labels."""
    workers = 2 if how == "fork" else 1  # others import torch anew
    loader = DataLoader(
        RandomCrops(),
        BATCH,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=how,
        persistent_workers=persistent,
    )
    batches = 0
    with contextlib.closing(TeacherClient(address, "tiny")) as teacher:
        if client_first:
            teacher.connect()
        # Otherwise its first use connects, when the workers are there already.
        size = len(right) // SAMPLES
        for _ in range(EPOCHS):
            for batch, labels in LabelledLoader(loader, teacher, lambda batch: batch["crops"]):
                rows = [right[index * size : (index + 1) * size] for index in batch["index"].tolist()]
                assert labels.records.tobytes() == b"".join(rows), "wrong labels"
                batches += 1
        assert teacher.stats.sessions == 1
    return batches


def main(how: str, address: str, models: str) -> None:
    """Every combination for one way of starting workers."""
    torch.set_num_threads(1)
    multiprocessing.set_forkserver_preload(["torch"])
    # A thread beside a fork is what this is about; newer Pythons warn of it.
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
    data = RandomCrops()
    with TeacherClient(f"local://{models}") as teacher:
        right = teacher.label(torch.stack([data[index]["crops"] for index in range(SAMPLES)])).records.tobytes()
    for persistent, client_first in itertools.product((False, True), repeat=2):
        batches = two_epochs(how, address, right, persistent=persistent, client_first=client_first)
        print(f"persistent={persistent} client_first={client_first}: {batches} batches right", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
