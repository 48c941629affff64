"""Crops of several images as one batch, in memory that a DataLoader's worker shares with the training process.

Knows nothing of how crops are cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, cast, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from teacherfarm.protos.allocator import map_pages
from teacherfarm.protos.crop import CROP_KEY_BYTES

_SHORT_BYTES = 16 * 1024


class Crops(TypedDict):
    """The m crops of one image, or those of a batch of B images: N = m * B crops, first the first crop of every image,
    then the second ones, and so on.

    ``crops``: uint8 [N, H, W, 3] in the teacher's rendering; H and W are 0 where no teacher is to see them. ``images``:
    the student's view of the same boxes, uint8 [N, h, w, 3] or what the student's transform made of it. ``targets``:
    int64 [N]. ``keys``: 16 bytes a crop that a teacher is to see.
    ``weight``: float32 [N], 0 for an image that could not be read (its pixels are zeros). ``samples``: int64 [N], the
    index in the data set. ``views``: int64 [N], the number of the crop.
    """

    crops: Tensor
    images: Tensor
    targets: Tensor
    keys: bytes
    weight: Tensor
    samples: Tensor
    views: Tensor


class CropsOfImages(Sequence[Crops]):
    """A finished batch that also reads as a sequence of its images' crops, for loaders that collate by themselves."""

    def __init__(self, num_images: int, batch: Crops) -> None:
        self.num_images = num_images
        self.batch = batch

    def __len__(self) -> int:
        return self.num_images

    @overload
    def __getitem__(self, index: int) -> Crops: ...
    @overload
    def __getitem__(self, index: slice) -> list[Crops]: ...
    def __getitem__(self, index: int | slice) -> Crops | list[Crops]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        column = range(self.num_images)[index]

        def of_image(values: Tensor) -> Tensor:
            return values.view(len(values) // self.num_images, self.num_images, *values.shape[1:])[:, column]

        batch = self.batch
        keys = np.frombuffer(batch["keys"], np.uint8).reshape(-1, self.num_images, CROP_KEY_BYTES)
        crops = of_image(batch["crops"])
        return Crops(
            crops=crops,
            images=crops if batch["images"] is batch["crops"] else of_image(batch["images"]),
            targets=of_image(batch["targets"]),
            keys=keys[:, column].tobytes(),
            weight=of_image(batch["weight"]),
            samples=of_image(batch["samples"]),
            views=of_image(batch["views"]),
        )


def collate_crops(items: Sequence[Crops]) -> Crops:
    """A batch of images' crops, crop-index-major. Nothing is copied when :class:`CropDataset` made the whole batch."""
    if isinstance(items, CropsOfImages):
        return _outgoing(items.batch)
    crops = _interleave([item["crops"] for item in items])
    keys = np.stack([np.frombuffer(item["keys"], np.uint8).reshape(-1, CROP_KEY_BYTES) for item in items], axis=1)
    batch = Crops(
        crops=crops,
        images=crops
        if all(item["images"] is item["crops"] for item in items)
        else _interleave([item["images"] for item in items]),
        targets=_interleave([item["targets"] for item in items]),
        keys=keys.tobytes(),
        weight=_interleave([item["weight"] for item in items]),
        samples=_interleave([item["samples"] for item in items]),
        views=_interleave([item["views"] for item in items]),
    )
    return _outgoing(batch)


def empty_batch(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory; in a DataLoader's worker it is shared, so that handing it over copies nothing."""
    if get_worker_info() is None:
        return torch.empty(tuple(shape), dtype=dtype)
    # As torch's default_collate does; share_memory_() on a new tensor would touch every page twice.
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)  # type: ignore[no-untyped-call]
    map_pages(storage.data_ptr(), storage.nbytes())
    return torch.empty(0, dtype=dtype).set_(storage, 0, tuple(shape))  # type: ignore[call-overload,no-any-return]


class _OutgoingCrops(dict[str, Any]):
    """A worker's batch whose short columns travel inside the message: a tensor by itself costs a file descriptor,
    handed over in a third of a millisecond.
    """

    def __reduce__(self) -> tuple[Callable[..., dict[str, Any]], tuple[dict[str, Any], list[str]]]:
        short = {name: value.numpy() for name, value in self.items() if _is_short(value)}
        return _arrived, (dict(self) | short, list(short))


def _arrived(values: dict[str, Any], short: Sequence[str]) -> dict[str, Any]:
    return values | {name: torch.from_numpy(values[name]) for name in short}


def _is_short(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.int64, torch.float32) and value.nbytes <= _SHORT_BYTES


def _outgoing(batch: Crops) -> Crops:
    return batch if get_worker_info() is None else cast(Crops, _OutgoingCrops(batch))


def _interleave(parts: Sequence[Tensor]) -> Tensor:
    """Images' tensors [m, ...] as one [m * B, ...], crop-index-major."""
    first = parts[0]
    block = empty_batch((len(first), len(parts), *first.shape[1:]), first.dtype)
    torch.stack(list(parts), dim=1, out=block)
    return block.flatten(0, 1)
