"""Crops by reference: a few bytes that name a crop of a data set which the server has, too; packed and unpacked.

A slice by reference is a table of references, then one record of mixing a crop where its crops are mixed. The first
references of the table are the crops themselves, further ones are named only as partners.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from teacherfarm.protos.crop import MOST_PRIORITY
from teacherfarm.protos.faults import BadReference

Place = Literal["pixels", "view", "box"]
"""What names a crop in a slice: its pixels, the number of its view by the crop plan, or its box."""
Mixing = Literal["none", "mixup", "cutmix"]

_SAMPLE = [("sample", "<u8"), ("content", "<u8")]
_BOX = [("top", "<u2"), ("left", "<u2"), ("height", "<u2"), ("width", "<u2")]
VIEW_REFERENCE = np.dtype([*_SAMPLE, ("view", "<u4")])
"""20 bytes: the number of the sample's name, the first half of its image's hash, the view."""
BOX_REFERENCE = np.dtype([*_SAMPLE, *_BOX, ("flip", "u1")])
"""25 bytes: the same with a box in the sample's own pixels."""
MIXUP = np.dtype([("partner", "<u2"), ("own_share", "<u2")])
"""Which row of the table a crop is mixed with, and how many of 256 parts stay its own."""
CUTMIX = np.dtype([("partner", "<u2"), *_BOX])
"""Which row of the table a crop is mixed with, and the box of the crop that becomes the partner's (height 0: none)."""

REFERENCE_TYPES: dict[Place, np.dtype[np.void]] = {"view": VIEW_REFERENCE, "box": BOX_REFERENCE}
MIXING_TYPES: dict[Mixing, np.dtype[np.void]] = {"mixup": MIXUP, "cutmix": CUTMIX}
SHARES = 256
MOST_REFERENCES = 1 << 16


