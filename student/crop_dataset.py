"""Any image data set + crop plan + view schedule -> m crops per image in the teacher's and the student's rendering.

Each image is read and decoded once for its m crops; the same boxes and flips are cut for both renderings. Knows no
teacher and no wire.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from teacherfarm.crops.crop_plan import CropPlan, sample_number
from teacherfarm.crops.cutting import cut, wants_padded
from teacherfarm.crops.sample_index import HASH_BYTES
from teacherfarm.crops.sample_readers import SampleReader
from teacherfarm.crops.view_schedule import ViewSchedule
from teacherfarm.protos.crop import CROP_KEY_BYTES, Rendering, content_keys
from teacherfarm.protos.faults import SampleChanged, UnreadableImage
from teacherfarm.protos.references import VIEW_REFERENCE, CropReferences
from teacherfarm.student.by_reference import ByReference, OnRefused
from teacherfarm.student.crop_collate import Crops, CropsOfImages, collate_crops, empty_batch
from teacherfarm.student.image_sources import ImageSource, SourceImage, image_source
from teacherfarm.student.own_pixels import OwnPixels
from teacherfarm.student.recorded_samples import refuse_changed
from teacherfarm.student.stateless_transform import StatelessTransform

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["CropDataset", "Crops", "OnUnreadable", "collate_crops"]

OnUnreadable = Literal["raise", "skip"]

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Loaded:
    """One image on its way through a batch; ``image`` is None once it proved unreadable."""

    name: str
    number: int
    target: int
    image: SourceImage | None = None
    height: int = 1
    width: int = 1


class CropDataset(Dataset[Crops]):
    """``schedule.per_visit`` crops of each image: ``DataLoader(dataset, batch_size=B, collate_fn=collate_crops)``.

    - ``images``: a folder with one folder per class, or any data set of (image, target) without transforms, where
      an image is a Pillow image, a uint8 array [H, W, 3], encoded bytes or a path.
    - ``teacher_rendering``: how the teacher sees a box; None where labels are replayed and no teacher is to see any.
    - ``student_rendering``: how the student sees a box; the teacher's way where it is not given.
    - ``student_transform``: called on each crop in the student's rendering as a Pillow image; returns a tensor, of
      one shape for all crops (RandAugment, ToTensor, Normalize, RandomErasing ... of torchvision or timm). Its
      random numbers depend on (seed, sample, view) alone, whichever worker runs it: a resumed run sees the same.
    - ``on_unreadable``: "raise" UnreadableImage, or "skip": the batch keeps its shape, these crops get weight 0,
      and a warning names the image.
    - ``by_reference``: the name of a data set that the server has, too. ``crops`` then are references, uint8 [N, 20],
      which the teacher's client takes when it is made with ``by_reference=dataset.references()``; only the student's
      rendering is cut here.

    Call ``set_epoch`` before each pass, with persistent workers too.
    """

    def __init__(
        self,
        images: str | Path | SampleReader | ImageSource | Sequence[Any] | Dataset[Any],
        *,
        teacher_rendering: Rendering | None,
        student_rendering: Rendering | None = None,
        plan: CropPlan | None = None,
        schedule: ViewSchedule | None = None,
        student_transform: Callable[[Image], Tensor] | None = None,
        on_unreadable: OnUnreadable = "raise",
        by_reference: str = "",
    ) -> None:
        rendering = student_rendering or teacher_rendering
        if rendering is None:
            raise ValueError("without teacher_rendering there must be a student_rendering: which crops to cut?")
        if on_unreadable not in ("raise", "skip"):
            raise ValueError(f"on_unreadable is 'raise' or 'skip', got {on_unreadable!r}")
        self.source: ImageSource = image_source(images)
        self.teacher_rendering = teacher_rendering
        self.student_rendering = rendering
        self.plan = plan or CropPlan()
        self.schedule = schedule or ViewSchedule()
        self.on_unreadable = on_unreadable
        self.by_reference = by_reference
        if by_reference and teacher_rendering is None:
            raise ValueError("by_reference says what a teacher is to see: give teacher_rendering, too")
        self._hashes: NDArray[np.bytes_] | None = None
        self._renamed: Mapping[int, int] = {}
        self._transform = StatelessTransform(student_transform, seed=self.plan.seed) if student_transform else None
        self._skipped: set[str] = set()
        # Shared, because persistent workers keep the data set that they were started with.
        self._visit: Tensor = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self.schedule.warn_if_few()

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return (
            f"<CropDataset {len(self)} images x {self.schedule.per_visit} crops, pass {self.visit}, "
            f"teacher {self.teacher_rendering}, student {self.student_rendering}>"
        )

    @property
    def visit(self) -> int:
        """The pass over the data, counted from 0, whose views are cut."""
        return int(self._visit.item())

    def set_epoch(self, epoch: int) -> None:
        """Cut the views of pass ``epoch``, counted from 0; a pass counts m epochs of single crops."""
        if epoch < 0:
            raise ValueError(f"passes are counted from 0, got {epoch}")
        self._visit[0] = epoch

    @property
    def has_transform(self) -> bool:
        """Whether the student's crops go through a transform."""
        return self._transform is not None

    def expect(self, hashes: NDArray[np.void], renamed: Mapping[int, int] | None = None) -> None:
        """Which image each index must still hold: V16 [images], XXH3-128 of the encoded bytes, zeros where unknown.

        One that changed is treated as unreadable (SampleChanged), so that it gets no other image's label. ``renamed``:
        numbers of the names by which plan and schedule go, where not by the image's own. Say so before workers start;
        recorded_teacher does.
        """
        if hashes.shape != (len(self.source),):
            raise ValueError(f"{len(self.source)} images need as many hashes, got {list(hashes.shape)}")
        self._hashes = np.ascontiguousarray(hashes).view(f"S{HASH_BYTES}")
        self._renamed = renamed or {}

    def references(self, *, on_refused: OnRefused = "raise") -> ByReference:
        """For ``TeacherClient(..., by_reference=...)``: what this data set's references mean."""
        if not self.by_reference or self.teacher_rendering is None:
            raise ValueError("this data set yields pixels: make it with by_reference='the server's name for it'")
        own = OwnPixels(self.source, self.teacher_rendering, self.plan, number=self._number)
        return ByReference(
            dataset=self.by_reference,
            rendering=self.teacher_rendering,
            plan=self.plan,
            on_refused=on_refused,
            own_pixels=own,
            sample_name=own.name,
        )

    def __getitem__(self, index: int) -> Crops:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> CropsOfImages:
        """The crops of several images, cut straight into one batch's memory: what a DataLoader asks for."""
        if get_worker_info() is not None:
            limit_threads(os.getpid())
        loaded = [self._load(int(index)) for index in indices]
        numbers = np.array([image.number for image in loaded], np.uint64)
        views_BM = self.schedule.views_at(numbers, self.visit)
        heights = np.array([[image.height] for image in loaded])
        widths = np.array([[image.width] for image in loaded])
        boxes_BM = self.plan.boxes(numbers[:, None], views_BM, heights, widths)

        num_images, num_views = views_BM.shape
        rendering = None if self.by_reference else self.teacher_rendering
        crops = _blank(empty_batch, num_views, num_images, rendering)
        images = crops
        if self.student_rendering != rendering:
            allocate = empty_batch if self._transform is None else _empty_here
            images = _blank(allocate, num_views, num_images, self.student_rendering)
        keys = np.empty((num_views if rendering else 0, num_images, CROP_KEY_BYTES), np.uint8)
        for column, image in enumerate(loaded):
            self._cut(image, boxes_BM[column], rendering, crops[:, column], images[:, column])
            if rendering is not None:
                keys[:, column] = self._keys(image, boxes_BM[column], rendering)
        seen = images if self._transform is None else self._transformed(images, loaded, views_BM)

        flat = _references(loaded, views_BM) if self.by_reference else crops.flatten(0, 1)
        weight = torch.tensor([float(image.image is not None) for image in loaded])
        batch = Crops(
            crops=flat,
            images=flat if seen is crops else seen.flatten(0, 1),
            targets=torch.tensor([image.target for image in loaded]).repeat(num_views),
            keys=keys.tobytes(),
            weight=weight.repeat(num_views),
            samples=torch.tensor([int(index) for index in indices]).repeat(num_views),
            views=torch.from_numpy(views_BM.T.flatten()),
        )
        return CropsOfImages(num_images, batch)

    def _number(self, index: int) -> int:
        return self._renamed[index] if index in self._renamed else sample_number(self.source.name(index))

    def _load(self, index: int) -> _Loaded:
        name = self.source.name(index)
        loaded = _Loaded(name=name, number=self._number(index), target=self.source.target(index))
        try:
            image = self.source.load(index)
            if self._hashes is not None:
                refuse_changed(name, image, self._hashes[index])
            loaded.target = image.target
            loaded.height, loaded.width = image.size(name)
            loaded.image = image
        except (UnreadableImage, SampleChanged) as fault:
            self._skip(loaded, fault)
        return loaded

    def _cut(
        self, loaded: _Loaded, boxes: NDArray[np.void], rendering: Rendering | None, crops: Tensor, images: Tensor
    ) -> None:
        """Fill one image's crops [m, H, W, 3] in both renderings; with zeros where it cannot be read."""
        padded = wants_padded(self.student_rendering, rendering or self.student_rendering)
        try:
            pixels = None if loaded.image is None else loaded.image.pixels(loaded.name, padded=padded)
        except UnreadableImage as fault:
            pixels = None
            self._skip(loaded, fault)
        same = images.data_ptr() == crops.data_ptr()
        if pixels is None:
            crops.zero_()
            images.zero_()
            return
        if rendering is not None:
            cut(pixels, boxes, rendering, out=crops.numpy())
        if not same:
            cut(pixels, boxes, self.student_rendering, out=images.numpy())

    def _keys(self, loaded: _Loaded, boxes: NDArray[np.void], rendering: Rendering) -> NDArray[np.uint8]:
        """Keys [m, 16]: by what the image holds, so that neither two data sets' equal names nor a changed file can be
        taken for one another.
        """
        content = "" if loaded.image is None else loaded.image.digest()
        keys = content_keys([content] * len(boxes), boxes, rendering)
        return np.frombuffer(keys, np.uint8).reshape(-1, CROP_KEY_BYTES)

    def _transformed(self, images: Tensor, loaded: Sequence[_Loaded], views_BM: NDArray[np.int64]) -> Tensor:
        assert self._transform is not None
        block: Tensor | None = None
        for column, image in enumerate(loaded):
            tensors = self._transform(images[:, column].numpy(), image.number, views_BM[column])
            if block is None:
                block = empty_batch((*images.shape[:2], *tensors[0].shape), tensors[0].dtype)
            if tensors[0].shape != block.shape[2:]:
                raise ValueError(
                    f"student_transform must return one shape for all crops, got {list(tensors[0].shape)} after "
                    f"{list(block.shape[2:])}"
                )
            for row, tensor in enumerate(tensors):
                block[row, column] = tensor
        assert block is not None
        return block

    def _skip(self, loaded: _Loaded, fault: UnreadableImage | SampleChanged) -> None:
        loaded.image = None
        if self.on_unreadable == "raise":
            raise fault
        if loaded.name not in self._skipped:
            self._skipped.add(loaded.name)
            _log.warning("skipped with weight 0: %s", fault)


def _references(loaded: Sequence[_Loaded], views_BM: NDArray[np.int64]) -> Tensor:
    """Packed references [m * B, 20] of a batch, crop-index-major; of an unreadable image to no sample at all."""
    contents = [image.image.content_number() if image.image is not None else 0 for image in loaded]
    references = CropReferences.of_views([image.number for image in loaded], contents, views_BM.T)
    packed = empty_batch((len(references), VIEW_REFERENCE.itemsize), torch.uint8)
    packed.numpy()[...] = references.table.view(np.uint8).reshape(len(references), -1)
    return packed


def _blank(
    allocate: Callable[[Sequence[int], torch.dtype], Tensor],
    num_views: int,
    num_images: int,
    rendering: Rendering | None,
) -> Tensor:
    height, width = (rendering.height, rendering.width) if rendering else (0, 0)
    return allocate((num_views, num_images, height, width, 3), torch.uint8)


def _empty_here(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype)


@functools.cache
def limit_threads(pid: int) -> None:
    """Workers are the parallelism: OpenCV's own threads would only get in each other's way, once per process."""
    import cv2

    # Not 1: that stops the pool's threads, which a forked worker knows of but does not have; it hung or crashed.
    cv2.setNumThreads(0)
