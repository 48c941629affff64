"""Boxes of a decoded image resized by Pillow, which reads and writes the pixels where they lie.

Pillow keeps a pixel of an RGB image in four bytes. Its ``fromarray`` and ``tobytes`` copy each box and each crop from
three bytes to four and back, one value after the other, which takes a fifth of the whole time of a crop. Here OpenCV
does that, once for all boxes of an image, and Pillow is shown the memory. The resizing itself, and so every bit of a
crop, is Pillow's own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image, Resampling

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int, bool]
"""Top, left, height, width, and whether the crop is mirrored."""

_RGB_BYTES = 4
"""Of a pixel in Pillow; the fourth has no meaning."""


def resize_boxes(image: Pixels, boxes: Sequence[Box], kind: Resampling, out: Pixels) -> None:
    """Fill ``out`` [m, H, W, 3], each crop contiguous, from the boxes of an image [h, w, 3] in which they lie."""
    if boxes:
        resize = _resize_in_place if maps_memory() else _resize_copies
        resize(image, boxes, kind, out)


def _resize_in_place(image: Pixels, boxes: Sequence[Box], kind: Resampling, out: Pixels) -> None:
    import cv2

    top, left, bottom, right = _region(boxes)
    rows, columns = bottom - top, right - left
    # A row more than there is: Pillow wants whole rows, and a box that ends in the last one may begin further right.
    memory = np.empty((rows + 1, columns, _RGB_BYTES), np.uint8)
    cv2.cvtColor(image[top:bottom, left:right], cv2.COLOR_RGB2RGBA, dst=memory[:rows])
    height, width = out.shape[1:3]
    crop = np.empty((height, width, _RGB_BYTES), np.uint8)
    target = _mapped(crop, height, width)
    for row, (box_top, box_left, box_height, box_width, flip) in enumerate(boxes):
        part = _mapped(memory, box_height, box_width, top=box_top - top, left=box_left - left)
        target.im.paste(part.resize((width, height), kind).im, (0, 0, width, height))
        cv2.cvtColor(crop, cv2.COLOR_RGBA2RGB, dst=out[row])
        if flip:
            cv2.flip(out[row], 1, dst=out[row])


def _resize_copies(image: Pixels, boxes: Iterable[Box], kind: Resampling, out: Pixels) -> None:
    from PIL import Image

    height, width = out.shape[1:3]
    for row, (top, left, box_height, box_width, flip) in enumerate(boxes):
        part = Image.fromarray(image[top : top + box_height, left : left + box_width])
        resized = np.asarray(part.resize((width, height), kind))
        out[row] = resized[:, ::-1] if flip else resized


@functools.cache
def maps_memory() -> bool:
    """Whether this Pillow shows an RGB image in memory that is not its own: ``Image.frombuffer`` maps by the same
    function, but refuses this mode. Tried once, on a few pixels.
    """
    memory = np.arange(4 * 4 * _RGB_BYTES, dtype=np.uint8).reshape(4, 4, _RGB_BYTES)
    try:
        seen = np.asarray(_mapped(memory, 2, 3, top=1, left=1))
        target = np.zeros((2, 3, _RGB_BYTES), np.uint8)
        _mapped(target, 2, 3).im.paste(_mapped(memory, 2, 3, left=1).im, (0, 0, 3, 2))
    except Exception:
        return False
    return np.array_equal(seen, memory[1:3, 1:, :3]) and np.array_equal(target[..., :3], memory[:2, 1:, :3])


def _mapped(memory: Pixels, height: int, width: int, *, top: int = 0, left: int = 0) -> Image:
    """A part of memory [h, w, 4] as a Pillow image that holds on to it."""
    from PIL import Image

    columns = memory.shape[1]
    start = memory.reshape(-1)[(top * columns + left) * _RGB_BYTES :]
    layout = ("RGB", columns * _RGB_BYTES, 1)
    core = Image.core.map_buffer(start, (width, height), "raw", 0, layout)  # type: ignore[attr-defined]
    return Image.new("RGB", (0, 0))._new(core)


def _region(boxes: Sequence[Box]) -> tuple[int, int, int, int]:
    """The smallest rectangle around these boxes: top, left, bottom, right."""
    bottom = max(top + height for top, _, height, _, _ in boxes)
    right = max(left + width for _, left, _, width, _ in boxes)
    return min(box[0] for box in boxes), min(box[1] for box in boxes), bottom, right
