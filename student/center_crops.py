"""The evaluation view of an image data set: each image once, resized and cut at its centre, for teacher and student.

Knows no crop plan and no wire.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from teacherfarm.crops.cutting import resize_and_center_crop
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.faults import UnreadableImage
from teacherfarm.student.image_sources import ImageSource, image_source
from teacherfarm.student.losses import NO_TARGET

log = logging.getLogger(__name__)


class CenterCropDataset(Dataset[dict[str, Any]]):
    """Items with ``crops`` (the teacher's rendering, uint8 [H, W, 3]), ``images`` (the student's), ``targets``,
    ``weight`` and ``samples``; the usual collation batches them.

    ``fraction``: the share of the shorter side that the centre crop covers (the card's ``center_crop_fraction``). An
    unreadable image is named in a warning and has zeros, weight 0 and NO_TARGET.
    """

    def __init__(
        self,
        images: str | Path | ImageSource | Sequence[Any] | Dataset[Any],
        *,
        teacher_rendering: Rendering,
        student_rendering: Rendering | None = None,
        fraction: float = 0.875,
    ) -> None:
        self.source: ImageSource = image_source(images)
        self.teacher_rendering = teacher_rendering
        self.student_rendering = student_rendering or teacher_rendering
        self.fraction = fraction

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        teacher, student = self.teacher_rendering, self.student_rendering
        try:
            image = self.source.load(index)
            pixels = image.pixels(self.source.name(index))
        except UnreadableImage as error:
            log.warning("left out: %s", error)
            return {
                "crops": torch.zeros(teacher.height, teacher.width, 3, dtype=torch.uint8),
                "images": torch.zeros(student.height, student.width, 3, dtype=torch.uint8),
                "targets": NO_TARGET,
                "weight": 0.0,
                "samples": index,
            }
        crops = torch.from_numpy(resize_and_center_crop(pixels, teacher, self.fraction))
        same = student == teacher
        return {
            "crops": crops,
            "images": crops if same else torch.from_numpy(resize_and_center_crop(pixels, student, self.fraction)),
            "targets": image.target,
            "weight": 1.0,
            "samples": index,
        }
