"""Pillow's resize without Pillow's copies: the same bits."""

import gc

import cv2
import numpy as np
import pytest
from PIL import Image

from teacherfarm.crops import pillow_resize
from teacherfarm.crops.pillow_resize import maps_memory, resize_boxes

HEIGHT, WIDTH = 57, 83
# Whole, in each corner, of one pixel, larger and smaller than a crop, mirrored.
BOXES = [
    (0, 0, HEIGHT, WIDTH, False),
    (0, 0, HEIGHT, WIDTH, True),
    (0, 0, 9, 11, True),
    (HEIGHT - 9, WIDTH - 11, 9, 11, False),
    (HEIGHT - 40, 0, 40, 60, False),
    (0, WIDTH - 60, 40, 60, True),
    (HEIGHT - 1, WIDTH - 1, 1, 1, False),
    (7, 5, 24, 20, True),
]


@pytest.fixture
def image():
    return np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def resized(image, boxes, kind, height=24, width=20):
    out = np.zeros((len(boxes), height, width, 3), np.uint8)
    resize_boxes(image, boxes, kind, out)
    return out


def by_pillow_alone(image, box, kind, height=24, width=20):
    top, left, box_height, box_width, flip = box
    part = Image.fromarray(np.ascontiguousarray(image[top : top + box_height, left : left + box_width]))
    crop = np.asarray(part.resize((width, height), kind))
    return crop[:, ::-1] if flip else crop


def test_this_pillow_maps_memory():
    """Where it does not, crops are right and a tenth slower: a new Pillow must not come to that unnoticed."""
    assert maps_memory()


@pytest.mark.parametrize("maps", [True, False])
@pytest.mark.parametrize("kind", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_boxes_get_the_bits_of_pillow_alone(image, kind, maps, monkeypatch):
    monkeypatch.setattr(pillow_resize, "maps_memory", lambda: maps)
    expected = np.stack([by_pillow_alone(image, box, kind) for box in BOXES])
    np.testing.assert_array_equal(resized(image, BOXES, kind), expected)
    padded = np.dstack([image, image[..., 0]])
    np.testing.assert_array_equal(resized(padded, BOXES, kind), expected)
    for box, right in zip(BOXES, expected, strict=True):
        np.testing.assert_array_equal(resized(image, [box], kind)[0], right)
        np.testing.assert_array_equal(resized(padded, [box], kind)[0], right)
    assert resized(image, [], kind).shape == (0, 24, 20, 3)


def test_small_boxes_far_apart_are_converted_alone(monkeypatch):
    large = np.random.default_rng(4).integers(0, 256, (600, 700, 3), np.uint8)
    boxes = [(0, 0, 30, 30, False), (570, 670, 30, 30, True)]
    converted = []
    real = cv2.cvtColor

    def noted(pixels, code, **how):
        converted.append(pixels.shape[:2])
        return real(pixels, code, **how)

    monkeypatch.setattr(cv2, "cvtColor", noted)
    crops = resized(large, boxes, Image.Resampling.BILINEAR)
    for crop, box in zip(crops, boxes, strict=True):
        np.testing.assert_array_equal(crop, by_pillow_alone(large, box, Image.Resampling.BILINEAR))
    assert max(converted) == (30, 30)
    converted.clear()
    resized(large, [(0, 0, 500, 600, False), (50, 50, 550, 650, False)], Image.Resampling.BILINEAR)
    assert converted.count((600, 700)) == 1


def test_images_of_any_memory_layout_are_read(image):
    kind = Image.Resampling.BILINEAR
    right = resized(image, BOXES, kind)
    frozen = image.copy()
    frozen.flags.writeable = False
    within = np.zeros((HEIGHT + 4, WIDTH + 6, 3), np.uint8)[2:-2, 3:-3]
    within[:] = image
    turned = np.ascontiguousarray(image[::-1, ::-1])[::-1, ::-1]
    padded = np.dstack([image, np.full((HEIGHT, WIDTH), 7, np.uint8)])
    within_padded = np.zeros((HEIGHT + 4, WIDTH + 6, 4), np.uint8)[2:-2, 3:-3]
    within_padded[:] = padded
    channels_first = np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0)
    for same in (padded, within_padded, frozen, within, turned, channels_first, np.asfortranarray(image)):
        np.testing.assert_array_equal(resized(same, BOXES, kind), right)


def test_mapped_memory_lives_as_long_as_its_image(image):
    memory = np.dstack([image, np.zeros((HEIGHT, WIDTH), np.uint8)])
    mapped = pillow_resize._mapped(memory, 0, 0, HEIGHT, WIDTH)
    expected = image.copy()
    del memory
    gc.collect()
    _ = [np.full((HEIGHT, WIDTH, 4), 255, np.uint8) for _ in range(20)]
    np.testing.assert_array_equal(np.asarray(mapped), expected)


def test_a_pillow_that_cannot_map_is_found_out_and_told(monkeypatch, caplog):
    def shows_something_else(memory, top, left, height, width):
        return Image.new("RGB", (width, height))

    for broken in (shows_something_else, lambda *_: Image.core.no_such_function):
        monkeypatch.setattr(pillow_resize, "_mapped", broken)
        caplog.clear()
        assert not maps_memory.__wrapped__()
        assert "a tenth slower" in caplog.text
