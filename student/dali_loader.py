"""A crop data set's batches, decoded and cut by NVIDIA DALI instead of DataLoader workers. DALI is imported only here.

Its decoder and its filters round otherwise than :mod:`teacherfarm.crops.cutting`: boxes and flips are the same, pixels
are almost. So its crops have no keys: labels of exact pixels, kept or shared, are not mixed up with theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from teacherfarm.crops.crop_plan import sample_number
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.faults import UnreadableImage
from teacherfarm.student.crop_collate import Crops
from teacherfarm.student.crop_dataset import CropDataset

Cutter = Callable[[Sequence[bytes], NDArray[np.void]], Sequence[Tensor]]
"""Encoded images and their boxes [B, m] -> crops uint8 [m * B, H, W, 3] for each rendering, crop-index-major."""


class DaliLoader:
    """``DataLoader(dataset, batch_size, sampler=sampler, drop_last=True, collate_fn=collate_crops)``, by DALI.

    ``batch_size`` counts images. ``device_id``: the GPU that decodes JPEG files; the teacher's crops come back to the
    host, the student's stay there. None: all on the CPU, by ``num_threads``. An image that cannot be decoded ends the
    pass: UnreadableImage names the batch's.
    """

    def __init__(
        self,
        dataset: CropDataset,
        batch_size: int,
        sampler: Any,
        *,
        device_id: int | None = None,
        num_threads: int = 4,
        cutter: Cutter | None = None,
    ) -> None:
        if dataset.by_reference or dataset.has_transform:
            raise ValueError("DALI cuts pixels: it takes no data set by reference, and no student_transform")
        self.dataset = dataset
        self.batch_size = batch_size
        self.sampler = sampler
        teacher, student = dataset.teacher_rendering, dataset.student_rendering
        self._renderings = [student] if teacher in (None, student) else [teacher, student]
        per_visit = dataset.schedule.per_visit
        self._cut = cutter or dali_cutter(self._renderings, batch_size, per_visit, device_id, num_threads)

    def __len__(self) -> int:
        assert isinstance(self.sampler, Sized)
        return len(self.sampler) // self.batch_size

    def __iter__(self) -> Iterator[Crops]:
        order = iter(self.sampler)
        while len(indices := [int(index) for index in islice(order, self.batch_size)]) == self.batch_size:
            yield self._batch(indices)

    def _batch(self, indices: Sequence[int]) -> Crops:
        dataset = self.dataset
        names = [dataset.source.name(index) for index in indices]
        loaded = [dataset.source.load(index) for index in indices]
        if not all(isinstance(image.content, bytes) for image in loaded):
            raise ValueError("DALI decodes encoded images: give the data set as a folder, or as tar or Parquet files")
        heights, widths = zip(*(image.size(name) for image, name in zip(loaded, names, strict=True)), strict=True)
        numbers = np.array([sample_number(name) for name in names], np.uint64)
        views_BM = dataset.schedule.views_at(numbers, dataset.visit)
        boxes_BM = dataset.plan.boxes(numbers[:, None], views_BM, np.array(heights)[:, None], np.array(widths)[:, None])
        try:
            cut = self._cut([image.content for image in loaded if isinstance(image.content, bytes)], boxes_BM)
        except RuntimeError as error:
            raise UnreadableImage(f"DALI cannot read a batch with {', '.join(names[:4])}, ...: {error}") from error
        num_views = views_BM.shape[1]
        nothing = torch.empty((len(names) * num_views, 0, 0, 3), dtype=torch.uint8)
        return Crops(
            crops=cut[0].cpu() if dataset.teacher_rendering is not None else nothing,
            images=cut[-1],
            targets=torch.tensor([image.target for image in loaded]).repeat(num_views),
            keys=b"",
            weight=torch.ones(len(names) * num_views),
            samples=torch.tensor(list(indices)).repeat(num_views),
            views=torch.from_numpy(views_BM.T.flatten()),
        )


def dali_cutter(
    renderings: Sequence[Rendering], num_images: int, num_views: int, device_id: int | None, num_threads: int
) -> Cutter:
    """A DALI pipeline that decodes a batch once and cuts each image's boxes. Raises ValueError without DALI."""
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError as error:
        raise ValueError(
            "DaliLoader needs NVIDIA DALI: pip install nvidia-dali-cuda120 (it runs without a GPU, too)"
        ) from error
    filters = {
        "nearest": types.INTERP_NN,
        "bilinear": types.INTERP_LINEAR,
        "bicubic": types.INTERP_CUBIC,
    }
    if unknown := [rendering.interpolation for rendering in renderings if rendering.interpolation not in filters]:
        raise ValueError(f"DALI has no filter for interpolation {unknown[0]!r}; it has {', '.join(filters)}")

    @pipeline_def(batch_size=num_images, num_threads=num_threads, device_id=device_id)  # type: ignore[untyped-decorator]
    def pipeline() -> tuple[Any, ...]:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        images = fn.decoders.image(
            encoded, device="cpu" if device_id is None else "mixed", output_type=types.RGB, adjust_orientation=False
        )
        outputs = []
        for view in range(num_views):
            box = {
                part: fn.external_source(name=f"{part}{view}", dtype=types.INT32, ndim=1) for part in ("begin", "size")
            }
            flip = fn.external_source(name=f"flip{view}", dtype=types.INT32, ndim=0)
            piece = fn.flip(fn.slice(images, box["begin"], box["size"], axes=(0, 1)), horizontal=flip)
            outputs += [
                fn.resize(
                    piece,
                    size=(rendering.height, rendering.width),
                    interp_type=filters[rendering.interpolation],
                    antialias=rendering.antialias,
                )
                for rendering in renderings
            ]
        return tuple(outputs)

    built = pipeline()
    built.build()

    def cut(encoded: Sequence[bytes], boxes_BM: NDArray[np.void]) -> list[Tensor]:
        built.feed_input("encoded", [np.frombuffer(data, np.uint8) for data in encoded])
        for view, boxes in enumerate(boxes_BM.T):
            built.feed_input(f"begin{view}", np.stack([boxes["top"], boxes["left"]], axis=1).astype(np.int32))
            built.feed_input(f"size{view}", np.stack([boxes["height"], boxes["width"]], axis=1).astype(np.int32))
            built.feed_input(f"flip{view}", boxes["flip"].astype(np.int32))
        outputs = [_tensor(output) for output in built.run()]
        return [torch.cat(outputs[number :: len(renderings)]) for number in range(len(renderings))]

    return cut


def _tensor(output: Any) -> Tensor:
    """A copy of what the pipeline will use again."""
    if type(output).__name__.endswith("GPU"):
        return from_dlpack(output.as_tensor()).clone()
    return torch.from_numpy(np.array(output.as_array()))
