"""Slices by reference of several projects: no more at once than allowed, shared by weight, and no turn is lost."""

import asyncio

import pytest

from teacherfarm.teacher_server.projects.project import Allowance, Project
from teacherfarm.teacher_server.samples.cutting_turns import CuttingTurns
from tests.on_loop import on_loop


async def queue(turns, *tenants, crops=4):
    """Who had a turn, in order; each slice holds it for two rounds of the loop."""
    had, busy, most = [], 0, 0

    async def cut(tenant):
        nonlocal busy, most
        async with turns.turn(tenant, crops):
            busy += 1
            most = max(most, busy)
            had.append(tenant.name)
            await asyncio.sleep(0)
            busy -= 1

    await asyncio.gather(*(cut(tenant) for tenant in tenants))
    return "".join(had), most


@pytest.mark.parametrize(("weight", "due"), [(1.0, "aba"), (3.0, "abb")])
@on_loop
async def test_who_queues_much_delays_no_other_project(weight, due):
    a, b = Project(name="a"), Project(name="b", allowance=Allowance(weight=weight))
    had, most = await queue(CuttingTurns(1), *[a] * 20, *[b] * 4)
    assert (had[:3], most, sorted(had)) == (due, 1, sorted("a" * 20 + "b" * 4))


@on_loop
async def test_who_was_away_saves_nothing_up():
    turns, a, b = CuttingTurns(2), Project(name="a"), Project(name="b")
    assert (await queue(turns, *[a] * 50))[1] == 2
    had, _ = await queue(turns, *[a, b] * 10)
    assert had.count("a") == 10
    assert had[:10].count("a") in (4, 5, 6)


@on_loop
async def test_a_turn_given_up_is_the_next_ones():
    turns, a = CuttingTurns(1), Project(name="a")
    loop = asyncio.get_running_loop()
    async with turns.turn(a, 1):
        tasks = [loop.create_task(queue(turns, a)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
    tasks[1].cancel()  # it was granted and has not run yet
    assert await tasks[2] == ("a", 1)
    assert await queue(turns, a) == ("a", 1)
