"""What the loader benchmark's figure rests on: equal work on both sides, of files like ImageNet's."""

import asyncio

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import functional

from bench import loader
from bench.photographs import FILE_BYTES, SIDES, write_photographs
from teacherfarm.crops.crop_plan import CropPlan, crop_boxes
from teacherfarm.crops.cutting import cut, decode, image_size


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    write_photographs(root, 12)
    return sorted(root.glob("*/*.jpg"))


def test_files_are_like_those_of_imagenet(files, tmp_path):
    assert {image_size(file.read_bytes()) for file in files} == {SIDES, SIDES[::-1]}
    assert abs(np.mean([file.stat().st_size for file in files]) / FILE_BYTES - 1) < 0.1
    assert len({file.read_bytes() for file in files}) == len(files)
    write_photographs(tmp_path, 3)
    assert [file.read_bytes() for file in sorted(tmp_path.glob("*/*.jpg"))] == [f.read_bytes() for f in files[:3]]


def test_one_box_has_the_same_pixels_on_either_side(files):
    pixels = decode(files[0].read_bytes())
    boxes = CropPlan(flip_probability=0.0).boxes([0], range(4), *pixels.shape[:2])
    (random_resized_crop, *_) = loader.reference_transform().transforms
    for crop, box in zip(cut(pixels, boxes, loader.TEACHER), crop_boxes(boxes), strict=True):
        theirs = functional.resized_crop(
            Image.open(files[0]),
            *(box.top, box.left, box.height, box.width),
            random_resized_crop.size,
            random_resized_crop.interpolation,
            random_resized_crop.antialias,
        )
        np.testing.assert_array_equal(crop, np.asarray(theirs))


def batch_of(batches):
    dataset, indices = batches.dataset, next(iter(batches.batch_sampler))
    fetch = getattr(dataset, "__getitems__", lambda indices: [dataset[index] for index in indices])
    return batches.collate_fn(fetch(indices))


def test_both_sides_hand_over_as_many_crops_in_a_batch(files):
    folder = files[0].parents[1]
    ours, theirs = batch_of(loader.crop_loader(folder, 4))["crops"], batch_of(loader.reference_loader(folder))[0]
    assert ours.shape == (loader.BATCH_CROPS, loader.SIZE, loader.SIZE, 3)
    assert theirs.shape == (loader.BATCH_CROPS, 3, loader.SIZE, loader.SIZE)
    assert ours.dtype == theirs.dtype == torch.uint8


def test_batches_go_through_all_images_again_and_again():
    sampler = loader.SomeBatches(num_images=10, batch_images=4)
    assert len(list(sampler)) == loader.FIRST_BATCHES * loader.WORKERS
    sampler = loader.SomeBatches(num_images=10, batch_images=4)
    sampler.num_batches = 2
    drawn = [index for _ in range(5) for batch in sampler for index in batch]
    assert [sorted(drawn[start : start + 10]) for start in range(0, 40, 10)] == [list(range(10))] * 4


def test_a_slice_is_as_many_batches_for_each_worker():
    batches = DataLoader(list(range(10)), batch_sampler=loader.SomeBatches(10, 4))
    rate = asyncio.run(loader.slices(batches)(0.05))
    wanted = 0.05 * rate / loader.BATCH_CROPS
    assert batches.batch_sampler.num_batches % loader.WORKERS == 0
    assert abs(batches.batch_sampler.num_batches - wanted) <= max(loader.WORKERS, 0.01 * wanted)
