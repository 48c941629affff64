"""Encoded image + boxes + rendering -> uint8 pixels: the same code on both ends, several crops per decode.

How a rendering's interpolation becomes pixels (a box is cut out first, then resized, then mirrored):

| interpolation | antialias | made by | equal bits |
| --- | --- | --- | --- |
| nearest | either | OpenCV INTER_NEAREST_EXACT | everywhere |
| bilinear, bicubic | yes | Pillow BILINEAR, BICUBIC: what torchvision does with PIL images | everywhere |
| bilinear | no | OpenCV INTER_LINEAR_EXACT | everywhere |
| bicubic | no | OpenCV INTER_CUBIC | with one build of OpenCV |
| area | yes | OpenCV INTER_AREA | with one build of OpenCV |

Images decode to 8-bit RGB as the field's loaders do: EXIF orientation is ignored (boxes count stored pixels),
grey is repeated, transparency dropped, 16-bit grey keeps its upper byte, CMYK is converted by Pillow. Knows
nothing of files.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.crop_plan import BOX, box_array
from teacherfarm.crops.pillow_resize import PIXEL_BYTES, Box, maps_memory, resize_boxes
from teacherfarm.protos.crop import CropBox, Rendering
from teacherfarm.protos.faults import UnreadableImage

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]

MAX_IMAGE_PIXELS = 178_956_970
"""Larger images are refused before they are allocated; the limit is the one at which Pillow raises."""

_JPEG_START = b"\xff\xd8"


def image_size(data: bytes | memoryview, name: str = "image") -> tuple[int, int]:
    """Height and width of an encoded image, from its header alone. Raises UnreadableImage."""
    header = _jpeg_header(data)
    if header is not None:
        return header[0], header[1]
    try:
        with _open(data) as image:
            return image.height, image.width
    except Exception as error:
        raise _unreadable(name, data, error) from error


def decode(data: bytes | memoryview, name: str = "image", *, padded: bool = False) -> Pixels:
    """Pixels [H, W, 3] of an encoded image; raises UnreadableImage, which names ``name`` and the reason.

    ``padded``: [H, W, 4] where that comes for nothing, the fourth byte without meaning; see :func:`wants_padded`.
    """
    header = _jpeg_header(data)
    if header is not None:
        height, width, colours = header
        if height * width > MAX_IMAGE_PIXELS:
            raise UnreadableImage(
                f"cannot read {name}: its header promises {height} x {width} pixels, the limit is {MAX_IMAGE_PIXELS}"
            )
        if colours in ("YCbCr", "Gray", "RGB"):
            import simplejpeg

            try:
                pixels: Pixels = simplejpeg.decode_jpeg(data, "RGBX" if padded else "RGB")
                return pixels
            except Exception:
                # Damage that Pillow forgives or names better: rare, so its slower path decides.
                pass
    try:
        with _open(data) as image:
            image.load()
            return image_pixels(image)
    except Exception as error:
        raise _unreadable(name, data, error) from error


def image_pixels(image: Image) -> Pixels:
    """Pixels [H, W, 3] of a Pillow image, by the rules of this module."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def wants_padded(*renderings: Rendering) -> bool:
    """Whether :func:`cut` is faster for these from pixels of four bytes."""
    return any(map(_is_by_pillow, renderings)) and maps_memory()


def cut(
    image: Pixels,
    boxes: NDArray[np.void] | Sequence[CropBox],
    rendering: Rendering,
    *,
    out: Pixels | None = None,
) -> Pixels:
    """Crops [m, H, W, 3] of a decoded image [h, w, 3], or [h, w, 4] whose fourth byte has no meaning; ValueError for a
    box that is not inside the image.

    ``out``: where to write them, each crop contiguous; the cheapest way to fill one batch from many images.
    """
    boxes = boxes if isinstance(boxes, np.ndarray) else box_array(boxes)
    _check_pixels(image)
    if boxes.dtype != BOX:
        raise ValueError(f"boxes are CropBox values or an array of BOX, got {boxes.dtype}")
    shape = (len(boxes), rendering.height, rendering.width, 3)
    if out is None:
        out = np.empty(shape, np.uint8)
    elif out.shape != shape or out.dtype != np.uint8 or not out[0].flags.c_contiguous:
        raise ValueError(f"out must be uint8 {list(shape)} with contiguous crops, got {out.dtype} {out.shape}")
    _check_rendering(rendering)
    height, width = image.shape[:2]
    places: list[Box] = boxes.tolist()
    for top, left, box_height, box_width, _ in places:
        if box_height < 1 or box_width < 1 or top + box_height > height or left + box_width > width:
            raise ValueError(
                f"box top={top} left={left} height={box_height} width={box_width} does not lie inside the image "
                f"of {height} x {width} pixels"
            )
    _render(image, places, rendering, out)
    return out


