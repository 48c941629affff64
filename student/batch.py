"""One crop batch on the student's side: what is still unanswered, and the labels as they come in."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.crop_codec import encode_crops
from teacherfarm.protos.crop import CROP_KEY_BYTES, CropFormat, pixel_keys
from teacherfarm.protos.references import CropReferences
from teacherfarm.protos.soft_label import LabelSpec, SoftLabels
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.protos.wire import Buffer


class Delivery(Protocol):
    """Where a batch's labels or fault go; asyncio's and concurrent.futures' futures both fit."""

    def done(self) -> bool: ...
    def set_result(self, result: SoftLabels, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...


class PendingBatch:
    """A crop batch between :meth:`AsyncTeacherClient.submit` and its labels. The first answer of a row wins.

    Crops by reference are sorted by sample, so that the server decodes each image once; their labels are put back in
    the order asked.
    """

    def __init__(
        self,
        batch_id: int,
        crops: NDArray[Any] | CropReferences,
        keys: bytes,
        priority: int,
        delivery: Delivery,
        asked_s: float,
    ) -> None:
        self.id = batch_id
        self.crops = crops
        self.priority = priority
        self.asked_s = asked_s
        self.missing_crops = len(crops)
        self._keys = keys
        self._delivery = delivery
        self._records: NDArray[np.void] | None = None
        self._answered = np.zeros(len(crops), np.bool_)
        self._weight = np.zeros(len(crops), np.float32)
        self._jpegs: tuple[bytes | memoryview, ...] = ()
        self._order: NDArray[np.int64] | None = None
        if isinstance(crops, CropReferences):
            self._order = np.argsort(crops.table["sample"][: len(crops)], kind="stable")
            self.crops = crops.take(self._order)

    def __repr__(self) -> str:
        return f"<PendingBatch {self.id}: {self.missing_crops} of {len(self.crops)} crops missing>"

    @property
    def given_up(self) -> bool:
        """Whether nobody waits any more: cancelled, starved or failed."""
        return self._delivery.done()

    def encode(self, crop_format: CropFormat) -> None:
        """Compress the crops, once; safe on another thread before the batch is sent."""
        if not isinstance(self.crops, CropReferences):
            self._jpegs = encode_crops(self.crops, crop_format).parts

    def crop_bytes(self, first: int, num_crops: int) -> tuple[int, ...]:
        """The lengths of some rows in their payload; empty where all are equally long (raw)."""
        return tuple(len(jpeg) for jpeg in self._jpegs[first : first + num_crops])

    def rows_at_once(self, first: int, num_crops: int, *, slice_crops: int, reference_crops: int) -> int:
        """How many of ``num_crops`` rows go into one slice: of references as many as leave no image half cut."""
        if not isinstance(self.crops, CropReferences):
            return min(num_crops, slice_crops)
        rows = min(num_crops, max(reference_crops, 1))
        samples = self.crops.table["sample"]
        if rows < num_crops and samples[first + rows] == samples[first + rows - 1]:
            begin = first + int(np.argmax(samples[first : first + rows] == samples[first + rows]))
            rows = begin - first or rows
        return rows

    def payload(self, first: int, num_crops: int) -> Buffer:
        """The pixels of some rows as bytes, raw ones without a copy; or the packed references."""
        if isinstance(self.crops, CropReferences):
            return self.crops.take(slice(first, first + num_crops)).pack()
        if self._jpegs:
            return b"".join(self._jpegs[first : first + num_crops])
        return self.crops[first : first + num_crops].reshape(-1).view(np.uint8).data

    def keys(self, first: int, num_crops: int, *, wanted: bool) -> bytes:
        """The crop keys of some rows: those that came with them, or else made of the pixels where they are wanted."""
        if isinstance(self.crops, CropReferences):
            return b""  # the server makes them
        if wanted and not self._keys:
            return pixel_keys(self.crops[first : first + num_crops])
        return self._keys[first * CROP_KEY_BYTES : (first + num_crops) * CROP_KEY_BYTES]

    def fill(self, first: int, records: NDArray[np.void]) -> None:
        """Take the labels of some rows."""
        self.fill_rows(slice(first, first + len(records)), records)

    def fill_rows(
        self, rows: NDArray[np.int64] | slice, records: NDArray[np.void], weight: NDArray[np.float32] | float = 1.0
    ) -> None:
        """Take the labels of any rows; those of weight 0 mean nothing."""
        if self._records is None:
            # Zeros, so that rows which never get an answer hold no garbage.
            self._records = np.zeros(len(self.crops), records.dtype)
        self._records[rows] = records
        self._weight[rows] = weight
        self._note_answered(rows)

    def leave_out(self, rows: NDArray[np.int64]) -> None:
        """These rows get no label, and nothing more is waited for."""
        self._note_answered(rows)

    def _note_answered(self, rows: NDArray[np.int64] | slice) -> None:
        self.missing_crops -= int(np.count_nonzero(~self._answered[rows]))
        self._answered[rows] = True

    def deliver(self, spec: LabelSpec, card: TeacherCard) -> None:
        """Hand over what came in; rows without an answer have weight 0."""
        if self._delivery.done():
            return
        records, weight = self._records, self._weight
        if records is None:
            records = np.zeros(len(self.crops), spec.record_dtype(card))
        if self._order is not None:
            places = np.argsort(self._order)
            records, weight = records[places], weight[places]
        labels = SoftLabels.from_records(records, spec, card, weight)
        # Another thread may cancel between the look and the delivery.
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            self._delivery.set_result(labels)

    def fail(self, fault: BaseException) -> None:
        """Hand over a fault instead."""
        if not self._delivery.done():
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                self._delivery.set_exception(fault)


class Part(PendingBatch):
    """Rows of a batch by reference that the server could not cut, sent as pixels; they answer for the whole."""

    def __init__(
        self,
        batch_id: int,
        whole: PendingBatch,
        rows: NDArray[np.int64],
        pixels: NDArray[np.uint8],
        complete: Callable[[PendingBatch], None],
    ) -> None:
        super().__init__(batch_id, np.ascontiguousarray(pixels), b"", whole.priority, whole._delivery, whole.asked_s)
        self._whole, self._rows, self._complete = whole, rows, complete

    def deliver(self, spec: LabelSpec, card: TeacherCard) -> None:
        """Fill the rows of the whole, which may be complete now."""
        records = self._records
        if records is None:
            records = np.zeros(len(self._rows), spec.record_dtype(card))
        self._whole.fill_rows(self._rows, records, self._weight)
        if not self._whole.missing_crops:
            self._complete(self._whole)
