"""How a client names crops of a data set that the server has, too, instead of sending their pixels.

Knows no data set and no wire.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.faults import BadReference
from teacherfarm.protos.messages import SampleView
from teacherfarm.protos.references import REFERENCE_TYPES, CropReferences

OnRefused = Literal["raise", "skip", "send"]


@dataclass(frozen=True, kw_only=True)
class ByReference:
    """Give it to a TeacherClient: crops then may be submitted as :class:`CropReferences`.

    ``dataset``: the server's name for the data set. ``rendering``: how the teacher is to see a box. ``plan``: what the
    numbers of views mean; None where every crop comes with its box. ``on_refused``: what to do with a crop that the
    server cannot cut, because its sample differs there, or is not there: "raise" the fault, "skip" (weight 0, and a
    warning that names the sample), or "send" ``own_pixels(references)``, uint8 [N, H, W, 3].
    ``sample_name(number)`` says what the student calls a sample, for messages. ``CropDataset.references`` makes it all.
    """

    dataset: str
    rendering: Rendering
    plan: CropPlan | None = None
    on_refused: OnRefused = "raise"
    own_pixels: Callable[[CropReferences], NDArray[np.uint8]] | None = None
    sample_name: Callable[[int], str] | None = None

    def __post_init__(self) -> None:
        if self.on_refused not in ("raise", "skip", "send"):
            raise ValueError(f"on_refused is 'raise', 'skip' or 'send', got {self.on_refused!r}")
        if self.on_refused == "send" and self.own_pixels is None:
            raise ValueError("on_refused='send' needs own_pixels: who else could cut the crops that the server cannot?")

    @property
    def view(self) -> SampleView:
        """What Hello says."""
        plan = "" if self.plan is None else json.dumps(self.plan.to_dict())
        return SampleView(dataset=self.dataset, rendering=self.rendering, plan=plan)

    def check(self, references: CropReferences) -> None:
        """Raise BadReference for what the server would refuse."""
        if not len(references):
            raise BadReference("a crop batch holds at least one crop, got no reference")
        if references.place == "view" and self.plan is None:
            raise BadReference("views are numbers of a crop plan: give ByReference the plan, or submit boxes")


def as_references(crops: Any) -> CropReferences | None:
    """Crop references as such, or as the packed bytes [N, 20 or 25] that CropDataset yields; None for pixels."""
    if isinstance(crops, CropReferences):
        return crops
    if getattr(crops, "ndim", 0) != 2:
        return None
    packed = np.ascontiguousarray(crops)
    for dtype in REFERENCE_TYPES.values():
        if packed.dtype == np.uint8 and packed.shape[1] == dtype.itemsize:
            return CropReferences(table=packed.reshape(-1).view(dtype))
    return None
