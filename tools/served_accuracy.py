"""Labels an ImageNet sample through both wires and in process, and compares with PyTorch and with the truth.

``python -m tools.served_accuracy DATA.tar MODELS``: a tar of images with ``labels.csv`` (file, imagenet_class, word),
and a directory with efficientnet-lite0 exported. Not a test: it needs the images.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from teacherfarm.student import TeacherClient
from tests.farm_process import FarmProcess
from tests.lite0 import evaluation_crop, lite0, probabilities

TEACHER = "efficientnet-lite0"
TEMPERATURES = (1.0, 4.0)
TOLERANCE = 1e-3


def read_sample(tar: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Evaluation crops and true classes."""
    with tarfile.open(tar) as archive:
        files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        listing = next(name for name in files if name.endswith("labels.csv"))
        root = listing.removesuffix("labels.csv")
        text = files[listing]
        assert text is not None
        rows = list(csv.DictReader(io.StringIO(text.read().decode())))
        crops = [evaluation_crop(files[row["file"] if row["file"] in files else root + row["file"]]) for row in rows]
    return np.stack(crops), np.array([int(row["imagenet_class"]) for row in rows])


def main() -> int:
    """Print the table; 1 when a transport's labels are not PyTorch's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    crops, truth = read_sample(options.data)
    module = lite0()
    expected = {temperature: probabilities(module, crops, temperature) for temperature in TEMPERATURES}
    best = expected[1.0].argmax(axis=1)
    print(f"{len(crops)} images; PyTorch's top-1 {np.mean(best == truth):.1%}")
    print(f"{'transport':10} {'top-1':>7} {'top-1 as PyTorch':>17} {'max |dp| T=1':>13} {'max |dp| T=4':>13}")
    same = True
    with tempfile.TemporaryDirectory() as folder, FarmProcess(Path(folder), options.models) as farm:
        for address in (farm.zmq, farm.grpc, f"local://{options.models}"):
            with TeacherClient(address, TEACHER) as teacher:
                labels = teacher.label(crops)
            differences = [float(np.abs(labels.probabilities(t) - expected[t]).max()) for t in TEMPERATURES]
            equal = int((labels.top1 == best).sum())
            same = same and equal == len(crops) and max(differences) <= TOLERANCE
            figures = " ".join(f"{difference:13.2e}" for difference in differences)
            accuracy = float(np.mean(labels.top1 == truth))
            print(f"{address.partition(':')[0]:10} {accuracy:7.1%} {equal:9} of {len(crops)} {figures}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
