"""A pending batch: rows filled in any order, and a delivery that somebody cancels at the wrong moment."""

import concurrent.futures

import numpy as np
import pytest

from teacherfarm.protos.faults import SessionLost
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.batch import PendingBatch
from tests.unit.teacher_server.scripted import CARD, answer, crops

SPEC = LabelSpec().resolve(CARD)


class CancelledInBetween(concurrent.futures.Future):
    """Not done when it is looked at, cancelled by another thread when it is delivered to."""

    def done(self) -> bool:
        self.cancel()
        return False


def batch_of(*firsts: int, delivery=None) -> PendingBatch:
    delivery = concurrent.futures.Future() if delivery is None else delivery
    return PendingBatch(1, crops(*firsts), b"", 0, delivery, 0.0)


def records(*firsts: int) -> np.ndarray:
    return SPEC.pack(answer(crops(*firsts), SPEC.graph_outputs(CARD)), CARD)


@pytest.mark.parametrize("hand_over", [lambda b: b.deliver(SPEC, CARD), lambda b: b.fail(SessionLost("gone"))])
def test_cancelling_while_it_is_handed_over_harms_nobody(hand_over):
    delivery = CancelledInBetween()
    hand_over(batch_of(1, 2, delivery=delivery))
    assert delivery.cancelled()


def test_rows_may_come_in_any_order_and_twice():
    batch = batch_of(*range(6))
    for first, firsts in ((4, (4, 5)), (0, (0, 1)), (0, (0, 1)), (2, (2,))):
        batch.fill(first, records(*firsts))
    assert (batch.missing_crops, repr(batch)) == (1, "<PendingBatch 1: 1 of 6 crops missing>")
    batch.deliver(SPEC, CARD)
    labels = batch._delivery.result()
    assert labels.weight.tolist() == [1, 1, 1, 0, 1, 1]
    assert np.array_equal(labels.records[4:], records(4, 5))
    assert not labels.records[3].tobytes().strip(b"\0"), "no garbage where nothing came"


def test_one_delivery_and_no_more():
    batch = batch_of(1)
    batch.fail(SessionLost("first"))
    batch.deliver(SPEC, CARD)
    batch.fail(SessionLost("second"))
    assert batch.given_up
    with pytest.raises(SessionLost, match="first"):
        batch._delivery.result()


def test_pixels_travel_as_views():
    batch = batch_of(*range(6))
    payload = batch.payload(2, 3)
    assert np.shares_memory(np.frombuffer(payload, np.uint8), batch.crops)
    assert bytes(payload) == crops(2, 3, 4).tobytes()
    assert batch.crop_bytes(2, 3) == ()
