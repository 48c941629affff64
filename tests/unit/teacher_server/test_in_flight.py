"""The same crop, asked again while it is computed: joined inside one scope, claimed anew when its owner leaves."""

import asyncio

import numpy as np

from teacherfarm.teacher_server.farm.in_flight import InFlight, split_keys
from tests.on_loop import on_loop, settled


def keys_of(names: str) -> list[bytes]:
    return [name.encode() * 16 for name in names]


RECORDS = np.arange(10)


def test_keys_come_apart():
    assert split_keys(b"a" * 16 + b"b" * 16) == keys_of("ab")
    assert split_keys(b"") == []


@on_loop
async def test_who_comes_second_waits_for_the_first_ones_answer():
    in_flight = InFlight()
    first = in_flight.claim("scope", keys_of("abc"), [0, 1, 2])
    second = in_flight.claim("scope", keys_of("xcza"), [0, 1, 2, 3])
    assert (first.fresh, first.joined) == ([0, 1, 2], [])
    assert second.fresh == [0, 2]
    assert [(row, owner is first, index) for row, owner, index in second.joined] == [(1, True, 2), (3, True, 0)]
    waiting = asyncio.ensure_future(first.answers())
    await settled()
    assert not waiting.done()
    first.fulfil(RECORDS[:3])
    await settled()
    assert not waiting.done(), "answers are there once the owner released, not before"
    first.release()
    assert np.array_equal(await waiting, RECORDS[:3])
    assert np.array_equal(await first.answers(), RECORDS[:3]), "also for who asks late"
    second.release()
    assert repr(in_flight) == "<InFlight 0 crop(s)>"


@on_loop
async def test_scopes_never_meet():
    in_flight = InFlight()
    scopes = [("project-1", "t"), ("project-2", "t"), ("project-1", "u")]
    claims = [in_flight.claim(scope, keys_of("ab"), [0, 1]) for scope in scopes]
    assert all(claim.fresh == [0, 1] and not claim.joined for claim in claims)
    for claim in claims:
        claim.release()


@on_loop
async def test_an_owner_who_leaves_without_an_answer_passes_the_crop_on():
    in_flight = InFlight()
    owner = in_flight.claim("scope", keys_of("a"), [0])
    joined = [in_flight.claim("scope", keys_of("a"), [0]) for _ in range(2)]
    waiting = [asyncio.ensure_future(claim.joined[0][1].answers()) for claim in joined]
    await settled()
    owner.release()
    assert [await answer for answer in waiting] == [None, None]
    for claim in joined:
        claim.release()
    again = [in_flight.claim("scope", keys_of("a"), [0]) for _ in range(2)]
    assert (again[0].fresh, again[1].fresh) == ([0], [])
    assert again[1].joined[0][1] is again[0], "one of those who joined computes it, the other joins it"
    for claim in again:
        claim.release()
    assert repr(in_flight) == "<InFlight 0 crop(s)>"


@on_loop
async def test_one_who_waits_may_be_cancelled_without_the_others():
    in_flight = InFlight()
    owner = in_flight.claim("scope", keys_of("a"), [0])
    one, other = asyncio.ensure_future(owner.answers()), asyncio.ensure_future(owner.answers())
    await settled()
    one.cancel()
    await settled()
    owner.fulfil(RECORDS[:1])
    owner.release()
    assert np.array_equal(await other, RECORDS[:1])
    assert one.cancelled()


@on_loop
async def test_the_same_crop_twice_in_one_slice_is_computed_once():
    in_flight = InFlight()
    claim = in_flight.claim("scope", keys_of("abab"), [0, 1, 2, 3])
    assert claim.fresh == [0, 1]
    assert [(row, owner is claim, index) for row, owner, index in claim.joined] == [(2, True, 0), (3, True, 1)]
    claim.fulfil(RECORDS[:2])
    claim.release()
    assert np.array_equal(await claim.answers(), RECORDS[:2])


@on_loop
async def test_only_the_rows_asked_for_are_claimed():
    in_flight = InFlight()
    claim = in_flight.claim("scope", keys_of("abc"), [2, 0])
    assert claim.fresh == [2, 0]
    other = in_flight.claim("scope", keys_of("cb"), [0, 1])
    assert other.fresh == [1]
    assert other.joined[0][2] == 0, "the index among the owner's fresh rows, not among its slice's"
    other.release()
    claim.release()


@on_loop
async def test_releasing_takes_nothing_from_a_later_owner():
    in_flight = InFlight()
    first = in_flight.claim("scope", keys_of("a"), [0])
    first.release()
    second = in_flight.claim("scope", keys_of("a"), [0])
    third = in_flight.claim("scope", keys_of("ab"), [0, 1])
    assert third.joined[0][1] is second
    third.release()
    assert repr(in_flight) == "<InFlight 1 crop(s)>"
    second.release()
    assert repr(in_flight) == "<InFlight 0 crop(s)>"
    assert not in_flight._scopes, "scopes come and go with their sessions: no books are kept of them"


@on_loop
async def test_a_crop_that_its_owner_could_not_have_is_passed_on_and_the_others_are_answered():
    in_flight = InFlight()
    owner = in_flight.claim("scope", keys_of("abc"), [0, 1, 2])
    joined = in_flight.claim("scope", keys_of("cba"), [0, 1, 2])
    owner.fulfil(RECORDS[:2], [0, 2])
    owner.release()
    assert [await claim.answer(index) for _, claim, index in joined.joined] == [RECORDS[1], None, RECORDS[0]]
    assert in_flight.claim("scope", keys_of("b"), [0]).fresh == [0]
