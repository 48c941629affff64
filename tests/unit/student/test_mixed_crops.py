import pickle

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from teacherfarm.crops.mixing import Mix, mix_crops
from teacherfarm.crops.view_schedule import ViewSchedule
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.faults import ReplayRefused
from teacherfarm.protos.references import CropReferences
from teacherfarm.student.batch_views import BatchViews
from teacherfarm.student.crop_dataset import CropDataset, collate_crops
from teacherfarm.student.mixed_crops import MixedCrops

TEACHER = Rendering(height=24, width=20)
STUDENT = Rendering(height=12, width=10)


def to_float(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def make_dataset(per_visit=3, **arguments):
    random = np.random.default_rng(0)
    images = [(random.integers(0, 256, (30, 40, 3), np.uint8), number % 2) for number in range(8)]
    if "by_reference" in arguments:  # they name encoded images
        images = [(cv2.imencode(".png", pixels)[1].tobytes(), target) for pixels, target in images]
    arguments = {"teacher_rendering": TEACHER, "student_rendering": STUDENT, **arguments}
    return CropDataset(images, schedule=ViewSchedule(per_visit=per_visit), **arguments)


def batch_pair(mixed, dataset=None, images=range(4), epoch=0):
    """The same batch, plain and mixed."""
    dataset = dataset or make_dataset()
    dataset.set_epoch(epoch)
    return collate_crops(dataset.__getitems__(images)), mixed(dataset.__getitems__(images))


@pytest.mark.parametrize("draw", ["fkd", "mixup", "cutmix", "funmatch"])
def test_labels_mixing_mixes_what_the_student_sees_and_nothing_else(draw):
    plain, mixed = batch_pair(MixedCrops("labels", draw, seed=1))
    np.testing.assert_array_equal(mixed["images"].numpy(), mix_crops(plain["images"].numpy(), mixed["mix"]))
    assert not torch.equal(mixed["images"], plain["images"])
    for name in ("crops", "targets", "weight", "samples", "views"):
        torch.testing.assert_close(mixed[name], plain[name], rtol=0, atol=0)
    assert mixed["keys"] == plain["keys"]


@pytest.mark.parametrize("draw", ["mixup", "cutmix"])
def test_floats_of_a_transform_are_mixed_like_pixels(draw):
    _, pixels = batch_pair(MixedCrops("labels", draw, seed=2))
    _, floats = batch_pair(MixedCrops("labels", draw, seed=2), make_dataset(student_transform=to_float))
    assert pixels["mix"] == floats["mix"]
    torch.testing.assert_close(
        floats["images"], pixels["images"].permute(0, 3, 1, 2).float() / 255, rtol=0, atol=0.51 / 255
    )


def test_crops_mixing_shows_both_the_same_mix_and_takes_the_keys_away():
    plain, mixed = batch_pair(MixedCrops("crops", "funmatch", seed=1))
    for name in ("crops", "images"):
        np.testing.assert_array_equal(mixed[name].numpy(), mix_crops(plain[name].numpy(), mixed["mix"]))
    assert mixed["keys"] == b""
    assert mixed["views"].tolist() == [-1] * 12
    assert torch.equal(mixed["samples"], plain["samples"])


def test_labels_of_mixed_crops_are_not_kept_as_those_of_a_view():
    views = BatchViews(
        crops=lambda batch: batch["crops"],
        keys=lambda batch: batch["keys"],
        samples=lambda batch: batch["samples"],
        views=lambda batch: batch["views"],
        weight=None,
        targets=None,
    )
    plain, mixed = batch_pair(MixedCrops("crops", "funmatch", seed=1))
    assert views.question(plain).num_crops == 12
    with pytest.raises(ReplayRefused, match="no view of any sample"):
        views.question(mixed)


def test_a_box_covers_the_same_part_of_both_renderings():
    plain, mixed = batch_pair(MixedCrops("crops", "cutmix", seed=1))
    box = mixed["mix"].box
    changed = (plain["crops"] != mixed["crops"]).any(dim=-1).any(dim=0)
    rows, columns = torch.nonzero(changed.any(dim=1)).flatten(), torch.nonzero(changed.any(dim=0)).flatten()
    assert (rows.min(), rows.max() + 1) == (2 * box.top, 2 * (box.top + box.height))
    assert (columns.min(), columns.max() + 1) == (2 * box.left, 2 * (box.left + box.width))


def test_one_rendering_is_mixed_once():
    _, mixed = batch_pair(MixedCrops("crops", "funmatch"), make_dataset(student_rendering=None))
    assert mixed["images"] is mixed["crops"]
    plain, mixed = batch_pair(MixedCrops("labels", "funmatch"), make_dataset(student_rendering=None))
    assert torch.equal(mixed["crops"], plain["crops"])
    assert not torch.equal(mixed["images"], plain["images"])


@pytest.mark.parametrize("draw", ["selfmix", "selfmix-mixup"])
def test_self_mixing_stays_inside_each_image(draw):
    plain, mixed = batch_pair(MixedCrops("self", draw, seed=4))
    partners = list(mixed["mix"].partner)
    assert torch.equal(plain["samples"][partners], plain["samples"])
    assert partners != list(range(12))
    assert mixed["mix"].kind == ("cutmix" if draw == "selfmix" else "mixup")


def test_a_mix_follows_from_seed_samples_and_views_alone():
    mixed = MixedCrops("labels", "fkd", seed=3)
    first = batch_pair(mixed)[1]["mix"]
    assert batch_pair(pickle.loads(pickle.dumps(mixed)))[1]["mix"] == first
    assert batch_pair(mixed, make_dataset(teacher_rendering=None))[1]["mix"] == first
    assert batch_pair(mixed, epoch=1)[1]["mix"] != first
    assert batch_pair(mixed, images=range(4, 8))[1]["mix"] != first
    assert batch_pair(MixedCrops("labels", "fkd", seed=5))[1]["mix"] != first


def test_a_worker_hands_over_the_same_batches():
    dataset = make_dataset()
    loaders = [
        DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=MixedCrops("crops", "fkd", seed=3))
        for workers in (0, 1)
    ]
    for here, there in zip(*loaders, strict=True):
        assert isinstance(there["mix"], Mix)
        assert there["mix"] == here["mix"]
        for name in ("crops", "images", "weight", "samples"):
            assert torch.equal(there[name], here[name])


