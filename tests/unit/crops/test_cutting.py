import base64
import dataclasses
import hashlib
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from teacherfarm.crops.crop_plan import CropPlan, crop_boxes
from teacherfarm.crops.cutting import (
    center_box,
    cut,
    decode,
    decode_and_cut,
    image_size,
    resize_and_center_crop,
    wants_padded,
)
from teacherfarm.protos.crop import CropBox, Rendering
from teacherfarm.protos.faults import UnreadableImage


def smooth_image(height=120, width=160):
    """A picture with gradients and edges, made of whole numbers."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x // 8 + y // 8) % 2 * 200], axis=2).astype(np.uint8)


def encoded(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, image_format, **options)
    return buffer.getvalue()


def noise():
    return np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)


BOX = CropBox(top=10, left=20, height=90, width=70)
FLIPPED = CropBox(top=10, left=20, height=90, width=70, flip=True)


@pytest.mark.parametrize("quality_options", [{"quality": 90}, {"quality": 95, "subsampling": 0}, {"progressive": True}])
def test_jpeg_pixels_are_those_of_pillow(quality_options):
    data = encoded(smooth_image(), "JPEG", **quality_options)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))
    assert image_size(data) == (120, 160)


def test_padded_pixels_are_the_same_and_only_where_they_cost_nothing():
    image = smooth_image()
    jpeg, grey = encoded(image, "JPEG"), io.BytesIO()
    Image.fromarray(image).convert("L").save(grey, "JPEG")
    for data in (jpeg, grey.getvalue()):
        padded = decode(data, padded=True)
        assert padded.shape == (*decode(data).shape[:2], 4)
        np.testing.assert_array_equal(padded[..., :3], decode(data))
    assert decode(encoded(image, "PNG"), padded=True).shape == image.shape
    bilinear, area = Rendering(height=8, width=8), Rendering(height=8, width=8, interpolation="area")
    plain = Rendering(height=8, width=8, antialias=False)
    assert [wants_padded(*these) for these in ((bilinear,), (area, bilinear), (area,), (plain, area))] == [1, 1, 0, 0]


def test_other_formats_and_modes_become_rgb():
    picture = Image.fromarray(smooth_image())
    grey = np.asarray(picture.convert("L"))
    np.testing.assert_array_equal(decode(encoded(picture)), smooth_image())
    for image_format in ("PNG", "JPEG"):
        pixels = decode(encoded(picture.convert("L"), image_format, quality=100))
        assert pixels.shape == (120, 160, 3)
        assert np.abs(pixels.astype(int) - grey[:, :, None]).max() <= 2
    black_and_white = np.asarray(picture.convert("1").convert("RGB"))
    np.testing.assert_array_equal(decode(encoded(picture.convert("1"))), black_and_white)
    cmyk = encoded(picture.convert("CMYK"), "JPEG", quality=100)
    np.testing.assert_array_equal(decode(cmyk), np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB")))


def test_palette_and_transparency_are_dropped_without_a_warning():
    palette = Image.fromarray(smooth_image()).quantize(16)
    with_transparency = encoded(palette, transparency=bytes(range(0, 256, 16)))
    np.testing.assert_array_equal(decode(with_transparency), np.asarray(palette.convert("RGB")))
    rgba = np.dstack([smooth_image(), np.full((120, 160), 7, np.uint8)])
    np.testing.assert_array_equal(decode(encoded(rgba)), smooth_image())


def test_sixteen_bit_grey_keeps_its_upper_byte():
    wide = np.arange(120 * 160, dtype=np.uint16).reshape(120, 160) * 3
    expected = np.repeat((wide >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(wide))), expected)


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(smooth_image(), "JPEG", exif=exif)
    assert decode(data).shape == (120, 160, 3)
    assert image_size(data) == (120, 160)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_antialiased_crops_are_those_of_torchvision(interpolation):
    from torchvision.transforms import InterpolationMode, functional

    image = smooth_image()
    rendering = Rendering(height=48, width=64, interpolation=interpolation)
    mode = InterpolationMode.BILINEAR if interpolation == "bilinear" else InterpolationMode.BICUBIC
    expected = functional.resized_crop(Image.fromarray(image), BOX.top, BOX.left, BOX.height, BOX.width, [48, 64], mode)
    crops = cut(image, [BOX, FLIPPED], rendering)
    np.testing.assert_array_equal(crops[0], np.asarray(expected))
    np.testing.assert_array_equal(crops[1], np.asarray(functional.hflip(expected)))


@pytest.mark.parametrize(
    ("interpolation", "antialias"),
    [("nearest", True), ("bilinear", False), ("bicubic", False), ("area", True), ("bilinear", True), ("bicubic", True)],
)
def test_flipping_mirrors_and_the_box_is_cut_before_it_is_resized(interpolation, antialias):
    image = smooth_image()
    rendering = Rendering(height=31, width=33, interpolation=interpolation, antialias=antialias)
    plain, flipped = cut(image, [BOX, FLIPPED], rendering)
    np.testing.assert_array_equal(flipped, plain[:, ::-1])
    outside_changed = image.copy()
    outside_changed[:10] = outside_changed[100:] = 255
    outside_changed[:, :20] = outside_changed[:, 90:] = 255
    np.testing.assert_array_equal(cut(outside_changed, [BOX], rendering)[0], plain)


@pytest.mark.parametrize(
    ("interpolation", "antialias", "digest"),
    [
        ("nearest", True, "088d1f530ce6b0dc"),
        ("bilinear", False, "d7735ebeb1ee68cd"),
        ("bilinear", True, "b8b6a2b06ede24dd"),
        ("bicubic", True, "a8af905698bd3291"),
    ],
)
def test_golden_pixels_where_bits_are_promised_everywhere(interpolation, antialias, digest):
    image = smooth_image()
    boxes = CropPlan(seed=1).boxes(np.zeros(8, np.uint64), np.arange(8), *image.shape[:2])
    crops = cut(image, boxes, Rendering(height=40, width=40, interpolation=interpolation, antialias=antialias))
    assert hashlib.sha256(crops.tobytes()).hexdigest()[:16] == digest


JPEG = base64.b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV01XKW3knDg3knMk4h;_zAQcl55)&sJ9v2`kDKRiEDJ?8BI!Zn>HbyrrEkIX6ModmpQ&KWMT47pHU`kO^Py"
    "gEhLjevB4iga*CKVMXPc<zyPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPf!2A01*fP6aX9p0U`hb5di}c0sq7"
    "R7ytkR0RaF20000000000000041p@~E!~i1@000C91pxs7000000000000RUP0wE$nfdvy3F;Srr|HJ?o0RRF600000000000000000agD1qc7c0"
    "4Wgw00jXB2m=5B00000000000R#~e10gX%VSxe@6e1)-"
    "VuGQuvj5ru3<CiG0ucid06zfZN<+u9oq*{mb}Z*$SSb$0oa_flL&vk7fh9$7@s6;6)V=`d*FGXaD0udBup5U-"
    "r@w;HD0VF8U^fnvF8%;^>r0b&DE7NW^TqGV;Lw$Qj^hLb!Bo5spehQb-~a=lXVd$P*(sg62apv7Qt)XBP=0g(3N>bYH6L%V)R4~6|Je"
)


def test_golden_pixels_of_a_jpeg_file():
    assert hashlib.sha256(decode(JPEG).tobytes()).hexdigest()[:16] == "02f469a70a7977ca"
    boxes = CropPlan(seed=1).boxes([0], np.arange(4), *image_size(JPEG))
    crops = decode_and_cut(JPEG, boxes, Rendering(height=12, width=12))
    assert hashlib.sha256(crops.tobytes()).hexdigest()[:16] == "ec334a0489975902"


EVERY_KIND = [
    Rendering(height=41, width=37, interpolation=interpolation, antialias=antialias)
    for interpolation in ("nearest", "bilinear", "bicubic", "area")
    for antialias in (True, False)
    if antialias or interpolation != "area"
]


@pytest.fixture
def opencv_threads():
    """``opencv_threads(number)``, of which the process otherwise has as many as the machine has cores."""
    before = cv2.getNumThreads()
    yield cv2.setNumThreads
    cv2.setNumThreads(before)


@pytest.mark.parametrize("rendering", EVERY_KIND, ids=lambda kind: f"{kind.interpolation}-{kind.antialias}")
def test_a_crop_depends_on_nothing_but_image_box_and_rendering(rendering, opencv_threads):
    """Not on its neighbours in a decoding, where it is written, how the image lies in memory, or OpenCV's threads."""
    data = encoded(smooth_image(900, 1200), "JPEG")
    image = decode(data)
    boxes = CropPlan(seed=5).boxes([0], np.arange(4), *image.shape[:2])
    crops = decode_and_cut(data, boxes, rendering)
    assert {*boxes["flip"]} == {True, False}
    for row in range(4):
        np.testing.assert_array_equal(decode_and_cut(data, boxes[row : row + 1], rendering)[0], crops[row])
    np.testing.assert_array_equal(cut(image, boxes[::-1], rendering), crops[::-1])
    batch = np.empty((4, 3, *crops.shape[1:]), np.uint8)
    np.testing.assert_array_equal(cut(image, crop_boxes(boxes), rendering, out=batch[:, 1]), crops)
    within = np.zeros((910, 1230, 3), np.uint8)[5:-5, 10:-20]
    within[:] = image
    np.testing.assert_array_equal(cut(within, boxes, rendering), crops)
    np.testing.assert_array_equal(cut(decode(data, padded=True), boxes, rendering), crops)
    large = dataclasses.replace(rendering, height=640, width=640)
    opencv_threads(0)
    large_crops = cut(image, boxes, large)
    for threads in (1, 4):
        opencv_threads(threads)
        np.testing.assert_array_equal(cut(image, boxes, rendering), crops)
        np.testing.assert_array_equal(cut(image, boxes, large), large_crops)


