"""From uint8 crops to a student's input. Knows nothing of teachers: their normalisation is inside their graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_student(
    crops: Tensor | NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Crops uint8 [N, H, W, C] as normalised [N, C, H, W] on ``device`` (default: where they are).

    ``mean`` and ``std`` per channel for pixels in 0..1, as torchvision's Normalize takes them. Bytes cross to the
    device, a quarter of the floats; pinned crops cross without blocking.
    """
    pixels = torch.from_numpy(crops) if isinstance(crops, np.ndarray) else crops
    if pixels.dtype != torch.uint8 or pixels.ndim != 4:
        raise ValueError(f"to_student takes uint8 crops [N, H, W, C], got {pixels.dtype} {list(pixels.shape)}")
    channels = pixels.shape[3]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"{channels} channel(s) (the last axis of {list(pixels.shape)}) need as many means and deviations, got "
            f"{len(mean)} and {len(std)}"
        )
    if max(abs(value) for value in mean) > 1.5 or not all(0 < value <= 1.5 for value in std):
        raise ValueError(
            f"mean and std are for pixels in 0..1 (ImageNet: 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225), got "
            f"{tuple(mean)} and {tuple(std)}; divide those for 0..255 by 255"
        )
    pixels = pixels.to(device, non_blocking=True) if device is not None else pixels
    shape = (1, channels, 1, 1)
    # One multiplication and one addition: x / 255 - mean, over std.
    scale = torch.tensor([1 / (255 * value) for value in std], dtype=dtype, device=pixels.device).view(shape)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=dtype, device=pixels.device).view(
        shape
    )
    floats = pixels.permute(0, 3, 1, 2).to(dtype=dtype, memory_format=memory_format)
    return floats.mul_(scale).add_(shift)
