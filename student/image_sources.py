"""Where a crop data set's images come from: a data set on disk, or any data set of (image, target).

Hands out encoded images undecoded where it can, so that they are decoded once for several crops. Cuts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.cutting import decode, image_pixels, image_size
from teacherfarm.crops.folder_samples import folder_sample_name, read_file
from teacherfarm.crops.hub_columns import IMAGE_COLUMNS, LABEL_COLUMNS
from teacherfarm.crops.sample_readers import Location, SampleReader, open_samples
from teacherfarm.protos.faults import UnreadableImage
from teacherfarm.student.losses import NO_TARGET

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.utils.data import Dataset


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """One image, encoded (bytes) or as pixels [H, W, 3], with its target."""

    content: bytes | NDArray[np.uint8]
    target: int

    def size(self, name: str) -> tuple[int, int]:
        """Height and width in pixels; raises UnreadableImage."""
        if isinstance(self.content, bytes):
            return image_size(self.content, name)
        return self.content.shape[0], self.content.shape[1]

    def pixels(self, name: str, *, padded: bool = False) -> NDArray[np.uint8]:
        """Pixels [H, W, 3], or [H, W, 4] as :func:`decode` says; raises UnreadableImage."""
        return decode(self.content, name, padded=padded) if isinstance(self.content, bytes) else self.content

    def content_number(self) -> int:
        """The first half of the content's hash, as crops by reference carry it."""
        if not isinstance(self.content, bytes):
            raise ValueError(
                "crops by reference name encoded images: give the data set as a folder, tar or Parquet files, or an "
                "ImageFolder without transforms, not as pixels"
            )
        return int(self.digest()[:16], 16)

    def digest(self) -> str:
        """Names the content: XXH3-128 of the encoded bytes, or of the pixels and their shape."""
        import xxhash

        if isinstance(self.content, bytes):
            return xxhash.xxh3_128_hexdigest(self.content)
        height, width = self.content.shape[:2]
        return f"{height}x{width}:{xxhash.xxh3_128_hexdigest(np.ascontiguousarray(self.content).data)}"