def test_what_is_mixed_with_an_unreadable_image_does_not_count():
    images = [(np.full((30, 40, 3), number, np.uint8), 0) for number in range(3)] + [(b"no image", 0)]
    dataset = CropDataset(images, teacher_rendering=TEACHER, on_unreadable="skip")
    _, mixed = batch_pair(MixedCrops("crops", "funmatch"), dataset)
    assert mixed["weight"].tolist() == [0, 1, 1, 0]
    _, mixed = batch_pair(MixedCrops("labels", "funmatch"), dataset)
    assert mixed["weight"].tolist() == [1, 1, 1, 0]


def test_references_are_mixed_by_whoever_cuts_them():
    dataset = make_dataset(by_reference="data")
    plain, mixed = batch_pair(MixedCrops("crops", "cutmix", seed=1, teacher_rendering=TEACHER), dataset)
    crops, box = mixed["crops"], mixed["mix"].box
    assert isinstance(crops, CropReferences)
    assert crops.table.tobytes() == plain["crops"].numpy().tobytes()
    assert crops.mixing["partner"].tolist() == list(mixed["mix"].partner)
    assert set(crops.mixing["height"].tolist()) == {2 * box.height}
    views = BatchViews(
        crops=lambda batch: batch["crops"], keys=None, samples=None, views=None, weight=None, targets=None
    )
    question = views.question(mixed)
    assert question.crops is crops
    assert question.num_crops == 12
    with pytest.raises(ValueError, match="teacher_rendering"):
        batch_pair(MixedCrops("crops", "cutmix", seed=1), dataset)


def test_nothing_to_mix_is_the_plain_batch():
    plain, same = batch_pair(MixedCrops("none", ""))
    assert "mix" not in same
    assert torch.equal(plain["images"], same["images"])


@pytest.mark.parametrize(
    ("mixing", "draw", "words"),
    [("none", "fkd", "give both"), ("labels", "", "give both"), ("self", "cutmix", "inside each image")],
)
def test_mixing_and_draw_must_fit(mixing, draw, words):
    with pytest.raises(ValueError, match=words):
        MixedCrops(mixing, draw)


def test_crops_that_cannot_be_mixed_are_named():
    with pytest.raises(ValueError, match="teacher_rendering None"):
        batch_pair(MixedCrops("crops", "funmatch"), make_dataset(teacher_rendering=None))
    as_bytes = make_dataset(student_transform=lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1))
    with pytest.raises(ValueError, match=r"uint8.*ToTensor"):
        batch_pair(MixedCrops("labels", "fkd"), as_bytes)
