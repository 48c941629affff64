"""A pending batch: rows filled in any order, sorted references, and a delivery that somebody cancels at the wrong
moment.
"""

import concurrent.futures

import numpy as np
import pytest

from teacherfarm.protos.faults import SessionLost
from teacherfarm.protos.references import CropReferences
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.batch import Part, PendingBatch
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


def batch_by_reference(*samples: int, delivery=None) -> PendingBatch:
    """A crop of each sample; its view tells where it stood in the batch."""
    references = CropReferences.of_views(samples, samples, np.arange(len(samples)))
    return PendingBatch(1, references, b"", 0, delivery or concurrent.futures.Future(), 0.0)


def test_references_leave_sorted_by_sample_and_their_labels_come_back_in_order():
    delivery = concurrent.futures.Future()
    batch = batch_by_reference(7, 3, 9, 7, 3, 9, delivery=delivery)
    sent = np.frombuffer(batch.payload(0, 6), batch.crops.table.dtype)
    assert sent["sample"].tolist() == [3, 3, 7, 7, 9, 9]
    assert sent["view"].tolist() == [1, 4, 0, 3, 2, 5]
    for first in (2, 0, 4):
        batch.fill(first, records(*sent["view"][first : first + 2].tolist()))
    batch.deliver(SPEC, CARD)
    assert delivery.result().records.tobytes() == records(0, 1, 2, 3, 4, 5).tobytes()


@pytest.mark.parametrize(
    ("samples", "most", "slices"),
    [
        ([1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3], 6, [4, 4, 4]),
        ([1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3], 8, [8, 4]),
        ([1, 1, 1, 1, 2, 2, 2, 2], 3, [3, 1, 3, 1]),
        ([1, 2, 3, 4, 5], 2, [2, 2, 1]),
        ([1, 1, 2], 0, [1, 1, 1]),
    ],
)
def test_slices_of_references_split_no_image_that_fits(samples, most, slices):
    batch = batch_by_reference(*samples)
    first, found = 0, []
    while first < len(samples):
        found.append(batch.rows_at_once(first, len(samples) - first, slice_crops=1, reference_crops=most))
        first += found[-1]
    assert found == slices
    assert batch_of(1, 2, 3).rows_at_once(0, 3, slice_crops=2, reference_crops=9) == 2


def test_a_part_sent_as_pixels_answers_for_the_rows_of_the_whole():
    delivery, complete = concurrent.futures.Future(), []
    whole = batch_by_reference(5, 6, 7, 8, delivery=delivery)
    whole.fill_rows(np.array([0, 3]), records(0, 3))
    part = Part(2, whole, np.array([1, 2]), crops(1, 2), complete.append)
    assert not part.given_up
    part.fill(0, records(1, 2))
    part.deliver(SPEC, CARD)
    assert complete == [whole]
    whole.deliver(SPEC, CARD)
    assert delivery.result().records.tobytes() == records(0, 1, 2, 3).tobytes()
    assert delivery.result().weight.tolist() == [1, 1, 1, 1]
    assert part.given_up, "whoever gives the whole up gives its parts up"
