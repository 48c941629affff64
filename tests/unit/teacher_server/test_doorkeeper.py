"""Projects at the gateway: who gets in, what of the farm it sees; a project can neither starve, read nor poison another
(keys and joins: see test_gateway.py).
"""

import asyncio

import pytest

from teacherfarm.protos.crop import CropBatch
from teacherfarm.protos.faults import NotAllowed, QuotaExceeded, TeacherFailed, Unauthenticated, UnknownTeacher
from teacherfarm.teacher_server import doorkeeper as doorkeeper_module
from teacherfarm.teacher_server.projects.project import Allowance
from tests.on_loop import on_loop, settled, until
from tests.unit.teacher_server.scripted import CARD, ScriptedFarm, crops, entries, keyed, make_card
from tests.unit.teacher_server.test_gateway import ask, assert_right, hello, label

CARDS = (CARD, make_card("other"), make_card("other-large"))


def open_session(farm, project, **changes):
    return farm.gateway.open_session(hello(api_key=f"key of {project}", **changes))


@pytest.mark.parametrize("key", ["", "nobody's", "key of two"])
@on_loop
async def test_without_a_valid_key_nobody_gets_in_or_sees_anything(tmp_path, key):
    async with ScriptedFarm(tmp_path, projects=keyed(one=Allowance())) as farm:
        for ask_for in (
            lambda: farm.gateway.open_session(hello(api_key=key)),
            lambda: farm.gateway.open_session(hello(api_key=key, teacher="no such teacher")),
            lambda: farm.gateway.teachers_of(key),
            lambda: farm.gateway.teacher("scripted", key),
        ):
            with pytest.raises(Unauthenticated) as caught:
                ask_for()
            assert not key or key not in str(caught.value)
        assert farm.metric("refusals_total", project="-", reason="key") == 4
        assert "0 session" in repr(farm.credit)


@on_loop
async def test_a_project_sees_and_gets_its_teachers_alone(tmp_path):
    projects = keyed(all=Allowance(), others=Allowance(teachers=("other*",)), one=Allowance(teachers=("scripted",)))
    async with ScriptedFarm(tmp_path, *CARDS, projects=projects) as farm:
        seen = {name: [t.name for t in farm.gateway.teachers_of(f"key of {name}")] for name in ("all", "others", "one")}
        assert seen == {
            "all": ["scripted", "other", "other-large"],
            "others": ["other", "other-large"],
            "one": ["scripted"],
        }
        assert open_session(farm, "one", teacher="").lane.card.name == "scripted", "the only one that it may use"
        assert farm.gateway.teacher("other", "key of others").card.name == "other"
        with pytest.raises(
            NotAllowed, match=r"'others' may not use a teacher 'scripted'; it may use: other, other-large"
        ):
            open_session(farm, "others")
        with pytest.raises(NotAllowed):
            farm.gateway.teacher("scripted", "key of others")
        with pytest.raises(UnknownTeacher, match="'others' finds no teacher '' here; it may use: other, other-large"):
            open_session(farm, "others", teacher="")
        with pytest.raises(UnknownTeacher, match=r"no teacher 'other-small' here; it may use: other, other-large$"):
            open_session(farm, "others", teacher="other-small")
        assert farm.metric("refusals_total", project="others", reason="teacher") == 2


@on_loop
async def test_a_foreign_teacher_and_none_at_all_get_the_same_answer(tmp_path):
    async with ScriptedFarm(tmp_path, *CARDS, projects=keyed(one=Allowance(teachers=("scripted",)))) as farm:
        said = []
        for teacher in ("other", "nobody"):
            with pytest.raises(NotAllowed) as caught:
                open_session(farm, "one", teacher=teacher)
            said.append(str(caught.value).replace(teacher, "X"))
        assert said[0] == said[1]
        assert "other" not in said[0]


@on_loop
async def test_streams_are_counted_by_project(tmp_path):
    async with ScriptedFarm(tmp_path, projects=keyed(one=Allowance(streams=2), two=Allowance())) as farm:
        first, _ = open_session(farm, "one"), open_session(farm, "one")
        with pytest.raises(QuotaExceeded, match="'one' has 2 of 2 streams open") as caught:
            open_session(farm, "one")
        assert caught.value.retry_after_s > 0
        open_session(farm, "two")
        farm.gateway.close_session(first)
        open_session(farm, "one")
        assert farm.metric("refusals_total", project="one", reason="streams") == 1


