"""How a pass finds in a user's batch what it asks the teacher: pixels, keys, samples and views, weights, targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from teacherfarm.protos.faults import ReplayRefused, WrongLayout
from teacherfarm.protos.references import CropReferences

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is submitted for one batch; ``crops`` is None where the teacher needs no pixels."""

    crops: NDArray[Any] | CropReferences | None
    arguments: dict[str, Any]
    num_crops: int


@dataclass(frozen=True, kw_only=True)
class BatchViews(Generic[Batch]):
    """See LabelledLoader; ``samples`` and ``views`` come together, and where a teacher goes by them."""

    crops: Callable[[Batch], Any] | None
    keys: Callable[[Batch], bytes] | None
    samples: Callable[[Batch], Any] | None
    views: Callable[[Batch], Any] | None
    weight: Callable[[Batch], Any] | None
    targets: Callable[[Batch], Any] | None

    def question(self, batch: Batch) -> Question:
        """What to submit for a batch. Raises WrongLayout, ReplayRefused for crops that are no view of a sample where a
        teacher goes by that, or ValueError where samples and crops differ in number.
        """
        crops = None if self.crops is None else _pixels(self.crops(batch))
        arguments: dict[str, Any] = {}
        if crops is not None:
            arguments["keys"] = self.keys(batch) if self.keys is not None else b""
        num_crops = 0 if crops is None else len(crops)
        if self.samples is not None and self.views is not None:
            for name, view in (("samples", self.samples), ("views", self.views)):
                arguments[name] = numbers = np.asarray(view(batch), np.int64)
                num_crops = num_crops or len(numbers)
                if numbers.shape != (num_crops,):
                    raise ValueError(
                        f"{name}= must give one number for each of {num_crops} crops, got {list(numbers.shape)}"
                    )
            if (arguments["views"] < 0).any():
                raise ReplayRefused(
                    "crops that were mixed before the teacher saw them are no view of any sample: their labels are "
                    "neither recorded nor replayed. Give a plain teacher, or mix labels: MixedCrops('labels', ...)"
                )
            if self.weight is not None:
                # No image, no label: neither one to ask again nor one to keep.
                arguments["samples"] = np.where(np.asarray(self.weight(batch)) > 0, arguments["samples"], -1)
        return Question(crops=crops, arguments=arguments, num_crops=num_crops)


def _pixels(view: Any) -> NDArray[Any] | CropReferences:
    """What ``teacher_view`` returned, as a contiguous array; references as they are."""
    if isinstance(view, CropReferences):
        return view
    if isinstance(view, torch.Tensor):
        if view.device.type != "cpu":
            raise WrongLayout(
                f"teacher_view returned a tensor on {view.device}: crops leave from the CPU, so take them "
                "from the batch before it is moved to the device"
            )
        view = view.detach()
        view = (view.float() if view.dtype is torch.bfloat16 else view).numpy()
    if not isinstance(view, np.ndarray):
        raise WrongLayout(
            "teacher_view must return the teacher's crops as one uint8 array or CPU tensor [N, H, W, 3], "
            f"got {type(view).__name__}: for example teacher_view=lambda batch: batch['crops']"
        )
    return np.ascontiguousarray(view)