class ImageSource(Protocol):
    """Images by index. ``name`` is stable: crop plans, recorded labels and messages go by it."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def target(self, index: int) -> int:
        """The target of an image that cannot be read, NO_TARGET where it is unknown then."""
        ...

    def load(self, index: int) -> SourceImage:
        """Raises UnreadableImage when there is nothing to decode."""
        ...


class SampleImages:
    """The images of a data set on disk: a folder of class folders (ImageFolder's order), tar files or Parquet files."""

    def __init__(self, samples: Location | SampleReader) -> None:
        self.samples = samples if isinstance(samples, SampleReader) else open_samples(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        return f"<SampleImages of {self.samples!r}>"

    @property
    def where(self) -> str:
        """The data set in words."""
        return self.samples.where

    @property
    def classes(self) -> tuple[str, ...]:
        """What the targets stand for: names, or the numbers themselves where the data set has no more."""
        return self.samples.classes or tuple(map(str, range(int(self.samples.targets.max(initial=NO_TARGET)) + 1)))

    def name(self, index: int) -> str:
        return self.samples.name(index)

    def target(self, index: int) -> int:
        return self.samples.target(index)

    def load(self, index: int) -> SourceImage:
        return SourceImage(content=self.samples.read(index), target=self.samples.target(index))


class DatasetImages:
    """Any sequence of (image, target), of images alone, or of dicts with such columns, as Hugging Face's data sets
    are; names are the indices.

    An image is a Pillow image, a uint8 array [H, W, 3] or [H, W], encoded bytes or a path.
    """

    def __init__(self, dataset: Sequence[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        return str(index)

    def target(self, index: int) -> int:
        return NO_TARGET

    def load(self, index: int) -> SourceImage:
        try:
            item = self.dataset[index]
        except OSError as error:
            # Pillow's complaints about an image are OSErrors too.
            raise UnreadableImage(f"cannot read image {index} of {type(self.dataset).__name__}: {error}") from error
        if isinstance(item, Mapping):
            image, target = _column(item, IMAGE_COLUMNS, index), _column(item, LABEL_COLUMNS, index)
        else:
            image, target = item if isinstance(item, (tuple, list)) and len(item) == 2 else (item, None)
        return SourceImage(content=_content(image, index), target=_class_number(target, index))


class FolderDatasetImages(DatasetImages):
    """A torchvision ImageFolder without transforms: files are read here, undecoded, and named as by SampleImages."""

    def name(self, index: int) -> str:
        path, _ = self._samples[index]
        return folder_sample_name(path, self.dataset.root)  # type: ignore[attr-defined]

    def target(self, index: int) -> int:
        return int(self._samples[index][1])

    def load(self, index: int) -> SourceImage:
        path, target = self._samples[index]
        return SourceImage(content=read_file(path, self.name(index)), target=int(target))

    @property
    def _samples(self) -> Sequence[tuple[str, int]]:
        samples: Sequence[tuple[str, int]] = self.dataset.samples  # type: ignore[attr-defined]
        return samples


class SubsetImages:
    """Some images of another source, by torch's Subset; they keep their names."""

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self.source = source
        self.indices = np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def target(self, index: int) -> int:
        return self.source.target(int(self.indices[index]))

    def load(self, index: int) -> SourceImage:
        return self.source.load(int(self.indices[index]))


def image_source(
    images: str | Path | SampleReader | SampleImages | Sequence[Any] | Dataset[Any] | ImageSource,
) -> ImageSource:
    """The source for a data set on disk, a torchvision ImageFolder, a torch Subset, or any data set of images."""
    if isinstance(images, SampleImages):
        return images
    if isinstance(images, (str, Path, SampleReader)):
        return SampleImages(images)
    from torch.utils.data import Subset

    if isinstance(images, Subset):
        return SubsetImages(image_source(images.dataset), images.indices)
    from torchvision.datasets.folder import DatasetFolder, default_loader

    if isinstance(images, DatasetFolder) and images.transforms is None and images.loader is default_loader:
        return FolderDatasetImages(images)
    if not hasattr(images, "__getitem__") or not hasattr(images, "__len__"):
        raise ValueError(
            f"a crop data set needs images by index (__getitem__ and __len__) or a data set's path, got "
            f"{type(images).__name__}"
        )
    return DatasetImages(images)  # type: ignore[arg-type]


def _column(row: Mapping[str, Any], names: Sequence[str], index: int) -> Any:
    """The first of these columns that a row has. A row without an image is refused, one without a target is not."""
    found = next((name for name in names if name in row), None)
    if found is None and names is IMAGE_COLUMNS:
        raise ValueError(f"image {index} has columns {', '.join(map(str, row))}; expected one of {', '.join(names)}")
    return None if found is None else row[found]


def _content(image: Any, index: int) -> bytes | NDArray[np.uint8]:
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, (str, Path)):
        return read_file(image, str(image))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        if image.ndim == 3 and image.shape[2] == 3 and image.size:
            return image
        if image.ndim == 2 and image.size:
            return np.repeat(image[:, :, None], 3, axis=2)
    if hasattr(image, "convert") and hasattr(image, "mode"):
        return _pillow_pixels(image, index)
    described = type(image).__name__
    if hasattr(image, "dtype") and hasattr(image, "shape"):
        described += f" of {image.dtype} {list(image.shape)}"
    raise ValueError(
        f"image {index} is a {described}; crops are cut from a Pillow image, a uint8 array [H, W, 3], encoded bytes or "
        "a path: give the data set without its transforms, and the student's augmentations as student_transform"
    )


def _pillow_pixels(image: Image, index: int) -> NDArray[np.uint8]:
    try:
        return image_pixels(image)
    except Exception as error:
        raise UnreadableImage(f"cannot read image {index}: {error}") from error


def _class_number(target: Any, index: int) -> int:
    if target is None:
        return NO_TARGET
    try:
        return int(target)
    except (TypeError, ValueError) as error:
        raise ValueError(f"target {index} is a class number, got {target!r}") from error