def test_a_box_of_the_output_size_is_copied():
    image = smooth_image()
    box = CropBox(top=3, left=5, height=32, width=32)
    for interpolation in ("nearest", "bilinear", "bicubic", "area"):
        crop = cut(image, [box], Rendering(height=32, width=32, interpolation=interpolation))[0]
        np.testing.assert_array_equal(crop, image[3:35, 5:37])


def test_crops_are_written_into_a_strided_batch():
    image = smooth_image()
    boxes = CropPlan(seed=2).boxes(np.zeros(3, np.uint64), np.arange(3), *image.shape[:2])
    rendering = Rendering(height=24, width=20)
    batch = np.zeros((3, 4, 24, 20, 3), np.uint8)
    cut(image, boxes, rendering, out=batch[:, 1])
    np.testing.assert_array_equal(batch[:, 1], cut(image, crop_boxes(boxes), rendering))
    assert not batch[:, [0, 2, 3]].any()
    with pytest.raises(ValueError, match="out must be uint8"):
        cut(image, boxes, rendering, out=np.zeros((3, 24, 20, 4), np.uint8)[..., :3])


def test_decode_and_cut_decodes_once_for_all_boxes():
    data = encoded(smooth_image(), "JPEG")
    rendering = Rendering(height=16, width=16)
    np.testing.assert_array_equal(
        decode_and_cut(data, [BOX, FLIPPED], rendering), cut(decode(data), [BOX, FLIPPED], rendering)
    )


