"""What becomes of crops by reference that the server could not cut: raised, left out, or sent as pixels."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.faults import MalformedMessage, TeacherFarmFault
from teacherfarm.protos.references import CropReferences
from teacherfarm.student.batch import Part, PendingBatch
from teacherfarm.student.by_reference import ByReference

log = logging.getLogger(__name__)


class Fail(Protocol):
    """Hands a batch its fault."""

    def __call__(self, batch: PendingBatch, fault: BaseException, /) -> None: ...


class RefusedCrops:
    """Acts by the policy of ``by_reference``. ``complete`` gets batches that now have all answers, ``fail`` those that
    get a fault, ``send`` parts of batches, in pixels.
    """

    def __init__(
        self,
        by_reference: ByReference | None,
        *,
        ids: Iterator[int],
        complete: Callable[[PendingBatch], None],
        fail: Fail,
        send: Callable[[PendingBatch], None],
    ) -> None:
        self._how = by_reference
        self._ids = ids
        self._complete, self._fail, self._send = complete, fail, send
        self._told: set[int] = set()
        self.tasks: set[asyncio.Task[None]] = set()

    def act(self, batch: PendingBatch, rows: NDArray[np.int64], faults: list[TeacherFarmFault]) -> None:
        """The server refused these rows. Raises MalformedMessage where they were no references."""
        references = batch.crops
        if self._how is None or not isinstance(references, CropReferences):
            raise MalformedMessage("the server refused single crops of a batch that was sent as pixels")
        # No image at all: the data set could not read it, said so, and gives it weight 0.
        none = references.table["content"] == 0
        absent = none[rows]
        if references.mixing is not None:
            absent = absent | none[references.mixing["partner"][rows]]
        if absent.any():
            batch.leave_out(rows[absent])
            faults = [fault for fault, out in zip(faults, absent.tolist(), strict=True) if not out]
            rows = rows[~absent]
        if not len(rows):
            return
        numbers = references.table["sample"][rows].tolist()
        if self._how.on_refused == "raise":
            self._fail(batch, self._explained(numbers[0], faults[0]))
        elif self._how.on_refused == "skip":
            self._warn(numbers, faults)
            batch.leave_out(rows)
        else:
            task = asyncio.get_running_loop().create_task(self._send_own(batch, references, rows, faults))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _send_own(
        self,
        batch: PendingBatch,
        references: CropReferences,
        rows: NDArray[np.int64],
        faults: list[TeacherFarmFault],
    ) -> None:
        assert self._how is not None
        assert self._how.own_pixels is not None
        wanted = references.take(rows)
        try:
            pixels = await asyncio.get_running_loop().run_in_executor(None, self._how.own_pixels, wanted)
            if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != len(rows):
                raise ValueError(
                    f"own_pixels must return uint8 [{len(rows)}, H, W, 3], got {pixels.dtype} {list(pixels.shape)}"
                )
        except TeacherFarmFault as fault:
            # Neither end can cut them: nothing is left to ask.
            self._warn(references.table["sample"][rows].tolist(), [fault] * len(rows))
            batch.leave_out(rows)
            if not batch.missing_crops and not batch.given_up:
                self._complete(batch)
        except Exception as error:
            self._fail(batch, error)
        else:
            self._send(Part(next(self._ids), batch, rows, pixels, self._complete))

    def _warn(self, numbers: list[int], faults: list[TeacherFarmFault]) -> None:
        for number, fault in zip(numbers, faults, strict=True):
            if number not in self._told:
                self._told.add(number)
                log.warning("crops without labels, weight 0: %s", self._explained(number, fault))

    def _explained(self, number: int, fault: TeacherFarmFault) -> TeacherFarmFault:
        """The fault of a sample, naming it as the student does."""
        assert self._how is not None
        name = self._how.sample_name
        own = f"sample {name(number)!r}" if name is not None else f"the sample with the number {number:016x}"
        return type(fault)(
            f"{own} cannot be cut by the server: {fault.message or 'as others of this batch'}. Its data set "
            f"{self._how.dataset!r} must hold the same images; on_refused='send' sends pixels instead, 'skip' gives "
            "such crops weight 0"
        )
