"""A client's books under any sequence of events: every row is in exactly one place."""

from hypothesis import given
from hypothesis import strategies as st

from teacherfarm.student.batch import PendingBatch
from teacherfarm.student.ledger import Ledger
from tests.unit.teacher_server.scripted import crops


class Delivered:
    """A delivery that can be given up."""

    def __init__(self) -> None:
        self.finished = False

    def done(self) -> bool:
        return self.finished


def batch_of(number: int, num_crops: int) -> PendingBatch:
    return PendingBatch(number, crops(*range(num_crops)), bytes(16 * num_crops), 0, Delivered(), float(number))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 9)),
        st.tuples(st.just("send"), st.integers(1, 12)),
        st.tuples(st.sampled_from(["answer", "put off", "give up"]), st.integers(0, 50)),
        st.tuples(st.sampled_from(["die", "come back"]), st.just(0)),
    ),
    max_size=60,
)


@given(steps, st.integers(1, 5))
def test_no_row_is_lost_or_in_two_places(steps, slice_crops):
    ledger, waiting, sent, put_off = Ledger(), {}, [], []
    answered: set[tuple[int, int]] = set()
    given_up: set[int] = set()
    numbers = iter(range(100))
    for step, argument in steps:
        if step == "ask":
            batch = batch_of(next(numbers), argument)
            waiting[batch.id] = batch
            ledger.open(batch)
            ledger.queue(batch)
        elif step == "send":
            before = ledger.sent_crops
            slice_ = ledger.next_to_send(window_crops=argument, slice_crops=slice_crops)
            if slice_ is not None:
                assert slice_.num_crops <= slice_crops
                assert before == 0 or before + slice_.num_crops <= argument
                assert slice_.batch.id not in given_up
                sent.append(slice_)
        elif step in ("answer", "put off") and sent:
            slice_ = sent.pop(argument % len(sent))
            assert ledger.answered(slice_.batch.id, slice_.first) == slice_
            assert ledger.answered(slice_.batch.id, slice_.first) is None
            if step == "put off":
                ledger.put_off(slice_)
                put_off.append(slice_)
            else:
                rows = {(slice_.batch.id, slice_.first + row) for row in range(slice_.num_crops)}
                assert not rows & answered
                answered |= rows
        elif step == "give up" and waiting:
            batch = list(waiting.values())[argument % len(waiting)]
            batch._delivery.finished = True
            given_up.add(batch.id)
        elif step == "die":
            again = ledger.session_died()
            assert again == sum(s.num_crops for s in sent if s.batch.id not in given_up)
            sent.clear()
        elif step == "come back":
            while put_off:
                ledger.send_again(put_off.pop())
        assert ledger.sent_crops == sum(s.num_crops for s in sent)
        assert ledger.put_off_crops == sum(s.num_crops for s in put_off)
        assert ledger.awaits_answers == bool(sent)
    # In the end everything that is wanted comes out.
    while put_off:
        ledger.send_again(put_off.pop())
    ledger.session_died()
    while (slice_ := ledger.next_to_send(window_crops=1 << 30, slice_crops=slice_crops)) is not None:
        rows = {(slice_.batch.id, slice_.first + row) for row in range(slice_.num_crops)}
        assert not rows & answered
        answered |= rows
    for batch in waiting.values():
        if batch.id not in given_up:
            assert {(batch.id, row) for row in range(len(batch.crops))} <= answered


def test_slices_that_were_refused_go_out_in_the_order_asked():
    ledger = Ledger()
    for number in range(4):
        batch = batch_of(number, 4)
        ledger.open(batch)
        ledger.queue(batch)
    sent = [ledger.next_to_send(window_crops=100, slice_crops=2) for _ in range(6)]
    for slice_ in (sent[3], sent[1], sent[5], sent[2]):
        ledger.answered(slice_.batch.id, slice_.first)
        ledger.send_again(slice_)
    again = [ledger.next_to_send(window_crops=100, slice_crops=2) for _ in range(6)]
    assert [(slice_.batch.id, slice_.first) for slice_ in again] == [(0, 2), (1, 0), (1, 2), (2, 2), (3, 0), (3, 2)]


def test_nothing_younger_is_sent_in_place_of_what_was_refused():
    ledger = Ledger()
    for number in range(3):
        batch = batch_of(number, 4)
        ledger.open(batch)
        ledger.queue(batch)
    first, second = (ledger.next_to_send(window_crops=8, slice_crops=4) for _ in range(2))
    ledger.answered(first.batch.id, first.first)
    ledger.put_off(first)
    assert ledger.next_to_send(window_crops=8, slice_crops=4) is None
    assert ledger.next_to_send(window_crops=12, slice_crops=4).batch.id == 2
    ledger.answered(second.batch.id, second.first)
    ledger.send_again(first)
    assert ledger.next_to_send(window_crops=8, slice_crops=4) == first
    assert ledger.put_off_crops == 0


def test_batches_that_nobody_wants_leave_the_books():
    ledger = Ledger()
    batches = [batch_of(n, 4) for n in range(3)]
    for batch in batches:
        ledger.open(batch)
        ledger.queue(batch)
    ledger.next_to_send(window_crops=4, slice_crops=4)
    for batch in batches:
        batch._delivery.finished = True
    assert ledger.next_to_send(window_crops=100, slice_crops=4) is None
    ledger.session_died()
    assert len(ledger) == 0
    assert repr(ledger) == "<Ledger 0 batches, 0 slices unsent, 0 crops sent>"


def test_who_waits_longest_is_found_in_order():
    ledger = Ledger()
    for number in range(5):
        ledger.open(batch_of(number, 1))
    assert [batch.id for batch in ledger.asked_before(2.5)] == [0, 1, 2]
    assert ledger.asked_before(0.0) == []


def test_a_dead_sessions_rows_come_before_everything_else_in_the_order_asked():
    ledger = Ledger()
    for number in range(3):
        batch = batch_of(number, 4)
        ledger.open(batch)
        ledger.queue(batch)
    for _ in range(4):
        ledger.next_to_send(window_crops=100, slice_crops=2)
    ledger.answered(0, 2)
    ledger.session_died()
    order = []
    while (slice_ := ledger.next_to_send(window_crops=100, slice_crops=2)) is not None:
        order.append((slice_.batch.id, slice_.first))
    assert order == [(0, 0), (1, 0), (1, 2), (2, 0), (2, 2)]
