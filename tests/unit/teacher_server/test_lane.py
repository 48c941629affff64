"""A lane under teachers that fail, die, hang and lie: every slice gets its own answer or fault, and nothing stays."""

import asyncio
import random

import numpy as np
import pytest

from teacherfarm.protos.faults import (
    BackendDied,
    BadTeacher,
    DamagedArtifact,
    NotReady,
    PoisonBatch,
    TeacherFailed,
)
from teacherfarm.teacher_server.backends.backend import BackendUnreachable, FailedInCompany
from teacherfarm.teacher_server.farm import lane as lane_module
from teacherfarm.teacher_server.farm.lane import Lane
from teacherfarm.teacher_server.metrics import Metrics
from teacherfarm.teacher_server.projects.project import Allowance, Project
from tests.on_loop import on_loop, settled, until
from tests.unit.teacher_server.scripted import CARD, Teacher, answer, crops, no_check, running_lane

LABELS = ("log_probabilities",)
PROJECT = Project(name="p")


def ask(lane: Lane, *firsts: int, stream: str = "s", outputs=LABELS, project=PROJECT, priority=0) -> asyncio.Task:
    return asyncio.ensure_future(lane.label(project, stream, crops(*firsts), outputs, priority))


async def outcome(task: asyncio.Task):
    """The exception's class, or the crops' numbers if every answer is the right one."""
    try:
        outputs = await task
    except Exception as error:
        return type(error)
    return outputs


def right(outputs, *firsts: int, names=LABELS) -> bool:
    due = answer(crops(*firsts), names)
    return outputs.keys() == due.keys() and all(np.array_equal(outputs[name], due[name]) for name in names)


@on_loop
async def test_slices_of_several_streams_ride_together_and_each_gets_its_own_rows():
    teacher = Teacher(largest_batch=8)
    async with running_lane(teacher) as lane:
        teacher.hold()
        first = ask(lane, 1)
        await until(lambda: teacher.running)
        others = [ask(lane, 10, 11, stream="a"), ask(lane, 20, stream="b"), ask(lane, 30, 31, 32, 33, 34, stream="c")]
        await settled()
        assert lane.waiting_crops == 8
        assert "8 crops waiting, 1 of 1 slots busy" in repr(lane)
        teacher.let_go()
        assert right(await first, 1)
        assert right(await others[0], 10, 11)
        assert right(await others[1], 20)
        assert right(await others[2], 30, 31, 32, 33, 34)
        assert teacher.seen == [[1], [10, 11, 20, 30, 31, 32, 33, 34]]
        assert lane.waiting_crops == 0


@on_loop
async def test_every_slot_pulls_and_no_more():
    teacher = Teacher(largest_batch=2, slots=3)
    async with running_lane(teacher) as lane:
        teacher.hold()
        tasks = [ask(lane, number, number, stream=str(number)) for number in range(5)]
        await settled()
        assert teacher.running == 3
        teacher.let_go()
        for number, task in enumerate(tasks):
            assert right(await task, number, number)


@on_loop
async def test_a_failed_teacher_batch_is_split_until_the_culprit_stands_alone():
    teacher = Teacher(largest_batch=8)
    teacher.raises[66] = lambda: ZeroDivisionError("a layer of mine")
    async with running_lane(teacher) as lane:
        teacher.hold()
        tasks = [ask(lane, 0)] + [ask(lane, n, stream=str(n)) for n in (1, 2, 66, 4, 5, 6, 7)]
        await settled()
        teacher.let_go()
        for number, task in zip((0, 1, 2, None, 4, 5, 6, 7), tasks, strict=True):
            if number is None:
                with pytest.raises(TeacherFailed, match=r"'scripted' failed on this slice: a layer of mine"):
                    await task
            else:
                assert right(await task, number)
        assert teacher.seen[-1] != [66]
        assert [66] in teacher.seen
        assert sum(66 in firsts for firsts in teacher.seen) <= 4, "halved, not tried one by one"


