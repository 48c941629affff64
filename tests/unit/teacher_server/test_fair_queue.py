"""Whose slice is next: shares by weight, nobody starved, nothing lost."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacherfarm.teacher_server.farm.fair_queue import FairQueue
from tests.unit.teacher_server.waiting_slice import WaitingSlice

ANY = 1 << 30


def fill(queue: FairQueue, num: int, **properties: object) -> list[WaitingSlice]:
    slices = [WaitingSlice(name=number, **properties) for number in range(num)]
    for slice_ in slices:
        queue.push(slice_)
    return slices


def drain(queue: FairQueue) -> list[WaitingSlice]:
    return list(iter(lambda: queue.pop(ANY), None))


def served_over_time(queue: FairQueue, num_pops: int):
    """After each of so many pops: crops served so far, by project."""
    served: Counter[str] = Counter()
    for _ in range(num_pops):
        slice_ = queue.pop(ANY)
        served[slice_.project] += slice_.num_crops
        yield served


def test_weights_are_exact_within_one_slice_at_every_moment():
    queue: FairQueue = FairQueue()
    fill(queue, 100, project="a", weight=3.0)
    fill(queue, 100, project="b", weight=1.0)
    for served in served_over_time(queue, 120):
        assert abs(served["a"] - 0.75 * served.total()) <= 4
    assert served == {"a": 360, "b": 120}


def test_eight_equal_projects_are_served_equally():
    queue: FairQueue = FairQueue()
    for number in range(8):
        fill(queue, 20, project=f"p{number}", weight=2.5)
    for served in served_over_time(queue, 120):
        assert max(served.values()) - min(served[f"p{n}"] for n in range(8)) <= 4
    assert set(served.values()) == {60}


@pytest.mark.parametrize("sizes", [(1, 8), (8, 1), (3, 5)])
def test_shares_count_crops_and_not_slices(sizes):
    queue: FairQueue = FairQueue()
    for project, size in zip("ab", sizes, strict=True):
        fill(queue, 400 // size, project=project, num_crops=size)
    for served in served_over_time(queue, 60):
        assert abs(served["a"] - served["b"]) <= max(sizes)


def test_an_idle_project_gains_no_credit():
    queue: FairQueue = FairQueue()
    fill(queue, 200, project="busy")
    for _ in served_over_time(queue, 100):
        pass
    fill(queue, 100, project="late")
    for served in served_over_time(queue, 50):
        assert abs(served["late"] - served["busy"]) <= 4


def test_nor_does_one_whose_slices_were_withdrawn():
    queue: FairQueue = FairQueue()
    fill(queue, 200, project="busy")
    [gone] = fill(queue, 1, project="late")
    gone.abandoned = True
    queue.withdraw(gone)
    for _ in served_over_time(queue, 100):
        pass
    fill(queue, 100, project="late")
    for served in served_over_time(queue, 50):
        assert abs(served["late"] - served["busy"]) <= 4


def test_idleness_costs_nothing_either():
    queue: FairQueue = FairQueue()
    fill(queue, 50, project="early")
    drain(queue)
    fill(queue, 50, project="other")
    drain(queue)
    fill(queue, 20, project="early")
    fill(queue, 20, project="other")
    for served in served_over_time(queue, 40):
        assert abs(served["early"] - served["other"]) <= 4


def test_asking_slice_by_slice_wins_no_extra_turns():
    queue: FairQueue = FairQueue()
    fill(queue, 100, project="a")
    fill(queue, 1, project="b")
    served: Counter[str] = Counter()
    for _ in range(60):
        slice_ = queue.pop(ANY)
        served[slice_.project] += slice_.num_crops
        if slice_.project == "b":
            fill(queue, 1, project="b")
        assert abs(served["a"] - served["b"]) <= 4


def test_nor_does_it_where_the_others_do_not_fit_its_teacher_batches():
    queue: FairQueue = FairQueue()
    fill(queue, 60, project="a", outputs=("embedding",))
    fill(queue, 1, project="b")
    served: Counter[str] = Counter()
    for _ in range(40):
        first = queue.pop(ANY)
        served[first.project] += first.num_crops
        if first.project == "b":
            assert queue.pop(ANY, first.outputs) is None
            fill(queue, 1, project="b")
        assert abs(served["a"] - served["b"]) <= 4


def test_who_comes_alone_gets_everything():
    queue: FairQueue = FairQueue()
    fill(queue, 30, project="light", weight=0.001)
    fill(queue, 1, project="heavy", weight=1000.0)
    assert len(drain(queue)) == 31
    assert queue.pop(ANY) is None


def test_priority_orders_one_project_and_takes_nothing_from_another():
    queue: FairQueue = FairQueue()
    fill(queue, 10, project="a", priority=-5)
    fill(queue, 10, project="a", priority=7)
    fill(queue, 10, project="a", priority=0)
    fill(queue, 30, project="b", priority=0)
    order = drain(queue)
    assert [s.priority for s in order if s.project == "a"] == [7] * 10 + [0] * 10 + [-5] * 10
    for count in range(1, 61):
        assert abs(sum(s.project == "a" for s in order[:count]) - count / 2) <= 1


def test_streams_take_turns_and_keep_their_order():
    queue: FairQueue = FairQueue()
    for stream, num in (("x", 5), ("y", 5), ("z", 2)):
        fill(queue, num, stream=stream)
    order = drain(queue)
    assert [s.stream for s in order] == list("xyzxyzxyxyxy")
    for stream in "xyz":
        numbers = [s.name for s in order if s.stream == stream]
        assert numbers == sorted(numbers)


def test_a_new_stream_waits_one_round_and_not_for_a_long_stream_to_end():
    queue: FairQueue = FairQueue()
    fill(queue, 100, stream="long")
    queue.pop(ANY)
    fill(queue, 1, stream="new")
    assert "new" in [queue.pop(ANY).stream for _ in range(2)]


def test_abandoned_slices_are_passed_over_and_forgotten():
    queue: FairQueue = FairQueue()
    slices = fill(queue, 6) + fill(queue, 3, project="q")
    for slice_ in [slices[0], slices[2], slices[3], *slices[6:]]:
        slice_.abandoned = True
    assert [(s.project, s.name) for s in drain(queue)] == [("p", 1), ("p", 4), ("p", 5)]
    assert repr(queue) == "<FairQueue 0 project(s) waiting>"


def test_a_withdrawn_slice_is_gone_at_once():
    queue: FairQueue = FairQueue()
    slices = fill(queue, 3) + fill(queue, 1, priority=5) + fill(queue, 1, project="q")
    for slice_ in (slices[1], slices[3], slices[4], slices[4], WaitingSlice(project="unknown")):
        queue.withdraw(slice_)
    assert [s.name for s in drain(queue)] == [0, 2]


def test_only_equal_output_sets_that_fit_share_a_teacher_batch():
    queue: FairQueue = FairQueue()
    fill(queue, 1, project="a", num_crops=8)
    fill(queue, 1, project="b", outputs=("logits", "embedding"))
    fill(queue, 1, project="c", alone=True)
    fill(queue, 1, project="d", stream="1", outputs=("embedding",))
    fill(queue, 1, project="d", stream="2", num_crops=3)
    taken = queue.pop(4, ("logits",))
    assert (taken.project, taken.stream, taken.num_crops) == ("d", "2", 3)
    assert queue.pop(4, ("logits",)) is None
    assert queue.pop(8, ("logits",)).project == "a"
    assert {s.project for s in drain(queue)} == {"b", "c", "d"}


def test_whoever_was_passed_over_is_not_charged():
    queue: FairQueue = FairQueue()
    fill(queue, 10, project="big", num_crops=8)
    fill(queue, 40, project="small", num_crops=2)
    served: Counter[str] = Counter()
    # Teacher batches of 8 whose rest is filled with small slices: big must keep its half.
    for _ in range(12):
        room, slices = 8, [queue.pop(8)]
        room -= slices[0].num_crops
        while room and (more := queue.pop(room, ("logits",))) is not None:
            slices.append(more)
            room -= more.num_crops
        served.update({s.project: 0 for s in slices})
        for slice_ in slices:
            served[slice_.project] += slice_.num_crops
    assert abs(served["big"] - served["small"]) <= 8


properties = st.fixed_dictionaries(
    {
        "project": st.sampled_from("abc"),
        "stream": st.sampled_from("xy"),
        "priority": st.integers(-1, 1),
        "num_crops": st.integers(1, 8),
        "outputs": st.sampled_from([("logits",), ("embedding",)]),
        "alone": st.booleans(),
        "weight": st.sampled_from([0.5, 1.0, 4.0]),
    }
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), properties),
        st.tuples(st.just("pop"), st.none()),
        st.tuples(st.just("more"), st.integers(1, 8)),
        st.tuples(st.sampled_from(["abandon", "withdraw"]), st.integers(0, 30)),
    ),
    max_size=60,
)


@given(steps)
def test_nothing_is_lost_or_given_twice_and_nobody_waits_in_vain(steps):
    queue: FairQueue = FairQueue()
    waiting: list[WaitingSlice] = []
    for step, argument in steps:
        if step == "push":
            waiting.append(WaitingSlice(**argument))
            queue.push(waiting[-1])
        elif step in ("pop", "more"):
            wanted = [s for s in waiting if not s.abandoned]
            if step == "more":
                wanted = [s for s in wanted if s.num_crops <= argument and s.outputs == ("logits",) and not s.alone]
            taken = queue.pop(ANY) if step == "pop" else queue.pop(argument, ("logits",))
            if step == "pop":
                assert (taken is None) == (not wanted)
            if taken is not None:
                assert taken in wanted
                waiting.remove(taken)
        elif waiting:
            slice_ = waiting[argument % len(waiting)]
            slice_.abandoned = True
            if step == "withdraw":
                queue.withdraw(slice_)
    left = drain(queue)
    assert sorted(map(id, left)) == sorted(id(s) for s in waiting if not s.abandoned)
    assert queue.pop(ANY) is None


@given(
    st.lists(
        st.tuples(st.sampled_from([0.25, 1.0, 3.0]), st.lists(st.integers(1, 8), min_size=40, max_size=40)),
        min_size=2,
        max_size=4,
    )
)
def test_any_weights_and_sizes_stay_within_one_slice_of_each_other(projects):
    queue: FairQueue = FairQueue()
    for name, (weight, sizes) in enumerate(projects):
        for size in sizes:
            queue.push(WaitingSlice(project=str(name), weight=weight, num_crops=size))
    left = {str(name): len(sizes) for name, (_, sizes) in enumerate(projects)}
    clock = dict.fromkeys(left, 0.0)
    weights = {str(name): weight for name, (weight, _) in enumerate(projects)}
    while all(left.values()):
        slice_ = queue.pop(ANY)
        left[slice_.project] -= 1
        clock[slice_.project] += slice_.num_crops / slice_.weight
        for one, other in itertools.combinations(clock, 2):
            assert abs(clock[one] - clock[other]) <= 8 / weights[one] + 8 / weights[other]


def test_what_was_popped_and_not_served_goes_first_of_its_stream_and_is_not_paid_for():
    queue: FairQueue = FairQueue()
    unlucky = fill(queue, 30, project="unlucky")
    fill(queue, 30, project="other")
    taken = [queue.pop(ANY) for _ in range(10)]
    for slice_ in reversed(taken):
        if slice_.project == "unlucky":
            queue.restore(slice_)
    again = [queue.pop(ANY) for _ in range(5)]
    assert again == unlucky[:5]
    for served in served_over_time(queue, 40):
        assert abs(served["unlucky"] - served["other"]) <= 4


def test_a_project_without_anything_else_waiting_gets_its_slice_back():
    queue: FairQueue = FairQueue()
    [only] = fill(queue, 1, project="a")
    assert queue.pop(ANY) is only
    assert queue.pop(ANY) is None
    queue.restore(only)
    assert drain(queue) == [only]
