"""Crop keys, crop formats and what they say about bad pixels."""

import numpy as np
import pytest

from teacherfarm.crops.crop_plan import box_array
from teacherfarm.protos.crop import (
    CROP_KEY_BYTES,
    CropBatch,
    CropBox,
    CropFormat,
    Rendering,
    content_keys,
    pixel_keys,
)
from teacherfarm.protos.faults import WrongBatchSize, WrongCropSize, WrongLayout, WrongNumberType

FORMAT = CropFormat(height=4, width=6)


def crops(num: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 4, 6, 3), dtype=np.uint8)


def split(keys: bytes) -> list[bytes]:
    return [keys[i : i + CROP_KEY_BYTES] for i in range(0, len(keys), CROP_KEY_BYTES)]


def test_equal_pixels_have_equal_keys_wherever_they_lie():
    pixels = crops()
    keys = split(pixel_keys(pixels))
    assert len(keys) == 3
    assert len(set(keys)) == 3
    assert split(pixel_keys(pixels[1:])) == keys[1:]
    assert split(pixel_keys(pixels[::-1])) == keys[::-1], "a view with negative strides"
    wide = np.zeros((3, 4, 8, 3), np.uint8)
    wide[:, :, 1:7] = pixels
    assert split(pixel_keys(wide[:, :, 1:7])) == keys, "a view that is not contiguous"


@pytest.mark.parametrize("place", [(0, 0, 0), (2, 3, 1), (3, 5, 2)])
def test_one_changed_byte_changes_the_key(place):
    pixels = crops(1)
    changed = pixels.copy()
    changed[(0, *place)] ^= 1
    assert pixel_keys(changed) != pixel_keys(pixels)


def test_keys_are_pinned():
    ramp = np.arange(72, dtype=np.uint8).reshape(1, 4, 6, 3)
    assert pixel_keys(ramp).hex() == "eb99a32e511d0d546b14834d00dc498d"
    box = box_array([CropBox(top=1, left=2, height=30, width=40, flip=True)])
    keys = content_keys(["5f" * 16], box, Rendering(height=224, width=224))
    assert keys.hex() == "63d513b07322924461333cb7ae9323aa"


def test_a_key_by_content_names_content_box_flip_and_rendering():
    content, box, rendering = "5f" * 16, {"top": 1, "left": 2, "height": 30, "width": 40}, {"height": 8, "width": 8}
    cases = [
        (content, box, rendering),
        ("5e" * 16, box, rendering),
        ("", box, rendering),
        *[
            (content, box | change, rendering)
            for change in ({"top": 0}, {"left": 3}, {"height": 31}, {"width": 41}, {"flip": True})
        ],
        *[
            (content, box, rendering | change)
            for change in ({"height": 9}, {"width": 9}, {"interpolation": "bicubic"}, {"antialias": False})
        ],
    ]
    keys = [content_keys([named], box_array([CropBox(**place)]), Rendering(**how)) for named, place, how in cases]
    assert len(set(keys)) == len(cases)
    together = content_keys(["a", "b"], box_array([CropBox(**box), CropBox(**box, flip=True)]), Rendering(**rendering))
    alone = [
        content_keys([named], box_array([CropBox(**box, flip=flip)]), Rendering(**rendering))
        for named, flip in (("a", False), ("b", True))
    ]
    assert split(together) == alone