@on_loop
async def test_a_slice_that_kills_three_backends_is_poison_and_its_neighbours_are_answered(monkeypatch):
    monkeypatch.setattr(lane_module, "PAUSE_AFTER_DEATH_S", 0.0)
    teacher = Teacher(largest_batch=8)
    teacher.raises[66] = lambda: BackendDied("segmentation fault")
    async with running_lane(teacher) as lane:
        teacher.hold()
        tasks = [ask(lane, 0)] + [ask(lane, n, stream=str(n)) for n in (1, 66, 3)]
        await settled()
        teacher.let_go()
        assert right(await tasks[0], 0)
        assert right(await tasks[1], 1)
        assert right(await tasks[3], 3)
        with pytest.raises(PoisonBatch, match="killed its backend 3 times: segmentation fault"):
            await tasks[2]
        assert sum(66 in firsts for firsts in teacher.seen) == 3
        assert sum(1 in firsts for firsts in teacher.seen) == 2, "who was blamed with others is tried alone"
        assert right(await ask(lane, 9), 9), "the slot goes on"


@on_loop
async def test_a_death_that_was_nobodys_fault_costs_nobody_an_answer(monkeypatch):
    monkeypatch.setattr(lane_module, "PAUSE_AFTER_DEATH_S", 0.0)
    teacher = Teacher(largest_batch=8)
    deaths = iter([BackendDied("out of memory"), BackendDied("out of memory")])
    teacher.rewrite = lambda outputs: raise_or(deaths, outputs)
    async with running_lane(teacher) as lane:
        tasks = [ask(lane, n, stream=str(n)) for n in (1, 2, 3)]
        for number, task in zip((1, 2, 3), tasks, strict=True):
            assert right(await task, number)


def raise_or(errors, outputs):
    for error in errors:
        raise error
    return outputs


@pytest.mark.parametrize(
    "lie",
    [
        lambda outputs: {name: values[:-1] for name, values in outputs.items()},
        lambda outputs: {name: np.repeat(values, 2, axis=0) for name, values in outputs.items()},
        lambda outputs: {},
        lambda outputs: None,
    ],
    ids=["too few rows", "too many rows", "no output", "nothing"],
)
@on_loop
async def test_an_answer_of_other_rows_than_asked_is_a_fault_and_no_label(lie):
    teacher = Teacher()
    teacher.rewrite = lie
    async with running_lane(teacher) as lane:
        tasks = [ask(lane, 1, 2), ask(lane, 3, stream="b")]
        assert [await outcome(task) for task in tasks] == [TeacherFailed, TeacherFailed]
        teacher.rewrite = lambda outputs: outputs
        assert right(await ask(lane, 4), 4), "the slot goes on"


@on_loop
async def test_what_nobody_asked_for_cannot_end_a_slot():
    teacher = Teacher()
    teacher.rewrite = lambda outputs: {**outputs, "scalar": 5}
    async with running_lane(teacher) as lane:
        teacher.hold()
        tasks = [ask(lane, n, stream=str(n)) for n in range(3)]
        await settled()
        teacher.let_go()
        for number, task in enumerate(tasks):
            assert right({name: (await task)[name] for name in LABELS}, number)


@on_loop
async def test_a_cancelled_slice_never_runs():
    teacher = Teacher()
    async with running_lane(teacher) as lane:
        teacher.hold()
        running = ask(lane, 1)
        await until(lambda: teacher.running)
        gone, stays = ask(lane, 2, stream="a"), ask(lane, 3, stream="b")
        await settled()
        gone.cancel()
        await settled()
        assert lane.waiting_crops == 1
        teacher.let_go()
        assert right(await stays, 3)
        assert right(await running, 1)
        assert teacher.seen == [[1], [3]]


@on_loop
async def test_who_is_cancelled_while_running_takes_nothing_from_the_neighbours():
    teacher = Teacher()
    async with running_lane(teacher) as lane:
        teacher.hold()
        one, other = ask(lane, 1, stream="a"), ask(lane, 2, stream="b")
        await until(lambda: [1, 2] in teacher.seen)
        one.cancel()
        teacher.let_go()
        assert right(await other, 2)


@on_loop
async def test_a_split_leaves_out_who_was_cancelled_meanwhile():
    teacher = Teacher()
    async with running_lane(teacher) as lane:
        teacher.hold()
        ask(lane, 0)
        await until(lambda: teacher.running)
        tasks = {n: ask(lane, n, stream=str(n)) for n in (1, 2, 66)}
        await settled()
        teacher.raises[66] = lambda: (tasks[2].cancel() and None) or ZeroDivisionError()
        teacher.let_go()
        assert await outcome(tasks[66]) is TeacherFailed
        assert right(await tasks[1], 1)
        assert [2] not in teacher.seen


