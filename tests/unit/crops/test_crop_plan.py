import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacherfarm.crops.crop_plan import BOX, CropPlan, box_array, crop_boxes, sample_number, sample_numbers
from teacherfarm.protos.crop import CropBox

GOLDEN = [
    # sample, view, image height, image width -> top, left, height, width, flip
    ((11932166196373079273, 0, 375, 500), (39, 6, 213, 225, True)),
    ((0, 0, 375, 500), (1, 53, 351, 344, False)),
    ((1, 3, 500, 333), (106, 15, 341, 273, False)),
    ((2**64 - 1, 2**32 - 1, 32, 32), (2, 11, 13, 11, False)),
    # No box of an allowed ratio and an area of 8 % fits: the central one.
    ((7, 1, 10, 400), (0, 193, 10, 13, True)),
    ((7, 2, 400, 10), (193, 0, 13, 10, False)),
]


@pytest.mark.parametrize(("crop", "box"), GOLDEN)
def test_golden_boxes(crop, box):
    top, left, height, width, flip = box
    expected = CropBox(top=top, left=left, height=height, width=width, flip=flip)
    assert CropPlan(seed=42).box(*crop) == expected


def test_golden_box_of_unusual_settings():
    plan = CropPlan(seed=2**63 + 5, scale=(0.2, 0.9), ratio=(0.5, 2.0), flip_probability=0.25)
    assert plan.box(123456789, 77, 1080, 1920) == CropBox(top=32, left=452, height=840, width=1249)


def test_golden_digest_of_ten_thousand_boxes():
    samples = np.arange(10_000, dtype=np.uint64)
    boxes = CropPlan(seed=3).boxes(samples, np.arange(10_000) % 50, 375, 500)
    assert boxes.dtype == BOX
    assert hashlib.sha256(boxes.tobytes()).hexdigest() == (
        "f0c7a68272d96c8ff34dc8e8f5cd4bfb9fb53f5788bab13eb358e8e30b915f51"
    )


def test_sample_numbers_are_a_stable_hash_of_names():
    assert sample_number("n01440764/n01440764_18.JPEG") == 11932166196373079273
    names = ["a", "b/c.png", "\N{LATIN SMALL LETTER E WITH ACUTE}"]
    assert sample_numbers(names).tolist() == [sample_number(name) for name in names]


def test_many_boxes_equal_one_by_one():
    plan = CropPlan(seed=9)
    heights, widths = np.array([20, 400, 30]), np.array([600, 300, 31])
    boxes = plan.boxes(np.array([[1], [2], [3]], np.uint64), np.arange(5), heights[:, None], widths[:, None])
    assert boxes.shape == (3, 5)
    for row in range(3):
        for view in range(5):
            one = plan.box(row + 1, view, int(heights[row]), int(widths[row]))
            assert crop_boxes(boxes[row, view : view + 1]) == [one]


@given(
    seed=st.integers(0, 2**64 - 1),
    sample=st.integers(0, 2**64 - 1),
    view=st.integers(0, 2**32 - 1),
    height=st.integers(1, 65535),
    width=st.integers(1, 65535),
    attempts=st.integers(1, 11),
)
def test_boxes_lie_inside_the_image(seed, sample, view, height, width, attempts):
    box = CropPlan(seed=seed, attempts=attempts).box(sample, view, height, width)
    assert box.height >= 1
    assert box.width >= 1
    assert box.top + box.height <= height
    assert box.left + box.width <= width


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (300, 450, (0.08, 1.0), (3 / 4, 4 / 3)),
        (96, 64, (0.25, 1.0), (1 / 2, 2.0)),
        # Most first attempts do not fit, and some crops have none that does.
        (100, 230, (0.5, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_distribution_is_that_of_random_resized_crop(height, width, scale, ratio):
    import torch
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    num = 4000
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [*scale], [*ratio]) for _ in range(num)], np.float64)
    boxes = CropPlan(seed=1, scale=scale, ratio=ratio).boxes(np.arange(num, dtype=np.uint64), 0, height, width)
    ours = np.stack([boxes[name].astype(np.float64) for name in ("top", "left", "height", "width")], axis=1)
    columns = {
        "area": lambda box: box[:, 2] * box[:, 3],
        "log ratio": lambda box: np.log(box[:, 3] / box[:, 2]),
        "top": lambda box: box[:, 0] / np.maximum(height - box[:, 2], 1),
        "left": lambda box: box[:, 1] / np.maximum(width - box[:, 3], 1),
    }
    # Two samples of one distribution differ by more than this (Kolmogorov and Smirnov) once in 10 000 times.
    limit = 2.23 * np.sqrt(2 / num)
    for name, column in columns.items():
        a, b = np.sort(column(ours)), np.sort(column(theirs))
        grid = np.concatenate([a, b])
        distance = np.abs(np.searchsorted(a, grid, side="right") - np.searchsorted(b, grid, side="right")).max() / num
        assert distance < limit, name
    assert abs(boxes["flip"].mean() - 0.5) < 4 * 0.5 / np.sqrt(num)


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (7, 333), (1, 50), (61, 3)])
def test_where_no_box_fits_it_is_the_central_one_of_random_resized_crop(height, width):
    import torch
    from torchvision.transforms import RandomResizedCrop

    theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), [0.5, 1.0], [3 / 4, 4 / 3])
    box = CropPlan(scale=(0.5, 1.0)).box(1, 2, height, width)
    assert (box.top, box.left, box.height, box.width) == theirs


def test_views_and_samples_are_independent():
    plan = CropPlan(seed=0)
    boxes = plan.boxes(np.arange(2000, dtype=np.uint64)[:, None], np.arange(2), 256, 256)
    area = (boxes["height"].astype(float) * boxes["width"]).reshape(2000, 2)
    for first, second in [(area[:, 0], area[:, 1]), (area[:-1, 0], area[1:, 0])]:
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    other_seed = CropPlan(seed=1).boxes(np.arange(2000, dtype=np.uint64), 0, 256, 256)
    assert (other_seed == boxes[:, 0]).mean() < 0.01


@pytest.mark.parametrize(("probability", "expected"), [(0.0, False), (1.0, True)])
def test_flip_can_be_never_or_always(probability, expected):
    boxes = CropPlan(flip_probability=probability).boxes(np.arange(500, dtype=np.uint64), 0, 64, 64)
    assert (boxes["flip"] == expected).all()


def test_box_arrays_and_values_convert_both_ways():
    boxes = CropPlan(seed=4).boxes(np.arange(20, dtype=np.uint64), 1, 99, 77)
    np.testing.assert_array_equal(box_array(crop_boxes(boxes)), boxes)


def test_a_plan_survives_its_manifest():
    plan = CropPlan(seed=2**64 - 1, scale=(0.1, 0.936), ratio=(0.7, 1.5), flip_probability=0.3, attempts=4)
    assert CropPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "random-resized-crop/other"}, "kind 'random-resized-crop/other'"),
        ({"sede": 1}, "sede"),
        ({"seed": "1"}, "seed is a whole number"),
        ({"scale": [0.1]}, "scale is a pair"),
        ({"attempts": True}, "attempts is a whole number"),
    ],
)
def test_a_damaged_manifest_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        CropPlan.from_dict(CropPlan().to_dict() | change)


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": -1},
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 1.1)},
        {"ratio": (2.0, 1.0)},
        {"flip_probability": 1.5},
        {"attempts": 0},
        {"attempts": 101},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        CropPlan(**settings)


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (65536, 10)])
def test_impossible_image_sizes_are_refused(size):
    with pytest.raises(ValueError, match="image sides"):
        CropPlan().box(0, 0, *size)
