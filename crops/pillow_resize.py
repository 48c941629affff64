"""Boxes of a decoded image resized by Pillow, which reads and writes the pixels where they lie.

Pillow keeps a pixel of an RGB image in four bytes. Its ``fromarray`` and ``tobytes`` copy each box and each crop from
three bytes to four and back, one value after the other, in a sixth of a crop's whole time. Here an image is decoded to
four bytes, or OpenCV makes them once for all boxes, and Pillow is shown the memory. The resizing itself, and so every
bit of a crop, is Pillow's own.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image, Resampling

_log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int, bool]
"""Top, left, height, width, and whether the crop is mirrored."""

PIXEL_BYTES = 4
"""Of a pixel in Pillow; the fourth has no meaning."""


def resize_boxes(image: Pixels, boxes: Sequence[Box], kind: Resampling, out: Pixels) -> None:
    """Fill ``out`` [m, H, W, 3], each crop contiguous, from the boxes of an image in which they lie: [h, w, 3], or
    [h, w, 4] as Pillow keeps one.
    """
    if boxes:
        resize = _resize_in_place if maps_memory() else _resize_copies
        resize(image, boxes, kind, out)


def _resize_in_place(image: Pixels, boxes: Sequence[Box], kind: Resampling, out: Pixels) -> None:
    import cv2

    first_row, first_column = 0, 0
    if image.shape[2] != PIXEL_BYTES:
        first_row, first_column, end_row, end_column = _region(boxes)
        region_pixels = (end_row - first_row) * (end_column - first_column)
        if len(boxes) > 1 and region_pixels > sum(box_height * box_width for _, _, box_height, box_width, _ in boxes):
            # Small boxes far apart in a large image: most of what lies between them is in none.
            for row, box in enumerate(boxes):
                _resize_in_place(image, [box], kind, out[row : row + 1])
            return
        region = image[first_row:end_row, first_column:end_column]
        image = np.asarray(cv2.cvtColor(region, cv2.COLOR_RGB2RGBA), np.uint8)
    image = np.ascontiguousarray(image)
    height, width = out.shape[1:3]
    crop = np.empty((height, width, PIXEL_BYTES), np.uint8)
    target = _mapped(crop, 0, 0, height, width)
    for row, (top, left, box_height, box_width, flip) in enumerate(boxes):
        part = _mapped(image, top - first_row, left - first_column, box_height, box_width)
        target.im.paste(part.resize((width, height), kind).im, (0, 0, width, height))
        cv2.cvtColor(crop, cv2.COLOR_RGBA2RGB, dst=out[row])
        if flip:
            cv2.flip(out[row], 1, dst=out[row])


def _resize_copies(image: Pixels, boxes: Sequence[Box], kind: Resampling, out: Pixels) -> None:
    from PIL import Image

    height, width = out.shape[1:3]
    for row, (top, left, box_height, box_width, flip) in enumerate(boxes):
        part = np.ascontiguousarray(image[top : top + box_height, left : left + box_width, :3])
        resized = np.asarray(Image.fromarray(part).resize((width, height), kind))
        out[row] = resized[:, ::-1] if flip else resized


@functools.cache
def maps_memory() -> bool:
    """Whether this Pillow shows an RGB image in memory that is not its own: ``Image.frombuffer`` maps by the same
    function, but refuses this mode. Tried once, on a small image.
    """
    from PIL import Image

    image = np.arange(7 * 6 * PIXEL_BYTES, dtype=np.uint8).reshape(7, 6, PIXEL_BYTES)
    # Larger, smaller and as large as the crop; the last touches the image's end.
    boxes: list[Box] = [(1, 1, 5, 4, False), (0, 2, 2, 2, False), (3, 2, 3, 3, True), (4, 3, 3, 3, False)]
    mapped, copied = np.zeros((2, len(boxes), 3, 3, 3), np.uint8)
    try:
        _resize_in_place(image, boxes, Image.Resampling.BILINEAR, mapped)
    except Exception as error:
        _log.warning(
            "crops are cut a tenth slower: this Pillow does not map memory (%s: %s)", type(error).__name__, error
        )
        return False
    _resize_copies(image, boxes, Image.Resampling.BILINEAR, copied)
    same = np.array_equal(mapped, copied)
    if not same:
        _log.warning("crops are cut a tenth slower: this Pillow resizes mapped memory to other pixels")
    return same


def _mapped(memory: Pixels, top: int, left: int, height: int, width: int) -> Image:
    """A box of contiguous memory [h, w, 4] as a Pillow image that holds on to it."""
    from PIL import Image

    row_bytes = memory.shape[1] * PIXEL_BYTES
    start = top * row_bytes + left * PIXEL_BYTES
    if start + height * row_bytes > memory.nbytes:
        # Pillow asks for whole rows, and the last one, begun further right, is none.
        return _mapped(memory[top : top + height, left : left + width].copy(), 0, 0, height, width)
    layout = ("RGB", row_bytes, 1)
    core = Image.core.map_buffer(memory.reshape(-1)[start:], (width, height), "raw", 0, layout)  # type: ignore[attr-defined]
    return Image.new("RGB", (0, 0))._new(core)


def _region(boxes: Sequence[Box]) -> tuple[int, int, int, int]:
    """The smallest rectangle around these boxes: its first row and column, and those behind its last."""
    return (
        min(top for top, _, _, _, _ in boxes),
        min(left for _, left, _, _, _ in boxes),
        max(top + height for top, _, height, _, _ in boxes),
        max(left + width for _, left, _, width, _ in boxes),
    )