@on_loop
async def test_output_sets_never_share_a_teacher_batch():
    teacher = Teacher()
    async with running_lane(teacher) as lane:
        one, other = ask(lane, 1, stream="a"), ask(lane, 2, stream="b", outputs=(*LABELS, "embedding"))
        assert right(await one, 1)
        assert right(await other, 2, names=(*LABELS, "embedding"))
        assert teacher.seen == [[1], [2]]


@on_loop
async def test_two_projects_share_by_weight():
    teacher = Teacher(largest_batch=1)
    async with running_lane(teacher) as lane:
        teacher.hold()
        ask(lane, 0)
        await until(lambda: teacher.running)
        heavy = [ask(lane, 1, project=Project(name="heavy", allowance=Allowance(weight=3.0))) for _ in range(30)]
        light = [ask(lane, 2, project=Project(name="light")) for _ in range(30)]
        await settled()
        teacher.let_go()
        await asyncio.gather(*heavy, *light)
        assert sum(firsts == [1] for firsts in teacher.seen[1:41]) == 30


@on_loop
async def test_closing_fails_who_waits_and_who_runs():
    teacher = Teacher(largest_batch=1)
    lane = Lane(CARD, metrics=Metrics().lane("t"), preferred_batch=1)
    await lane.start(teacher, no_check)
    teacher.hold()
    tasks = [ask(lane, n) for n in range(4)]
    await until(lambda: teacher.running)
    await lane.close()
    assert [await outcome(task) for task in tasks] == [NotReady] * 4
    assert teacher.closed
    assert await outcome(ask(lane, 5)) is NotReady
    assert not lane._pullers or all(puller.done() for puller in lane._pullers)
    await lane.close()


@on_loop
async def test_closing_amid_a_split_fails_every_slice_of_it():
    teacher = Teacher()
    lane = Lane(CARD, metrics=Metrics().lane("t"))
    await lane.start(teacher, no_check)
    teacher.hold()
    ask(lane, 0)
    await until(lambda: teacher.running)
    tasks = [ask(lane, n, stream=str(n)) for n in (66, 2, 3, 4)]
    await settled()

    def fail_and_hold():
        teacher.hold()
        return ZeroDivisionError()

    teacher.raises[66] = fail_and_hold
    teacher.let_go()
    await until(lambda: teacher.seen[-1] == [66, 2])
    await lane.close()
    assert [await outcome(task) for task in tasks] == [NotReady] * 4