@dataclass(frozen=True, kw_only=True, eq=False)
class CropReferences:
    """Crops that the server cuts by itself: give it to ``TeacherClient.submit`` in the place of pixels.

    ``table``: VIEW_REFERENCE or BOX_REFERENCE records; ``mixing``: MIXUP or CUTMIX records, one a crop, whose partners
    are rows of the table, or None. Made by :meth:`of_views` or :meth:`of_boxes`, and mixed by
    :func:`teacherfarm.crops.mixing.mix_references`.
    """

    table: NDArray[np.void]
    mixing: NDArray[np.void] | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        if self.table.dtype not in (VIEW_REFERENCE, BOX_REFERENCE) or self.table.ndim != 1:
            raise BadReference(f"references are VIEW_REFERENCE or BOX_REFERENCE records, got {self.table.dtype}")
        if abs(self.priority) > MOST_PRIORITY:
            raise BadReference(f"priority lies from -{MOST_PRIORITY} to {MOST_PRIORITY}, got {self.priority}")
        mixing = self.mixing
        if mixing is None:
            return
        if mixing.dtype not in (MIXUP, CUTMIX) or mixing.ndim != 1:
            raise BadReference(f"mixing is MIXUP or CUTMIX records, got {mixing.dtype}")
        if not len(mixing) <= len(self.table) <= MOST_REFERENCES:
            raise BadReference(f"{len(mixing)} mixed crops in a table of {len(self.table)} references")
        if len(mixing) and int(mixing["partner"].max()) >= len(self.table):
            raise BadReference(
                f"partner {int(mixing['partner'].max())} of a mix is not among {len(self.table)} references"
            )
        if mixing.dtype == MIXUP and len(mixing) and int(mixing["own_share"].max()) > SHARES:
            raise BadReference(f"a crop's own share lies in 0..{SHARES}, got {int(mixing['own_share'].max())}")

    def __len__(self) -> int:
        return len(self.table) if self.mixing is None else len(self.mixing)

    def __repr__(self) -> str:
        mixed = "" if self.mixing is None else f", {self.mixing_kind}"
        return f"<CropReferences {len(self)} crops by {self.place}{mixed}>"

    @classmethod
    def of_views(
        cls, samples: ArrayLike, contents: ArrayLike, views: ArrayLike, *, priority: int = 0
    ) -> CropReferences:
        """``samples``: numbers of names (``sample_number``); ``contents``: first halves of hashes."""
        sample, content, view = np.broadcast_arrays(
            np.asarray(samples, np.uint64), np.asarray(contents, np.uint64), np.asarray(views)
        )
        if view.size and not (int(view.min()) >= 0 and int(view.max()) < 2**32):
            raise BadReference(f"views lie in 0..2**32 - 1, got {int(view.min())} to {int(view.max())}")
        table = np.empty(sample.size, VIEW_REFERENCE)
        table["sample"], table["content"], table["view"] = sample.ravel(), content.ravel(), view.ravel()
        return cls(table=table, priority=priority)

    @classmethod
    def of_boxes(
        cls, samples: ArrayLike, contents: ArrayLike, boxes: NDArray[np.void], *, priority: int = 0
    ) -> CropReferences:
        """The same for crops with boxes of their own (``crop_plan.BOX`` records), from DALI, FFCV or others."""
        sample, content = np.asarray(samples, np.uint64), np.asarray(contents, np.uint64)
        table = np.empty(len(boxes), BOX_REFERENCE)
        table["sample"], table["content"], table["flip"] = sample, content, boxes["flip"]
        for side in ("top", "left", "height", "width"):
            if len(boxes) and int(boxes[side].max()) >= 1 << 16:
                raise BadReference(f"a box's {side} lies below 65536, got {int(boxes[side].max())}")
            table[side] = boxes[side]
        return cls(table=table, priority=priority)

    @property
    def place(self) -> Place:
        return "view" if self.table.dtype == VIEW_REFERENCE else "box"

    @property
    def mixing_kind(self) -> Mixing:
        if self.mixing is None:
            return "none"
        return "mixup" if self.mixing.dtype == MIXUP else "cutmix"

    def take(self, rows: NDArray[np.int64] | slice) -> CropReferences:
        """Some crops, with the references that they need and no others."""
        if self.mixing is None:
            return CropReferences(table=self.table[rows], priority=self.priority)
        chosen = np.arange(len(self.table))[: len(self)][rows]
        mixing = self.mixing[chosen]
        partners = mixing["partner"].astype(np.int64)
        places = np.full(len(self.table), -1)
        places[chosen[::-1]] = np.arange(len(chosen))[::-1]
        extra = np.unique(partners[places[partners] < 0])
        places[extra] = len(chosen) + np.arange(len(extra))
        mixing["partner"] = places[partners]
        return CropReferences(table=self.table[np.concatenate([chosen, extra])], mixing=mixing, priority=self.priority)

    def pack(self) -> bytes:
        """The payload of a slice of these crops."""
        return self.table.tobytes() + (b"" if self.mixing is None else self.mixing.tobytes())

    @classmethod
    def unpack(
        cls, payload: bytes | bytearray | memoryview, num_crops: int, place: Place, mixing: Mixing = "none"
    ) -> CropReferences:
        """What :meth:`pack` made. Raises BadReference where the bytes are not that of ``num_crops`` crops."""
        reference, mix = REFERENCE_TYPES[place], MIXING_TYPES.get(mixing)
        mixed = 0 if mix is None else mix.itemsize * num_crops
        references, rest = divmod(len(payload) - mixed, reference.itemsize)
        most = num_crops if mix is None else 2 * num_crops
        if rest or not num_crops <= references <= most:
            raise BadReference(
                f"{num_crops} crops by {place}, {mixing if mix else 'unmixed'}, take {reference.itemsize} bytes each"
                f"{f', {mix.itemsize} for mixing, and at most one partner each' if mix else ''}; got "
                f"{len(payload)} bytes"
            )
        table = np.frombuffer(payload, reference, references)
        return cls(
            table=table,
            mixing=None if mix is None else np.frombuffer(payload, mix, num_crops, references * reference.itemsize),
        )
