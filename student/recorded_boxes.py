"""A crop plan made of recorded boxes: training from labels whose crops no plan gave, such as FKD's."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from teacherfarm.crops.crop_plan import CropPlan, sample_numbers
from teacherfarm.label_store.recorded_labels import RecordedLabels
from teacherfarm.student.image_sources import ImageSource
from teacherfarm.student.recorded_samples import RecordedImages


@dataclass(frozen=True, kw_only=True)
class RecordedBoxes(CropPlan):
    """``CropDataset(plan=RecordedBoxes.of(labels, source))`` cuts the crops that were labelled.

    A view that was not recorded has a box of the plan that this would otherwise be; its label has weight 0. Only
    ``seed`` acts otherwise: on the student's transforms.
    """

    labels: RecordedLabels = field(compare=False, repr=False)
    numbers: NDArray[np.uint64] = field(compare=False, repr=False)
    rows: NDArray[np.int64] = field(compare=False, repr=False)

    @classmethod
    def of(cls, labels: RecordedLabels, source: ImageSource, *, seed: int = 0) -> RecordedBoxes:
        """Raises ValueError where a crop plan gave the crops, or nobody can cut them."""
        manifest = labels.manifest
        if not manifest.has_boxes:
            how = "its crop plan" if manifest.plan is not None else manifest.mixing
            raise ValueError(f"{labels.directory} keeps no boxes: its crops are given by {how}")
        numbers = sample_numbers(source.name(place) for place in range(len(source)))
        images = RecordedImages.of(labels.index, source)
        # Renamed images go by either name: RecordedTeacher lets the data set go by the recorded one.
        renamed = list(images.renamed)
        rows = np.concatenate([images.rows, images.rows[renamed]]) if renamed else images.rows
        numbers = np.concatenate([numbers, np.array(list(images.renamed.values()), np.uint64)])
        order = np.argsort(numbers)
        return cls(seed=seed, labels=labels, numbers=numbers[order], rows=rows[order])

    def boxes(self, samples: ArrayLike, views: ArrayLike, heights: ArrayLike, widths: ArrayLike) -> NDArray[np.void]:
        """Boxes for sample numbers and views, broadcast; image sizes matter where none was recorded alone."""
        boxes = super().boxes(samples, views, heights, widths)
        sample, view = np.broadcast_arrays(np.asarray(samples, np.uint64), np.asarray(views, np.int64))
        places = np.searchsorted(self.numbers, sample)
        places[places == len(self.numbers)] = 0
        rows = np.where(self.numbers[places] == sample, self.rows[places], -1)
        recorded = self.labels.boxes(rows.ravel(), view.ravel())
        assert recorded is not None
        recorded = recorded.reshape(rows.shape)
        there = recorded["height"] > 0
        boxes[there] = recorded[there]
        return boxes

    def to_dict(self) -> dict[str, object]:
        """For a run's settings: whose boxes they are."""
        return {"kind": "recorded boxes", "samples": self.labels.manifest.samples, "seed": self.seed}
