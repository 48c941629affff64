import contextlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from teacherfarm.crops.crop_codec import decode_crops, decode_jpegs, encode_crops
from teacherfarm.protos.crop import CropFormat
from teacherfarm.protos.faults import (
    BadCrops,
    MalformedMessage,
    UnreadableCrop,
    WrongCropSize,
    WrongNumberType,
)

JPEG = CropFormat(height=32, width=24, codec="jpeg")


def smooth_crops(num=3, channels=3):
    y, x = np.mgrid[:32, :24]
    gradient = np.stack([x * 10, y * 7, (x + y) * 4][:channels], axis=2)
    return np.stack([(gradient + 3 * row) % 256 for row in range(num)]).astype(np.uint8)


def joined(encoded):
    return b"".join(encoded.parts)


@pytest.mark.parametrize("number_type", ["uint8", "uint16", "float32"])
def test_raw_crops_are_the_same_memory(number_type):
    crop_format = CropFormat(height=5, width=4, channels=2, number_type=number_type)
    pixels = np.arange(3 * 5 * 4 * 2).reshape(3, 5, 4, 2).astype(number_type)
    encoded = encode_crops(pixels, crop_format)
    assert encoded.crop_bytes == ()
    assert np.shares_memory(np.frombuffer(encoded.parts[0], number_type), pixels)
    np.testing.assert_array_equal(decode_crops(joined(encoded), 3, crop_format), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_crops_come_back_nearly_equal(channels):
    crop_format = CropFormat(height=32, width=24, channels=channels, codec="jpeg")
    pixels = smooth_crops(channels=channels)
    encoded = encode_crops(pixels, crop_format)
    assert len(encoded.crop_bytes) == 3
    decoded = decode_crops(memoryview(joined(encoded)), 3, crop_format, encoded.crop_bytes)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - pixels).mean() < 2


def test_strided_crops_are_encoded_row_by_row():
    pixels = np.repeat(smooth_crops(4), 2, axis=2)[::2, :, ::2]
    for crop_format in (JPEG, CropFormat(height=32, width=24)):
        encoded = encode_crops(pixels, crop_format)
        decoded = decode_crops(joined(encoded), 2, crop_format, encoded.crop_bytes)
        assert np.abs(decoded.astype(int) - pixels).mean() < 2


def test_quality_and_subsampling_are_the_callers_choice():
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 24, 3), dtype=np.uint8)
    lengths = [
        sum(encode_crops(noise, JPEG, quality=quality, subsampling=subsampling).crop_bytes)
        for quality, subsampling in [(95, "444"), (95, "420"), (50, "420")]
    ]
    assert lengths[0] > lengths[1] > lengths[2]


def test_what_does_not_fit_the_format_is_not_encoded():
    with pytest.raises(WrongNumberType):
        encode_crops(smooth_crops().astype(np.float32), JPEG)
    with pytest.raises(ValueError, match="use codec 'raw'"):
        encode_crops(
            np.zeros((1, 2, 2, 3), np.uint16),
            CropFormat(height=2, width=2, number_type="uint16", codec="jpeg"),
        )


def test_a_damaged_crop_is_named_by_its_row():
    encoded = encode_crops(smooth_crops(), JPEG)
    good = list(encoded.parts)
    for damaged, words in [
        (b"no jpeg at all", "crop 1 is no JPEG"),
        (b"\xff\xd8" + b"x" * 50, "crop 1 is no JPEG"),
        (b"", "crop 1 is no JPEG"),
        (bytes(good[1])[:-60], "crop 1 is a damaged JPEG"),
    ]:
        parts = [good[0], damaged, good[2]]
        with pytest.raises(UnreadableCrop, match=words):
            decode_jpegs(b"".join(parts), [len(part) for part in parts], JPEG)


def test_another_size_than_promised_is_refused_before_it_is_decoded(monkeypatch):
    def decode(*args, **kwargs):
        raise AssertionError("decoded")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode)
    bomb = simplejpeg.encode_jpeg(np.zeros((2048, 2048, 3), np.uint8))
    with pytest.raises(UnreadableCrop, match="crop 0 is a JPEG image of 2048 x 2048 pixels"):
        decode_jpegs(bomb, [len(bomb)], JPEG)


def test_lengths_that_do_not_add_up_are_refused():
    encoded = encode_crops(smooth_crops(), JPEG)
    payload = joined(encoded)
    for lengths in ([1, 2, 3], [len(payload) + 1, 0, -1]):
        with pytest.raises(MalformedMessage, match="add up"):
            decode_crops(payload, 3, JPEG, lengths)
    with pytest.raises(MalformedMessage, match="as many lengths"):
        decode_crops(payload, 3, JPEG)
    with pytest.raises(WrongCropSize, match="take 2304 bytes, got 7"):
        decode_crops(b"1234567", 1, CropFormat(height=32, width=24))


def test_crops_are_decoded_into_given_memory():
    encoded = encode_crops(smooth_crops(), JPEG)
    block = np.zeros((5, 32, 24, 3), np.uint8)
    out = block[1:4]
    assert decode_jpegs(joined(encoded), encoded.crop_bytes, JPEG, out=out) is out
    np.testing.assert_array_equal(out, decode_jpegs(joined(encoded), encoded.crop_bytes, JPEG))
    assert not block[[0, 4]].any()
    with pytest.raises(ValueError, match="contiguous uint8"):
        decode_jpegs(joined(encoded), encoded.crop_bytes, JPEG, out=block[:4])


@given(st.binary(max_size=200), st.integers(0, 600), st.integers(0, 255))
def test_any_bytes_give_crops_or_a_fault(junk, place, value):
    data = bytearray(ENCODED)
    data[place % len(data)] = value
    for payload in (junk, bytes(data), bytes(data)[: place + 1]):
        with contextlib.suppress(BadCrops):
            assert decode_jpegs(payload, [len(payload)], JPEG).shape == (1, 32, 24, 3)


ENCODED = encode_crops(smooth_crops(1), JPEG).parts[0]
