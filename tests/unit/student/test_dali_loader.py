"""What DALI cuts arrives as any other batch; the cutting itself is DALI's, stood in for by the project's own here."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from teacherfarm.crops.cutting import cut, decode
from teacherfarm.crops.view_schedule import ViewSchedule
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.faults import UnreadableImage
from teacherfarm.student.crop_dataset import CropDataset, collate_crops
from teacherfarm.student.dali_loader import DaliLoader
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.shard_sampler import ShardSampler
from tests.unit.student.fake_teacher import FakeTeacher

TEACHER = Rendering(height=8, width=8)
STUDENT = Rendering(height=8, width=10)


def own_cutter(*renderings):
    def cut_all(encoded, boxes_BM):
        pixels = [decode(data) for data in encoded]
        crops = [
            np.stack([cut(image, boxes, rendering) for image, boxes in zip(pixels, boxes_BM, strict=True)], axis=1)
            for rendering in renderings
        ]
        return [torch.from_numpy(crop.reshape(-1, *crop.shape[2:])) for crop in crops]

    return cut_all


@pytest.fixture
def folder(tmp_path):
    for number in range(8):
        file = tmp_path / ("cat", "dog")[number // 4] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    return tmp_path


@pytest.mark.parametrize(
    ("teacher", "student", "cutter"),
    [
        (TEACHER, STUDENT, own_cutter(TEACHER, STUDENT)),
        (TEACHER, None, own_cutter(TEACHER)),
        (None, STUDENT, own_cutter(STUDENT)),
    ],
)
def test_batches_are_those_of_a_data_loader(folder, teacher, student, cutter):
    dataset = CropDataset(
        folder, teacher_rendering=teacher, student_rendering=student, schedule=ViewSchedule(per_visit=2)
    )
    dataset.set_epoch(1)
    order = ShardSampler(dataset, seed=4)
    found = list(DaliLoader(dataset, 3, order, cutter=cutter))
    expected = list(DataLoader(dataset, 3, sampler=order, drop_last=True, collate_fn=collate_crops))
    assert len(found) == len(expected) == len(DaliLoader(dataset, 3, order, cutter=cutter)) == 2
    for one, other in zip(found, expected, strict=True):
        assert one["keys"] == b"", "not the same pixels as anybody else's"
        for name in one.keys() - {"keys"}:
            assert torch.equal(one[name], other[name]), name


def test_labels_come_with_its_batches_and_each_pass_has_its_own(folder):
    dataset = CropDataset(folder, teacher_rendering=TEACHER)
    loader = DaliLoader(dataset, 2, ShardSampler(dataset), cutter=own_cutter(TEACHER))
    labelled = LabelledLoader(loader, FakeTeacher(), lambda batch: batch["crops"])
    orders = []
    for epoch in (0, 1):
        labelled.set_epoch(epoch)
        batches = [batch for batch, labels in labelled if len(labels) == 2]
        assert len(batches) == 4
        assert {view for batch in batches for view in batch["views"].tolist()} == {epoch}
        orders.append([sample for batch in batches for sample in batch["samples"].tolist()])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(8))
    assert orders[0] != orders[1]


def test_an_image_that_dali_cannot_decode_is_named(folder):
    dataset = CropDataset(folder, teacher_rendering=TEACHER)

    def failing(_encoded, _boxes):
        raise RuntimeError("bad huffman code")

    with pytest.raises(UnreadableImage, match=r"a batch with cat/.*bad huffman code"):
        next(iter(DaliLoader(dataset, 2, range(8), cutter=failing)))


def test_without_dali_it_is_said_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ValueError, match="pip install nvidia-dali"):
        DaliLoader(CropDataset(folder, teacher_rendering=TEACHER), 2, range(8))


def test_what_dali_does_not_cut_is_refused(folder):
    with pytest.raises(ValueError, match="no data set by reference"):
        DaliLoader(CropDataset(folder, teacher_rendering=TEACHER, by_reference="x"), 2, range(8))
    pixels = CropDataset([(np.zeros((20, 20, 3), np.uint8), 1)] * 2, teacher_rendering=TEACHER)
    with pytest.raises(ValueError, match="DALI decodes encoded images"):
        next(iter(DaliLoader(pixels, 2, range(2), cutter=own_cutter(TEACHER))))