@on_loop
async def test_nobody_can_take_all_sessions_of_a_server(tmp_path):
    async with ScriptedFarm(tmp_path, projects=keyed(4, greedy=Allowance(), late=Allowance())) as farm:
        for _ in range(2):
            open_session(farm, "greedy")
        with pytest.raises(QuotaExceeded, match="2 of 2 streams"):
            open_session(farm, "greedy")
        open_session(farm, "late")


@on_loop
async def test_memory_is_shared_among_projects_before_sessions(tmp_path):
    projects = keyed(many=Allowance(), one=Allowance())
    async with ScriptedFarm(tmp_path, projects=projects, budget_crops=64, window=64) as farm:
        many = [open_session(farm, "many") for _ in range(3)]
        one = open_session(farm, "one")
        assert [session.credit.window_crops for session in (*many, one)] == [10, 10, 10, 32]
        farm.gateway.close_session(one)
        assert many[0].credit.window_crops == 21


class Held:
    """Stands in for the waiting of held slices: what was asked of it, and time that passes when told."""

    def __init__(self, monkeypatch):
        self.now_s = 100.0
        self.waits: list[float] = []
        monkeypatch.setattr(doorkeeper_module, "_sleep", self.sleep)
        monkeypatch.setattr(doorkeeper_module, "_clock", lambda: self.now_s)

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


@pytest.fixture
def held(monkeypatch):
    return Held(monkeypatch)


@on_loop
async def test_a_rate_holds_what_comes_early_and_refuses_what_comes_much_too_early(tmp_path, held):
    async with ScriptedFarm(tmp_path, projects=keyed(slow=Allowance(crops_per_second=16), fast=Allowance())) as farm:
        slow, fast = open_session(farm, "slow"), open_session(farm, "fast")
        assert slow.welcome.window_crops == 8, "half a second of the rate"
        assert_right(await ask(farm, slow, *range(8)), *range(8))
        slow.credit.took(8)
        assert_right(await ask(farm, slow, *range(8)), *range(8))
        slow.credit.took(16)
        assert_right(await ask(farm, slow, *range(8)), *range(8))
        slow.credit.took(24)
        assert held.waits == [0.25, 0.75]
        with pytest.raises(QuotaExceeded, match="'slow' has used up its 16 crops per second") as caught:
            await ask(farm, slow, 1)
        assert caught.value.retry_after_s == 0.75
        assert_right(await ask(farm, fast, *range(8)), *range(8))
        held.now_s += 0.75
        assert_right(await ask(farm, slow, 1), 1)
        assert farm.metric("refusals_total", project="slow", reason="crops_per_second") == 1
        assert (slow.credit.untaken_crops, slow.project.quota.in_flight_crops) == (1, 0)


@on_loop
async def test_crops_in_flight_are_counted_over_a_projects_sessions(tmp_path):
    async with ScriptedFarm(tmp_path, projects=keyed(one=Allowance(crops_in_flight=8), two=Allowance())) as farm:
        first, second, other = (open_session(farm, name) for name in ("one", "one", "two"))
        farm.teacher.hold()
        running = ask(farm, first, *range(8))
        await until(lambda: farm.teacher.running)
        with pytest.raises(QuotaExceeded, match="'one' has used up its 8 crops in flight") as caught:
            await ask(farm, second, 9)
        assert caught.value.retry_after_s > 0
        free = ask(farm, other, 9)
        await settled()
        farm.teacher.let_go()
        assert_right(await running, *range(8))
        assert_right(await free, 9)
        assert_right(await ask(farm, second, 9), 9)


@on_loop
async def test_a_slice_is_never_larger_than_what_may_be_in_flight(tmp_path):
    async with ScriptedFarm(tmp_path, projects=keyed(one=Allowance(crops_in_flight=3))) as farm:
        welcome = open_session(farm, "one").welcome
        assert (welcome.slice_crops, welcome.window_crops) == (3, 3)


