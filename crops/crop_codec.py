"""A batch of crops as bytes and back: raw, or one JPEG image per crop. Knows nothing of messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.crop import CropFormat
from teacherfarm.protos.faults import MalformedMessage, UnreadableCrop, WrongCropSize

JpegSubsampling = Literal["444", "422", "420"]

JPEG_QUALITY = 95
JPEG_SUBSAMPLING: JpegSubsampling = "444"


@dataclass(frozen=True, kw_only=True)
class EncodedCrops:
    """``parts``: buffers that joined are the payload. ``crop_bytes``: each crop's length in it; empty where all are
    equally long (raw). A raw part is the caller's own memory, which must not change until it was sent.
    """

    parts: tuple[bytes | memoryview, ...]
    crop_bytes: tuple[int, ...] = ()


def encode_crops(
    pixels: NDArray[Any],
    crop_format: CropFormat,
    *,
    quality: int = JPEG_QUALITY,
    subsampling: JpegSubsampling = JPEG_SUBSAMPLING,
) -> EncodedCrops:
    """Encode crops [N, H, W, C] as ``crop_format`` says, raising its faults where they do not fit it."""
    crop_format.check(pixels)
    if crop_format.codec != "jpeg":
        return EncodedCrops(parts=(np.ascontiguousarray(pixels).reshape(-1).view(np.uint8).data,))
    import simplejpeg

    colours = _jpeg_colours(crop_format)
    pieces: list[bytes] = []
    for crop in pixels:
        whole = np.ascontiguousarray(crop)
        pieces.append(simplejpeg.encode_jpeg(whole, quality, colours, "Gray" if colours == "GRAY" else subsampling))
    return EncodedCrops(parts=tuple(pieces), crop_bytes=tuple(len(piece) for piece in pieces))


def decode_crops(
    payload: bytes | bytearray | memoryview, num_crops: int, crop_format: CropFormat, crop_bytes: Sequence[int] = ()
) -> NDArray[Any]:
    """Crops [N, H, W, C] from a payload; raw crops are a view of it, not a copy.

    Raises WrongCropSize or MalformedMessage when the lengths do not fit, and what :func:`decode_jpegs` raises.
    """
    if crop_format.codec == "jpeg":
        if len(crop_bytes) != num_crops:
            raise MalformedMessage(f"{num_crops} JPEG crops need as many lengths, got {len(crop_bytes)}")
        return decode_jpegs(payload, crop_bytes, crop_format)
    if len(payload) != num_crops * crop_format.crop_bytes:
        raise WrongCropSize(
            f"{num_crops} raw crops {crop_format.describe()} take {num_crops * crop_format.crop_bytes} bytes, got "
            f"{len(payload)}"
        )
    return np.frombuffer(payload, crop_format.number_type).reshape(num_crops, *crop_format.shape)


def decode_jpegs(
    payload: bytes | bytearray | memoryview,
    crop_bytes: Sequence[int],
    crop_format: CropFormat,
    *,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Crops [N, H, W, C] from JPEG images that lie end to end, ``crop_bytes`` long each.

    Raises MalformedMessage when the lengths do not add up, and UnreadableCrop naming the row that cannot be decoded or
    whose header promises another size: nothing is allocated for what a header promises.
    """
    if min(crop_bytes, default=0) < 0 or sum(crop_bytes) != len(payload):
        raise MalformedMessage(
            f"the lengths of {len(crop_bytes)} JPEG crops add up to {sum(crop_bytes)}, the payload has "
            f"{len(payload)} bytes"
        )
    shape = (len(crop_bytes), *crop_format.shape)
    if out is None:
        out = np.empty(shape, np.uint8)
    elif out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous uint8 {list(shape)}, got {out.dtype} {list(out.shape)}")
    colours = _jpeg_colours(crop_format)
    view, start = memoryview(payload), 0
    for row, length in enumerate(crop_bytes):
        _decode_jpeg(view[start : start + length], crop_format, colours, row, out[row])
        start += length
    return out


def _decode_jpeg(data: memoryview, crop_format: CropFormat, colours: str, row: int, out: NDArray[np.uint8]) -> None:
    import simplejpeg

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except Exception as error:
        raise UnreadableCrop(f"crop {row} is no JPEG image ({len(data)} bytes): {_reason(error)}") from error
    if (height, width) != (crop_format.height, crop_format.width):
        raise UnreadableCrop(
            f"crop {row} is a JPEG image of {height} x {width} pixels, this session's crops are "
            f"{crop_format.height} x {crop_format.width}"
        )
    try:
        simplejpeg.decode_jpeg(data, colours, buffer=out)
    except Exception as error:
        raise UnreadableCrop(f"crop {row} is a damaged JPEG image ({len(data)} bytes): {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else "its header cannot be understood"


def _jpeg_colours(crop_format: CropFormat) -> str:
    if crop_format.number_type != "uint8" or crop_format.channels not in (1, 3):
        raise ValueError(
            f"JPEG crops are uint8 with 1 or 3 channels, this teacher takes {crop_format.describe()}: use codec 'raw'"
        )
    return "RGB" if crop_format.channels == 3 else "GRAY"
