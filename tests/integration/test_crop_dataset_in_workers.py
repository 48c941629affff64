"""The crop data set inside real DataLoader workers, by every start method."""

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from teacherfarm.crops.view_schedule import ViewSchedule
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.faults import UnreadableImage
from teacherfarm.student.crop_dataset import CropDataset, collate_crops

RENDERING = Rendering(height=24, width=24)
OPENCVS = Rendering(height=20, width=20, interpolation="area")


def brighter(image):
    return torch.from_numpy(np.asarray(image).copy()).float() * torch.rand(1)


def pictures(number):
    random = np.random.default_rng(0)
    return [(random.integers(0, 256, (40, 50, 3), dtype=np.uint8), index % 3) for index in range(number)]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
# torch itself forks a process that by then has threads; CPython warns of it.
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_workers_give_what_the_main_process_gives_and_follow_set_epoch(method):
    dataset = CropDataset(
        pictures(7),
        teacher_rendering=RENDERING,
        student_rendering=OPENCVS,
        schedule=ViewSchedule(per_visit=2),
        student_transform=brighter,
    )
    here = DataLoader(dataset, batch_size=3, collate_fn=collate_crops)
    there = DataLoader(
        dataset,
        batch_size=3,
        collate_fn=collate_crops,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context=method,
    )
    for epoch in range(2):
        dataset.set_epoch(epoch)
        pairs = list(zip(here, there, strict=True))
        assert len(pairs) == 3
        for expected, batch in pairs:
            assert batch["views"].unique().tolist() == [2 * epoch, 2 * epoch + 1]
            assert batch["keys"] == expected["keys"]
            for name in ("crops", "images", "targets", "weight", "samples", "views"):
                assert torch.equal(batch[name], expected[name])


@pytest.fixture
def opencv_threads():
    """OpenCV's threads run in this process, as after a user's own transforms."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(4)
    cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (1500, 1500))
    yield
    cv2.setNumThreads(before)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_workers_are_forked_from_a_process_that_has_used_opencv(opencv_threads):
    dataset = CropDataset(pictures(4), teacher_rendering=OPENCVS)
    options = {"batch_size": 2, "collate_fn": collate_crops}
    loader = DataLoader(dataset, num_workers=2, multiprocessing_context="fork", timeout=60, **options)
    for expected, batch in zip(DataLoader(dataset, **options), loader, strict=True):
        assert torch.equal(batch["crops"], expected["crops"])


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_an_unreadable_image_reaches_the_training_process_as_the_same_class():
    dataset = CropDataset([b"no image"], teacher_rendering=RENDERING)
    loader = DataLoader(dataset, num_workers=1, collate_fn=collate_crops, multiprocessing_context="fork")
    with pytest.raises(UnreadableImage, match="cannot read 0"):
        next(iter(loader))