@on_loop
async def test_a_slice_waits_for_company_no_longer_than_allowed():
    teacher = Teacher()
    async with running_lane(teacher, preferred_batch=4, longest_wait_s=0.01) as lane:
        assert right(await ask(lane, 1), 1)
        both = [ask(lane, 2, 3, stream="a"), ask(lane, 4, 5, stream="b")]
        await asyncio.gather(*both)
        assert teacher.seen == [[1], [2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("error", "fault"), [(DamagedArtifact("no"), DamagedArtifact), (RuntimeError("INVALID_GRAPH"), BadTeacher)]
)
@on_loop
async def test_a_teacher_that_cannot_start_says_so_to_everybody(error, fault):
    lane = Lane(CARD, metrics=Metrics().lane("t"))
    assert await outcome(ask(lane, 1)) is NotReady

    async def fails(_):
        raise error

    with pytest.raises(fault, match=str(error)):
        await lane.start(Teacher(), fails)
    assert lane.state == "failed"
    assert await outcome(ask(lane, 1)) is fault
    await lane.close()


@on_loop
async def test_busy_slots_are_counted_down_whatever_happens(monkeypatch):
    monkeypatch.setattr(lane_module, "PAUSE_AFTER_DEATH_S", 0.0)
    teacher = Teacher()
    teacher.raises = {1: lambda: ZeroDivisionError(), 2: lambda: BackendDied("gone")}
    async with running_lane(teacher) as lane:
        for first in (1, 2, 3):
            await outcome(ask(lane, first))
        await settled()
        assert "0 crops waiting, 0 of 1 slots busy" in repr(lane)
        idle = lane.busy_slot_s
        await asyncio.sleep(0.01)
        # Time goes on, and nothing is busy in it.
        assert lane.busy_slot_s == pytest.approx(idle, abs=1e-6)
        assert lane.busy_slot_s < 60


@on_loop
async def test_what_a_batch_leaves_over_wakes_another_slot():
    teacher = Teacher(largest_batch=2, slots=2)
    async with running_lane(teacher, preferred_batch=2, longest_wait_s=30.0) as lane:
        teacher.hold()
        # Together they are enough to begin, but too many for one teacher batch.
        first = ask(lane, 1)
        await settled()
        second = ask(lane, 2, 3, stream="other")
        await until(lambda: teacher.running == 2)
        teacher.let_go()
        assert right(await first, 1)
        assert right(await second, 2, 3)


@on_loop
async def test_neighbours_do_not_pay_for_a_stream_that_broke_the_teacher():
    teacher = Teacher(largest_batch=8)
    async with running_lane(teacher) as lane:
        teacher.raises[99] = lambda: ValueError("bad crop")
        assert await outcome(ask(lane, 99, stream="bad")) is TeacherFailed
        teacher.hold()
        running = ask(lane, 1, stream="good")
        await until(lambda: teacher.running)
        calls_before = len(teacher.seen)
        bad = [ask(lane, 99, stream="bad") for _ in range(3)]
        good = [ask(lane, number, stream="good") for number in range(2, 5)]
        teacher.let_go()
        assert right(await running, 1)
        for task, number in zip(good, range(2, 5), strict=True):
            assert right(await task, number)
        for task in bad:
            assert await outcome(task) is TeacherFailed
        assert [2, 3, 4] in teacher.seen[calls_before:]
        assert [99] in teacher.seen[calls_before:]


@on_loop
async def test_every_backend_that_joined_pulls_until_it_leaves():
    one, other = Teacher(largest_batch=1), Teacher(largest_batch=1, slots=2)
    async with running_lane(one) as lane:
        one.hold()
        other.hold()
        tasks = [ask(lane, number) for number in range(6)]
        await settled()
        assert (one.running, other.running) == (1, 0)
        lane.join(other)
        await settled()
        assert (one.running, other.running) == (1, 2)
        assert lane.backends == (one, other)
        leaving = asyncio.ensure_future(lane.leave(one))
        one.let_go()
        await leaving
        assert right(await tasks[0], 0), "what it had under way was answered"
        assert lane.backends == (other,)
        other.let_go()
        for number, task in enumerate(tasks):
            assert right(await task, number)
        assert len(one.seen) == 1
        assert not one.closed, "who brought it closes it"
        await lane.leave(one)


@on_loop
async def test_idle_slots_of_a_backend_that_left_take_nothing_any_more():
    one, other = Teacher(), Teacher()
    async with running_lane(one) as lane:
        lane.join(other)
        await settled()
        await lane.leave(one)
        for number in range(5):
            assert right(await ask(lane, number), number)
        assert not one.seen


@on_loop
async def test_what_a_lost_backend_had_under_way_runs_elsewhere_before_what_waited():
    lost, other = Teacher(largest_batch=2), Teacher(largest_batch=2)
    lost.rewrite = lambda outputs: raise_or([BackendUnreachable("reset", under_way=True)], outputs)
    async with running_lane(lost) as lane:
        lost.hold()
        tasks = [ask(lane, number, stream=str(number)) for number in range(1, 7)]
        await until(lambda: lost.running)
        lost.let_go()
        await until(lambda: lane.state == "waiting")
        assert lane.backends == ()
        assert lane.waiting_crops == 6
        lane.join(other)
        assert lane.state == "ready"
        for number, task in zip(range(1, 7), tasks, strict=True):
            assert right(await task, number)
        assert lost.seen == [[1, 2]]
        # Whose connection broke may be why it broke: those two have nobody beside them now.
        assert other.seen == [[1], [2], [3, 4], [5, 6]]


@on_loop
async def test_outages_are_held_against_nobody():
    def unreachable() -> Teacher:
        teacher = Teacher()
        teacher.raises[7] = lambda: BackendUnreachable("reset", under_way=True)
        return teacher

    async with running_lane(unreachable()) as lane:
        task = ask(lane, 7)
        for _ in range(10):
            await until(lambda: lane.state == "waiting")
            lane.join(unreachable())
        await until(lambda: lane.state == "waiting")
        lane.join(Teacher())
        assert right(await task, 7)


@on_loop
async def test_a_waiting_lane_keeps_its_queue_and_takes_more():
    teacher = Teacher()
    async with running_lane(teacher) as lane:
        await lane.leave(teacher)
        assert lane.state == "waiting"
        tasks = [ask(lane, number) for number in range(3)]
        tasks[1].cancel()
        await settled()
        assert lane.waiting_crops == 2
        lane.join(Teacher())
        assert right(await tasks[0], 0)
        assert right(await tasks[2], 2)


@on_loop
async def test_who_failed_in_company_is_asked_again_alone_before_it_is_blamed():
    class Merging(Teacher):
        """Fails what runs beside a 66, as a server does that merges calls."""

        def __init__(self, **options):
            super().__init__(**options)
            self.alone = []

        async def run(self, pixels, outputs):
            if len(self.alone) < 2:
                raise FailedInCompany("merged with another")
            return await super().run(pixels, outputs)

        async def run_alone(self, pixels, outputs):
            self.alone.append(int(pixels[0, 0, 0, 0]))
            return await super().run(pixels, outputs)

    teacher = Merging(largest_batch=2, slots=2)
    teacher.raises[66] = lambda: ValueError("bad crop")
    async with running_lane(teacher) as lane:
        innocent, culprit = ask(lane, 1, 2, stream="a"), ask(lane, 66, stream="b")
        assert right(await innocent, 1, 2)
        with pytest.raises(TeacherFailed, match="bad crop"):
            await culprit
        assert sorted(teacher.alone) == [1, 66]


@on_loop
async def test_a_backend_that_would_answer_otherwise_may_not_join():
    small, late = Teacher(largest_batch=4), Teacher(largest_batch=8)
    async with running_lane(Teacher(largest_batch=8)) as lane:
        with pytest.raises(BadTeacher, match=r"at most 4 crops at once, the lane of 'scripted' forms .* of 8"):
            lane.join(small)

        class OnGpu(Teacher):
            provider_class = "cuda"

        with pytest.raises(BadTeacher, match="computes on cuda, the others of 'scripted' on scripted"):
            lane.join(OnGpu(largest_batch=8))
        assert len(lane.backends) == 1
    with pytest.raises(NotReady):
        lane.join(late)


@on_loop
async def test_closing_ends_slots_of_backends_that_are_leaving():
    one = Teacher()
    async with running_lane(one) as lane:
        one.hold()
        task = ask(lane, 1)
        await until(lambda: one.running)
        leaving = asyncio.ensure_future(lane.leave(one))
        await settled()
        await lane.close()
        assert await outcome(task) is NotReady
        await leaving


@pytest.mark.parametrize("seed", range(20))
@on_loop
async def test_whatever_backends_come_go_and_are_lost_every_slice_gets_its_own_answer(seed, monkeypatch):
    monkeypatch.setattr(lane_module, "PAUSE_AFTER_DEATH_S", 0.0)
    chance = random.Random(seed)

    class Flaky(Teacher):
        """Fails in every way that is nobody's fault."""

        async def run(self, pixels, outputs):
            await settled(chance.randrange(3))
            if (fate := chance.random()) < 0.1:
                raise BackendUnreachable("gone", under_way=chance.random() < 0.5)
            if fate < 0.2:
                raise FailedInCompany("merged with another")
            return await super().run(pixels, outputs)

        async def run_alone(self, pixels, outputs):
            await settled(chance.randrange(3))
            if chance.random() < 0.1:
                raise BackendUnreachable("gone", under_way=True)
            return await super().run(pixels, outputs)

    lane = Lane(CARD, metrics=Metrics().lane("t"))
    lane.join(Flaky(largest_batch=8, slots=2))
    tasks = {number: ask(lane, number, number, stream=str(number % 7)) for number in range(100)}
    gone = [tasks.pop(number) for number in range(0, 100, 10)]
    for step in range(2000):
        if gone and step % 5 == 0:
            gone.pop().cancel()
        if all(task.done() for task in tasks.values()):
            break
        if len(lane.backends) < 3 and (not lane.backends or chance.random() < 0.3):
            lane.join(Flaky(largest_batch=8, slots=chance.randrange(1, 4)))
        elif len(lane.backends) > 1 and chance.random() < 0.2:
            await lane.leave(chance.choice(lane.backends))
        await settled(chance.randrange(4))
    for number, task in tasks.items():
        assert right(await task, number, number)
    assert lane.waiting_crops == 0
    await lane.close()
