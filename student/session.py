"""One session of a client, from Welcome to its end: sends slices as the window allows, and books the answers.

Ends with the fault that ended it. What it leaves unanswered stays in the ledger for the next session.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.faults import MalformedMessage, SessionLost, TeacherFarmFault, UnexpectedMessage
from teacherfarm.protos.messages import (
    FarmLoad,
    GetTeacher,
    GoAway,
    Goodbye,
    Ping,
    Pong,
    Slice,
    SliceFault,
    SliceLabels,
    StudentReport,
    Teacher,
    Welcome,
)
from teacherfarm.protos.references import CropReferences
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.protos.wire import Buffer, decode_header, encode_header
from teacherfarm.student.accounts import ClientStats
from teacherfarm.student.batch import PendingBatch
from teacherfarm.student.ledger import Ledger, PendingSlice
from teacherfarm.student.teacher_head import Question
from teacherfarm.student.transports.transport import Transport

log = logging.getLogger(__name__)

SHORTEST_DELAY_S = 0.01


class Session:
    """A greeted connection. ``spec`` is the resolved label spec, the same on every session of a client.

    ``send_again`` is called with a slice that the server refused for now, once it may be sent again: maybe
    only after this session ended, so it goes to whichever session there is then. ``complete`` gets a batch that has all
    its answers, ``refused`` rows of one that the server could not cut.
    """

    def __init__(
        self,
        transport: Transport,
        welcome: Welcome,
        card: TeacherCard,
        spec: LabelSpec,
        *,
        most_crops: int,
        ledger: Ledger,
        stats: ClientStats,
        send_again: Callable[[PendingSlice], None],
        complete: Callable[[PendingBatch], None],
        refused: Callable[[PendingBatch, NDArray[np.int64], list[TeacherFarmFault]], None],
    ) -> None:
        self._most_crops = most_crops
        self.window_crops = welcome.window_crops
        self._keys_wanted = welcome.keys_wanted
        self._transport = transport
        self._slice_crops = max(1, welcome.slice_crops)
        self._reference_crops = welcome.reference_crops
        self._card = card
        self._spec = spec
        self._record_dtype = spec.record_dtype(card)
        self._ledger = ledger
        self._stats = stats
        self._send_again = send_again
        self._complete = complete
        self._refused = refused
        self._taken_crops = 0
        self._going_away = False
        self._question = Question()
        self._load_told_s = time.monotonic()

    def pump(self) -> None:
        """Send what fits the window."""
        while not self._going_away:
            slice_ = self._ledger.next_to_send(
                window_crops=self.window_crops,
                slice_crops=self._slice_crops,
                reference_crops=self._reference_crops,
                most_crops=self._most_crops,
            )
            if slice_ is None:
                return
            batch, first, num_crops = slice_.batch, slice_.first, slice_.num_crops
            header = Slice(
                batch_id=batch.id,
                first_row=first,
                num_crops=num_crops,
                taken_crops=self._taken_crops,
                keys=batch.keys(first, num_crops, wanted=self._keys_wanted),
                crop_bytes=batch.crop_bytes(first, num_crops),
                priority=batch.priority,
                place=batch.crops.place if isinstance(batch.crops, CropReferences) else "pixels",
                mixing=batch.crops.mixing_kind if isinstance(batch.crops, CropReferences) else "none",
            )
            payload = batch.payload(first, num_crops)
            self._stats.bytes_sent += len(payload)
            self._transport.send(encode_header(header), payload)

    def ping(self, report: StudentReport | None = None) -> None:
        """Show the server that this student lives, what it has taken, and how it fares."""
        self._transport.send(encode_header(Ping(taken_crops=self._taken_crops, report=report)))

    async def ask(self, question: GetTeacher) -> tuple[Teacher, bytes]:
        """Its answer and payload; one at a time. Raises SessionLost when the session ends first."""
        return await self._question.ask(question, lambda asked: self._transport.send(encode_header(asked)))

    def end(self) -> None:
        """The session is over: nothing is answered any more."""
        self._question.fail(SessionLost("the session ended"))

    def say_goodbye(self) -> None:
        """Tell the server that nothing more comes."""
        self._transport.send(encode_header(Goodbye()))

    async def run(self) -> None:
        """Receive until the session ends, by raising: SessionLost, or what the server ended it with."""
        self.pump()
        while self._ledger.awaits_answers or not self._going_away:
            header, payload = await self._transport.receive()
            match decode_header(header):
                case SliceLabels() as labels:
                    self._receive_labels(labels, payload)
                case SliceFault() as fault:
                    self._receive_fault(fault)
                case Pong(window_crops=window_crops, load=load):
                    self._set_window(window_crops)
                    if load is not None:
                        self._note_load(load)
                case Teacher() as teacher if self._question.answer(teacher, payload):
                    self._stats.bytes_received += len(payload)
                case GoAway(reason=reason):
                    log.info("the server goes away: %s", reason)
                    self._going_away = True
                case other:
                    raise UnexpectedMessage(f"the server sent {type(other).__name__} in the middle of a session")
            self.pump()
        raise SessionLost("the server is draining")

    def _set_window(self, window_crops: int) -> None:
        if window_crops:
            self.window_crops = window_crops

    def _note_load(self, load: FarmLoad) -> None:
        now_s = time.monotonic()
        self._stats.load = self._stats.load.plus(load, now_s - self._load_told_s)
        self._load_told_s = now_s

    def _receive_labels(self, labels: SliceLabels, payload: Buffer) -> None:
        self._stats.bytes_received += len(payload)
        self._set_window(labels.window_crops)
        self._keys_wanted = labels.keys_wanted
        batch, num_crops = None, 0
        # An answer covers one slice, or several that follow each other.
        while num_crops < labels.num_crops:
            slice_ = self._ledger.answered(labels.batch_id, labels.first_row + num_crops)
            if slice_ is None:
                break
            batch = slice_.batch
            num_crops += slice_.num_crops
        if batch is None:
            self._stats.late_answers += 1
            return
        self._taken_crops += num_crops
        if labels.num_crops != num_crops or len(payload) != num_crops * self._record_dtype.itemsize:
            raise MalformedMessage(
                f"{num_crops} labels of {self._record_dtype.itemsize} bytes were due, got "
                f"{labels.num_crops} in {len(payload)} bytes"
            )
        if batch.given_up:
            self._stats.late_answers += 1
            self._ledger.close(batch)
            return
        records = np.frombuffer(payload, self._record_dtype)
        if not labels.refused:
            batch.fill(labels.first_row, records)
        else:
            had = np.ones(num_crops, np.bool_)
            had[[crop.row for crop in labels.refused]] = False
            rows = labels.first_row + np.arange(num_crops)
            batch.fill_rows(rows[had], records[had])
            self._refused(batch, rows[~had], [crop.fault for crop in sorted(labels.refused, key=lambda crop: crop.row)])
        if not batch.missing_crops and not batch.given_up:
            self._complete(batch)

    def _receive_fault(self, answer: SliceFault) -> None:
        fault = answer.fault
        if not answer.num_crops:
            # What ends a session is no answer to a question, whoever waits for one.
            if not isinstance(fault, SessionLost) and self._question.fail(fault):
                return
            raise fault
        self._set_window(answer.window_crops)
        slice_ = self._ledger.answered(answer.batch_id, answer.first_row)
        if slice_ is None:
            return
        if fault.retry == "never":
            self._ledger.close(slice_.batch)
            if not slice_.batch.given_up:
                self._stats.crops_failed += len(slice_.batch.crops)
                slice_.batch.fail(fault)
        elif isinstance(fault, SessionLost):
            self._going_away = True
            self._ledger.send_again(slice_)
        else:
            self._ledger.put_off(slice_)
            delay_s = max(fault.retry_after_s, SHORTEST_DELAY_S)
            asyncio.get_running_loop().call_later(delay_s, self._send_again, slice_)
