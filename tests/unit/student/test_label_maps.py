import os

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from teacherfarm.crops.crop_plan import CropPlan, sample_number
from teacherfarm.crops.view_schedule import ViewSchedule
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.faults import BadLabelFile, LabelsMissing
from teacherfarm.student.crop_dataset import CropDataset, collate_crops
from teacherfarm.student.label_maps import LabelMapTeacher
from teacherfarm.student.labelled_loader import LabelledLoader
from tests.methods import make_card
from tests.unit.label_store.test_relabel_files import relabel, some_map

NUM_CLASSES, HEIGHT, WIDTH = 12, 30, 44
CARD = make_card(num_classes=NUM_CLASSES)
PLAN = CropPlan(seed=5)


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    for number in range(6):
        path = tmp_path / "images" / f"c{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
        target = tmp_path / "maps" / path.parent.name / f"{number}.pt"
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save([*some_map(number, num_classes=NUM_CLASSES)], target)
    return tmp_path


def make_dataset(data):
    return CropDataset(
        data / "images",
        teacher_rendering=None,
        student_rendering=Rendering(height=8, width=8),
        plan=PLAN,
        schedule=ViewSchedule(per_visit=2),
        on_unreadable="skip",
    )


def run_through(data, *, epoch=0, workers=0, **arguments):
    dataset = make_dataset(data)
    loader = LabelledLoader(
        DataLoader(dataset, batch_size=3, shuffle=True, num_workers=workers, collate_fn=collate_crops),
        LabelMapTeacher(data / "maps", dataset, CARD, **arguments),
        samples=lambda batch: batch["samples"],
        views=lambda batch: batch["views"],
        weight_view=lambda batch: batch["weight"],
    )
    loader.set_epoch(epoch)
    try:
        return list(loader)
    finally:
        loader.teacher.close()


def due_label(data, sample, view, **arguments):
    name = make_dataset(data).source.name(sample)
    box = PLAN.box(sample_number(name), view, HEIGHT, WIDTH)
    fractions = [[box.top / HEIGHT, box.left / WIDTH, box.height / HEIGHT, box.width / WIDTH]]
    values, classes = torch.load(data / "maps" / f"{name}.pt")
    return relabel(values, classes, fractions, num_classes=NUM_CLASSES, **arguments)[0].numpy()


@pytest.mark.parametrize("workers", [0, 1])
def test_fresh_crops_of_every_pass_have_the_labels_of_relabels_training(data, workers):
    views = set()
    for epoch in range(2):
        for batch, labels in run_through(data, epoch=epoch, workers=workers):
            assert (labels.weight == 1).all()
            for row, (sample, view) in enumerate(zip(batch["samples"].tolist(), batch["views"].tolist(), strict=True)):
                views.add((sample, view))
                np.testing.assert_allclose(labels.probabilities()[row], due_label(data, sample, view), atol=2e-3)
    assert len(views) == 6 * 4


def test_maps_may_lie_upright(data):
    ((batch, labels), *_) = run_through(data, upright=True)
    sample, view = batch["samples"][0].item(), batch["views"][0].item()
    np.testing.assert_allclose(labels.probabilities()[0], due_label(data, sample, view, swapped=False), atol=2e-3)
    assert np.abs(labels.probabilities()[0] - due_label(data, sample, view)).max() > 0.01


def test_an_image_without_a_map_is_named_or_does_not_count(data):
    os.remove(data / "maps" / "c0" / "2.pt")
    with pytest.raises(LabelsMissing, match=r"'c0/2' has no label map, expected .*c0/2\.pt"):
        run_through(data)
    missing = [name.startswith("c0/2") for name in map(make_dataset(data).source.name, range(6))].index(True)
    for batch, labels in run_through(data, on_missing="skip"):
        assert labels.weight.tolist() == (batch["samples"] != missing).float().tolist()


def test_an_unreadable_image_does_not_count(data):
    (data / "images" / "c0" / "2.png").write_bytes(b"no image")
    weights = torch.cat([torch.from_numpy(labels.weight) for _, labels in run_through(data)])
    assert weights.sum() == 10


def test_a_map_of_other_classes_is_refused(data):
    torch.save([*some_map(0, num_classes=40)], data / "maps" / "c0" / "2.pt")
    with pytest.raises(BadLabelFile, match=r"lie in 0\.\.11"):
        run_through(data)


def test_a_folder_of_something_else_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"no label map of any of 6 images in .*expected .*c0/0\.pt"):
        LabelMapTeacher(tmp_path, make_dataset(data), CARD)
