"""One crop batch on the student's side: what is still unanswered, and the labels as they come in."""

from __future__ import annotations

import concurrent.futures
import contextlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.crop_codec import encode_crops
from teacherfarm.protos.crop import CROP_KEY_BYTES, CropFormat, pixel_keys
from teacherfarm.protos.soft_label import LabelSpec, SoftLabels
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.protos.wire import Buffer


class Delivery(Protocol):
    """Where a batch's labels or fault go; asyncio's and concurrent.futures' futures both fit."""

    def done(self) -> bool: ...
    def set_result(self, result: SoftLabels, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...


class PendingBatch:
    """A crop batch between :meth:`AsyncTeacherClient.submit` and its labels. The first answer of a row wins."""

    def __init__(
        self, batch_id: int, pixels: NDArray[Any], keys: bytes, priority: int, delivery: Delivery, asked_s: float
    ) -> None:
        self.id = batch_id
        self.pixels = pixels
        self.priority = priority
        self.asked_s = asked_s
        self.missing_crops = len(pixels)
        self._keys = keys
        self._delivery = delivery
        self._records: NDArray[np.void] | None = None
        self._answered = np.zeros(len(pixels), np.bool_)
        self._jpegs: tuple[bytes | memoryview, ...] = ()

    def __repr__(self) -> str:
        return f"<PendingBatch {self.id}: {self.missing_crops} of {len(self.pixels)} crops missing>"

    @property
    def given_up(self) -> bool:
        """Whether nobody waits any more: cancelled, starved or failed."""
        return self._delivery.done()

    def encode(self, crop_format: CropFormat) -> None:
        """Compress the crops, once; safe on another thread before the batch is sent."""
        self._jpegs = encode_crops(self.pixels, crop_format).parts

    def crop_bytes(self, first: int, num_crops: int) -> tuple[int, ...]:
        """The lengths of some rows in their payload; empty where all are equally long (raw)."""
        return tuple(len(jpeg) for jpeg in self._jpegs[first : first + num_crops])

    def payload(self, first: int, num_crops: int) -> Buffer:
        """The pixels of some rows as bytes; raw ones without a copy."""
        if self._jpegs:
            return b"".join(self._jpegs[first : first + num_crops])
        return self.pixels[first : first + num_crops].reshape(-1).view(np.uint8).data

    def keys(self, first: int, num_crops: int, *, wanted: bool) -> bytes:
        """The crop keys of some rows: those that came with them, or else made of the pixels where they are wanted."""
        if wanted and not self._keys:
            return pixel_keys(self.pixels[first : first + num_crops])
        return self._keys[first * CROP_KEY_BYTES : (first + num_crops) * CROP_KEY_BYTES]

    def fill(self, first: int, records: NDArray[np.void]) -> None:
        """Take the labels of some rows."""
        if self._records is None:
            # Zeros, so that rows which never get an answer hold no garbage.
            self._records = np.zeros(len(self.pixels), records.dtype)
        rows = slice(first, first + len(records))
        self._records[rows] = records
        self.missing_crops -= int(np.count_nonzero(~self._answered[rows]))
        self._answered[rows] = True

    def deliver(self, spec: LabelSpec, card: TeacherCard) -> None:
        """Hand over what came in; rows without an answer have weight 0."""
        if self._delivery.done():
            return
        records = self._records
        if records is None:
            records = np.zeros(len(self.pixels), spec.record_dtype(card))
        labels = SoftLabels.from_records(records, spec, card, self._answered.astype(np.float32))
        # Another thread may cancel between the look and the delivery.
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            self._delivery.set_result(labels)

    def fail(self, fault: BaseException) -> None:
        """Hand over a fault instead."""
        if not self._delivery.done():
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                self._delivery.set_exception(fault)