def test_what_cannot_be_cut_is_refused():
    image, rendering = smooth_image(), Rendering(height=8, width=8)
    with pytest.raises(ValueError, match="does not lie inside the image of 120 x 160"):
        cut(image, [CropBox(top=100, left=0, height=21, width=10)], rendering)
    with pytest.raises(ValueError, match="uint8"):
        cut(image.astype(np.float32), [BOX], rendering)
    with pytest.raises(ValueError, match=r"3 or 4.*got uint8 .120, 160, 2"):
        resize_and_center_crop(image[..., :2], rendering)
    with pytest.raises(ValueError, match="always averages"):
        cut(image, [BOX], Rendering(height=8, width=8, interpolation="area", antialias=False))


@pytest.mark.parametrize("fraction", [0.875, 1.0])
def test_the_evaluation_view_is_that_of_torchvision_where_the_sides_divide(fraction):
    from torchvision.transforms import InterpolationMode, functional

    for height, width in [(64, 96), (96, 64), (50, 50), (32, 40)]:
        image = smooth_image(height, width)
        expected = functional.center_crop(
            functional.resize(Image.fromarray(image), round(56 / fraction), InterpolationMode.BICUBIC), [56, 56]
        )
        view = resize_and_center_crop(image, Rendering(height=56, width=56, interpolation="bicubic"), fraction)
        np.testing.assert_array_equal(view, np.asarray(expected))


def test_the_evaluation_view_rounds_the_longer_side_and_starts_at_the_smaller_margin():
    image = smooth_image(60, 97)
    # 64 * 97 / 60 = 103.47, its margin (103 - 56) / 2 = 23.5
    whole = np.asarray(Image.fromarray(image).resize((103, 64), Image.Resampling.BICUBIC))
    view = resize_and_center_crop(image, Rendering(height=56, width=56, interpolation="bicubic"))
    np.testing.assert_array_equal(view, whole[4:60, 23:79])


def test_the_central_box_covers_the_same_part():
    assert center_box(256, 512) == CropBox(top=16, left=144, height=224, width=224)
    image, rendering = smooth_image(256, 320)[..., :2], Rendering(height=56, width=56, interpolation="bicubic")
    image = np.dstack([image, image[..., 0]])
    difference = cut(image, [center_box(256, 320)], rendering)[0].astype(int) - resize_and_center_crop(image, rendering)
    assert np.abs(difference).max() <= 3
    with pytest.raises(ValueError, match="fraction"):
        center_box(10, 10, 0)


def bomb():
    """A PNG whose header promises 60 000 x 60 000 pixels."""
    data = encoded(smooth_image(4, 4))
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"hello, this is text", "in no image format that Pillow knows"),
        (b"\xff\xd8" + b"x" * 100, "in no image format"),
        (encoded(smooth_image(), "JPEG")[:-400], "truncated"),
        (encoded(noise())[:-4000], "truncated"),
        (bomb(), "exceeds limit"),
    ],
)
def test_unreadable_images_are_named_with_the_reason(data, words):
    with pytest.raises(UnreadableImage, match=words) as caught:
        decode(data, "cats/17.jpg")
    assert "cats/17.jpg" in str(caught.value)


def test_a_jpeg_that_promises_too_many_pixels_is_refused_before_it_is_allocated():
    data = bytearray(encoded(smooth_image(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    with pytest.raises(UnreadableImage, match="promises 65000 x 65000 pixels"):
        decode(bytes(data), "bomb.jpg")