def decode_and_cut(
    data: bytes | memoryview,
    boxes: NDArray[np.void] | Sequence[CropBox],
    rendering: Rendering,
    name: str = "image",
) -> Pixels:
    """Crops [m, H, W, 3] of an encoded image, decoded once."""
    return cut(decode(data, name, padded=wants_padded(rendering)), boxes, rendering)


def center_box(height: int, width: int, fraction: float = 0.875) -> CropBox:
    """The central square whose side is ``fraction`` of the shorter side: the evaluation crop as a box.

    Cut by it, resized pixels see nothing of what lies outside of the box; apart from that edge it is
    :func:`resize_and_center_crop`.
    """
    _check_fraction(fraction)
    side = max(1, round(min(height, width) * fraction))
    return CropBox(top=(height - side) // 2, left=(width - side) // 2, height=side, width=side)


def resize_and_center_crop(image: Pixels, rendering: Rendering, fraction: float = 0.875) -> Pixels:
    """The field's evaluation view [H, W, 3]: the shorter side resized to size / fraction, then the centre.

    A rendering of 224 x 224 and the usual fraction 0.875 resize to 256. The longer side is rounded and an odd margin
    is smaller at the top and left; torchvision's Resize truncates and its CenterCrop rounds to even, a pixel at most.
    """
    _check_fraction(fraction)
    _check_rendering(rendering)
    _check_pixels(image)
    height, width = image.shape[:2]
    short_height, short_width = round(rendering.height / fraction), round(rendering.width / fraction)
    if short_height * width >= short_width * height:
        resized_height, resized_width = short_height, round(short_height * width / height)
    else:
        resized_height, resized_width = round(short_width * height / width), short_width
    resized = Rendering(
        height=max(rendering.height, resized_height),
        width=max(rendering.width, resized_width),
        interpolation=rendering.interpolation,
        antialias=rendering.antialias,
    )
    whole = np.empty((resized.height, resized.width, 3), np.uint8)
    _render(image, [(0, 0, height, width, False)], resized, whole[None])
    top = (resized.height - rendering.height) // 2
    left = (resized.width - rendering.width) // 2
    return np.ascontiguousarray(whole[top : top + rendering.height, left : left + rendering.width])


def _render(image: Pixels, boxes: Sequence[Box], rendering: Rendering, out: Pixels) -> None:
    """Fill ``out`` [m, H, W, 3] from boxes that lie inside of ``image``."""
    if _is_by_pillow(rendering):
        from PIL import Image

        kind = Image.Resampling.BILINEAR if rendering.interpolation == "bilinear" else Image.Resampling.BICUBIC
        resize_boxes(image, boxes, kind, out)
        return
    import cv2

    kinds = {
        "nearest": cv2.INTER_NEAREST_EXACT,
        "bilinear": cv2.INTER_LINEAR_EXACT,
        "bicubic": cv2.INTER_CUBIC,
        "area": cv2.INTER_AREA,
    }
    size, kind_of_opencv = (rendering.width, rendering.height), kinds[rendering.interpolation]
    for row, (top, left, height, width, flip) in enumerate(boxes):
        part: Any = image[top : top + height, left : left + width]
        if image.shape[2] == PIXEL_BYTES:
            part = cv2.cvtColor(part, cv2.COLOR_RGBA2RGB)
        cv2.resize(part, size, dst=out[row], interpolation=kind_of_opencv)
        if flip:
            # OpenCV mirrors in 6 microseconds what a copy of a reversed view takes 170 for.
            cv2.flip(out[row], 1, dst=out[row])


def _is_by_pillow(rendering: Rendering) -> bool:
    return rendering.antialias and rendering.interpolation in ("bilinear", "bicubic")


def _check_pixels(image: Pixels) -> None:
    if image.ndim != 3 or image.shape[2] not in (3, PIXEL_BYTES) or image.dtype != np.uint8:
        raise ValueError(f"crops are cut from uint8 [height, width, 3 or 4], got {image.dtype} {list(image.shape)}")


def _check_rendering(rendering: Rendering) -> None:
    if rendering.interpolation == "area" and not rendering.antialias:
        raise ValueError("interpolation 'area' always averages: use antialias=True with it, or 'nearest'")


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(f"a centre crop's fraction lies in 0..1, got {fraction}")


def _jpeg_header(data: bytes | memoryview) -> tuple[int, int, str] | None:
    """Height, width and colour space of a JPEG; None for other formats and headers that cannot be understood."""
    if data[:2] != _JPEG_START:
        return None
    import simplejpeg

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except Exception:
        return None
    return int(height), int(width), str(colours)


def _open(data: bytes | memoryview) -> Image:
    from PIL import Image

    return Image.open(io.BytesIO(data))


def _unreadable(name: str, data: bytes | memoryview, error: Exception) -> UnreadableImage:
    if not len(data):
        why = "the file is empty"
    elif type(error).__name__ == "UnidentifiedImageError":
        why = f"{len(data)} bytes in no image format that Pillow knows"
    else:
        why = f"{error}" or type(error).__name__
    return UnreadableImage(f"cannot read {name}: {why}; mend or remove it, or let the data set skip such images")