BAD_PIXELS = [
    (np.zeros((4, 6, 3), np.uint8), WrongLayout, ["[N, 4, 6, 3]", "3 dimension", "[4, 6, 3]", "numpy.stack"]),
    (np.zeros((0, 4, 6, 3), np.uint8), WrongBatchSize, ["at least one crop"]),
    (np.zeros((2, 4, 6, 3), np.float32), WrongNumberType, ["uint8", "float32", "teacher_view", "Normalize"]),
    (np.zeros((2, 3, 4, 6), np.float32), WrongNumberType, ["channels-first", "two views", "teacher_view"]),
    (np.zeros((2, 4, 6, 3), np.float16), WrongNumberType, ["float16"]),
    (np.zeros((2, 4, 6, 3), np.int64), WrongNumberType, ["uint8", "int64", "silently wrong"]),
    (np.zeros((2, 4, 6, 3), np.bool_), WrongNumberType, ["bool"]),
    (np.zeros((2, 4, 6, 3), object), WrongNumberType, ["object"]),
    (np.zeros((2, 3, 4, 6), np.uint8), WrongLayout, ["channels last", "[2, 3, 4, 6]", "transpose(0, 2, 3, 1)"]),
    (np.zeros((2, 6, 4, 3), np.uint8), WrongCropSize, ["[N, 4, 6, 3]", "[2, 6, 4, 3]", "4 x 6"]),
    (np.zeros((2, 4, 6, 1), np.uint8), WrongCropSize, ["[2, 4, 6, 1]"]),
]


@pytest.mark.parametrize(("pixels", "fault", "words"), BAD_PIXELS)
def test_bad_pixels_get_a_fault_that_says_what_was_wrong_expected_and_to_do(pixels, fault, words):
    with pytest.raises(fault) as caught:
        FORMAT.check(pixels)
    assert type(caught.value) is fault
    for word in words:
        assert word in str(caught.value)


def test_good_pixels_pass_in_every_number_type():
    FORMAT.check(crops())
    CropFormat(height=4, width=6, number_type="float32").check(np.zeros((1, 4, 6, 3), np.float32))
    CropFormat(height=4, width=6, channels=1, number_type="uint16").check(np.zeros((1, 4, 6, 1), np.uint16))
    # Not channels first: a crop that is as high as it has channels.
    CropFormat(height=3, width=6).check(np.zeros((2, 3, 6, 3), np.uint8))


@pytest.mark.parametrize("number_type", ["float32", "uint16"])
def test_swapped_bytes_are_another_number_type(number_type):
    pixels = np.zeros((1, 4, 6, 3), np.dtype(number_type).newbyteorder(">"))
    with pytest.raises(WrongNumberType):
        CropFormat(height=4, width=6, number_type=number_type).check(pixels)


def test_crop_bytes_and_words_of_a_format():
    assert FORMAT.crop_bytes == 72
    assert CropFormat(height=4, width=6, number_type="float32").crop_bytes == 288
    assert FORMAT.describe() == "uint8 [N, 4, 6, 3]"


@pytest.mark.parametrize("size", [{"height": 0}, {"width": -1}, {"channels": 0}])
def test_a_format_without_size_is_refused(size):
    with pytest.raises(WrongCropSize, match="positive"):
        CropFormat(**({"height": 4, "width": 6} | size))


def test_rendering_and_box_must_have_a_size():
    for make in (
        lambda: Rendering(height=0, width=8),
        lambda: CropBox(top=-1, left=0, height=1, width=1),
        lambda: CropBox(top=0, left=0, height=0, width=1),
    ):
        with pytest.raises(ValueError, match=r"positive size|not a box"):
            make()


@pytest.mark.parametrize("keys", [b"x", bytes(47), bytes(64)])
def test_keys_must_be_16_bytes_for_each_crop(keys):
    with pytest.raises(WrongBatchSize, match="48 bytes"):
        CropBatch(pixels=crops(), keys=keys)


def test_keys_and_priority_that_no_message_carries_are_refused_at_once():
    with pytest.raises(WrongBatchSize, match="keys are bytes"):
        CropBatch(pixels=crops(), keys=np.zeros(48, np.uint8))
    for priority in (9, -9, 2**40, 1.5):
        with pytest.raises(ValueError, match="from -8 to 8"):
            CropBatch(pixels=crops(), priority=priority)
    assert len(CropBatch(pixels=crops(), keys=bytes(48), priority=-8)) == 3