@on_loop
async def test_whoever_leaves_or_fails_is_not_in_flight_any_more(tmp_path):
    async with ScriptedFarm(tmp_path, projects=keyed(one=Allowance(crops_in_flight=64, crops_per_second=10))) as farm:
        session = open_session(farm, "one")
        quota = session.project.quota
        farm.teacher.raises[1] = ZeroDivisionError
        failing = ask(farm, session, 1)
        with pytest.raises(TeacherFailed):
            await failing
        farm.teacher.hold()
        running = ask(farm, session, 2, 3, 4)
        await until(lambda: farm.teacher.running)
        waiting = ask(farm, session, 5)
        await settled()
        assert quota.in_flight_crops == 4
        for task in (running, waiting):
            task.cancel()
        await asyncio.wait([running, waiting])
        assert quota.in_flight_crops == 0


@on_loop
async def test_a_rate_divides_its_window_among_sessions(tmp_path):
    async with ScriptedFarm(tmp_path, projects=keyed(one=Allowance(crops_per_second=64)), window=1000) as farm:
        first = open_session(farm, "one")
        assert first.credit.window_crops == 32
        second = open_session(farm, "one")
        assert (first.credit.window_crops, second.credit.window_crops) == (16, 16)
        farm.gateway.close_session(first)
        assert second.credit.window_crops == 32


@on_loop
async def test_an_update_acts_on_open_sessions(tmp_path):
    async with ScriptedFarm(tmp_path, projects=keyed(one=Allowance(), two=Allowance()), window=64) as farm:
        one, two = open_session(farm, "one"), open_session(farm, "two")
        farm.gateway.update_projects(entries(one=Allowance(weight=5, crops_per_second=64), two=Allowance()))
        assert one.project.weight == 5
        assert one.credit.window_crops == 32
        assert two.credit.window_crops == 64
        farm.gateway.check_stay(one)
        assert_right(await ask(farm, one, 1), 1)
        farm.gateway.update_projects(entries(one=Allowance(teachers=("x",))))
        assert one.credit.window_crops == 64
        with pytest.raises(NotAllowed, match="'one' may no longer use teacher 'scripted'"):
            farm.gateway.check_stay(one)
        with pytest.raises(Unauthenticated, match="revoked"):
            farm.gateway.check_stay(two)
        with pytest.raises(Unauthenticated):
            open_session(farm, "two")


@on_loop
async def test_a_limit_that_goes_while_slices_are_held_leaves_nothing_behind(tmp_path):
    projects = keyed(one=Allowance(crops_in_flight=8))
    async with ScriptedFarm(tmp_path, projects=projects) as farm:
        session = open_session(farm, "one")
        farm.teacher.hold()
        running = ask(farm, session, 1)
        await until(lambda: farm.teacher.running)
        farm.gateway.update_projects(entries(one=Allowance()))
        farm.teacher.let_go()
        assert_right(await running, 1)
        farm.gateway.update_projects(entries(one=Allowance(crops_in_flight=8)))
        assert_right(await ask(farm, session, *range(7)), *range(7))
        assert session.project.quota.in_flight_crops == 0


@on_loop
async def test_weights_alone_act_between_projects_and_priority_inside_one(tmp_path):
    """One project asks with the highest priority and over ten sessions; the other still gets half."""
    async with ScriptedFarm(tmp_path, projects=keyed(loud=Allowance(), quiet=Allowance()), window=1000) as farm:
        loud = [open_session(farm, "loud") for _ in range(10)]
        quiet = open_session(farm, "quiet")
        farm.teacher.hold()
        gate = ask(farm, quiet, 0)
        await until(lambda: farm.teacher.running)
        tasks = [
            label(farm, session, CropBatch(pixels=crops(*[1] * 8), keys=b"", priority=8))
            for session in loud
            for _ in range(4)
        ]
        tasks += [label(farm, quiet, CropBatch(pixels=crops(*[2] * 8), priority=-8)) for _ in range(20)]
        tasks += [label(farm, quiet, CropBatch(pixels=crops(*[3] * 8), priority=7)) for _ in range(5)]
        await settled()
        farm.teacher.seen.clear()
        farm.teacher.let_go()
        await asyncio.gather(gate, *tasks)
        order = [firsts[0] for firsts in farm.teacher.seen]
        for served in range(2, 40, 2):
            assert abs(order[:served].count(1) - served / 2) <= 1, order
        assert [first for first in order if first != 1] == [3] * 5 + [2] * 20
