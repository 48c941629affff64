"""A slice's path through the gateway: admitted, joined, labelled, answered once; and what a session is refused for."""

import asyncio

import numpy as np
import pytest

from teacherfarm.protos.crop import CropBatch, CropFormat, pixel_keys
from teacherfarm.protos.faults import (
    BackendDied,
    BadLabelSpec,
    DigestMismatch,
    GoingAway,
    NotReady,
    Overloaded,
    SampleChanged,
    TeacherFailed,
    UnknownOutput,
    UnknownTeacher,
    WrongBatchSize,
    WrongCropSize,
    WrongNumberType,
)
from teacherfarm.protos.messages import Hello
from teacherfarm.protos.soft_label import LabelSpec, SoftLabels
from teacherfarm.teacher_server.farm import lane as lane_module
from teacherfarm.teacher_server.farm.model_directory import served_digest
from teacherfarm.teacher_server.projects.project import Allowance
from teacherfarm.teacher_server.slice_crops import SentCrops
from tests.on_loop import on_loop, settled, until
from tests.unit.teacher_server.scripted import CARD, NUM_CLASSES, ScriptedFarm, crops, keyed, make_card, records_of


def hello(**changes) -> Hello:
    return Hello(**({"teacher": "scripted", "spec": LabelSpec()} | changes))


def ask(farm: ScriptedFarm, session, *firsts: int, keyed: bool = True) -> asyncio.Task:
    pixels = crops(*firsts)
    return label(farm, session, CropBatch(pixels=pixels, keys=pixel_keys(pixels) if keyed else b""))


def label(farm: ScriptedFarm, session, batch: CropBatch) -> asyncio.Task:
    async def decode() -> SentCrops:
        return SentCrops(batch)

    return asyncio.ensure_future(farm.gateway.label(session, len(batch), decode))


def assert_right(records, *firsts) -> None:
    assert np.array_equal(records["labels"], records_of(*firsts))


@on_loop
async def test_a_slice_gets_its_records_in_order(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        session = farm.gateway.open_session(hello())
        for keyed in (True, False):
            assert_right(await ask(farm, session, 5, 3, 9, keyed=keyed), 5, 3, 9)
        assert farm.metric("labels_total", teacher="scripted", project="default") == 6
        assert (farm.gateway.admitted_crops, session.credit.untaken_crops) == (0, 6)


@on_loop
async def test_welcome_says_what_the_student_must_know(tmp_path):
    async with ScriptedFarm(tmp_path, window=64) as farm:
        session = farm.gateway.open_session(hello(teacher=""))
        welcome = session.welcome
        assert (welcome.window_crops, welcome.slice_crops) == (64, 8)
        assert welcome.artifact_digest == served_digest(CARD, "scripted")
        assert session.record_dtype.itemsize == 2 * NUM_CLASSES
        other = farm.gateway.open_session(hello())
        assert other.id != session.id


@on_loop
async def test_each_spec_gets_what_it_asks_for(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        for spec in (
            LabelSpec(top_k=3, temperature=4.0),
            LabelSpec(outputs=("embedding",), feature_type="int8"),
            LabelSpec(outputs=("labels", "embedding")),
        ):
            session = farm.gateway.open_session(hello(spec=spec))
            records = await ask(farm, session, 1, 2)
            labels = SoftLabels.from_records(records, session.spec, CARD)
            assert len(labels) == 2
            if "embedding" in session.spec.outputs:
                assert np.allclose(labels.output("embedding"), [[1] * 3, [2] * 3], rtol=0.01)


@on_loop
async def test_the_same_crops_asked_twice_at_once_are_computed_once(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        one, other = farm.gateway.open_session(hello()), farm.gateway.open_session(hello())
        farm.teacher.hold()
        first = ask(farm, one, 1, 2, 3)
        await until(lambda: farm.teacher.running)
        second, third = ask(farm, other, 3, 7, 1), ask(farm, one, 2, 2)
        await settled()
        farm.teacher.let_go()
        assert_right(await first, 1, 2, 3)
        assert_right(await second, 3, 7, 1)
        assert_right(await third, 2, 2)
        assert sorted(n for firsts in farm.teacher.seen for n in firsts) == [1, 2, 3, 7]
        assert farm.metric("joined_total", teacher="scripted", project="default") == 4
        assert "<InFlight 0 crop(s)>" in repr(farm.gateway)


class HalfCut(SentCrops):
    """Crops by reference in miniature: one is found out to be missing only when it should be cut."""

    def __init__(self, pixels, missing, may_cut):
        super().__init__(CropBatch(pixels=pixels, keys=pixel_keys(pixels)))
        self.refused, self._missing, self._may_cut = {}, missing, may_cut

    async def render(self, rows):
        await self._may_cut.wait()
        self.refused |= {row: SampleChanged(f"crop {row}") for row in rows if row in self._missing}
        return await super().render([row for row in rows if row not in self.refused])


@pytest.mark.parametrize("missing", [[1], [0, 1, 2]])
@on_loop
async def test_a_crop_that_cannot_be_cut_has_no_label_and_who_joined_it_asks_with_its_own_pixels(tmp_path, missing):
    async with ScriptedFarm(tmp_path) as farm:
        one, other = farm.gateway.open_session(hello()), farm.gateway.open_session(hello())
        may_cut = asyncio.Event()
        half = HalfCut(crops(1, 2, 3), missing, may_cut)

        async def decode():
            return half

        first = asyncio.ensure_future(farm.gateway.label(one, 3, decode))
        await settled()
        second = ask(farm, other, 2, 3, 9)
        await settled()
        may_cut.set()
        records = await first
        for row in range(3):
            if row in missing:
                assert not records[row : row + 1].tobytes().strip(b"\0")
            else:
                assert_right(records[row : row + 1], row + 1)
        assert sorted(half.refused) == missing
        assert_right(await second, 2, 3, 9)
        assert (one.credit.untaken_crops, farm.gateway.admitted_crops) == (3, 0)
        assert "<InFlight 0 crop(s)>" in repr(farm.gateway)


@on_loop
async def test_a_crop_twice_in_one_slice_is_computed_once(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        session = farm.gateway.open_session(hello())
        assert_right(await ask(farm, session, 4, 4, 8, 4), 4, 4, 8, 4)
        assert farm.teacher.seen == [[4, 8]]


@on_loop
async def test_keys_are_wanted_while_somebody_else_could_ask_the_same_crops(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        one = farm.gateway.open_session(hello())
        stranger = farm.gateway.open_session(hello(spec=LabelSpec(top_k=2)))
        assert not any((one.welcome.keys_wanted, one.keys_wanted, stranger.keys_wanted))
        other = farm.gateway.open_session(hello())
        assert other.welcome.keys_wanted
        assert one.keys_wanted
        assert other.keys_wanted
        assert not stranger.keys_wanted
        farm.gateway.close_session(other)
        assert not one.keys_wanted
        farm.gateway.close_session(one)
        assert not farm.gateway.open_session(hello()).keys_wanted


@pytest.mark.parametrize("apart", ["project", "teacher", "spec", "codec"])
@on_loop
async def test_what_must_not_meet_is_not_joined(tmp_path, apart):
    cards = [CARD, make_card("other")] if apart == "teacher" else [CARD]
    async with ScriptedFarm(tmp_path, *cards, projects=keyed(one=Allowance(), another=Allowance())) as farm:
        one = farm.gateway.open_session(hello(api_key="key of one"))
        changes = {
            "project": {"api_key": "key of another"},
            "teacher": {"teacher": "other"},
            "spec": {"spec": LabelSpec(top_k=2)},
            "codec": {"codec": "jpeg"},
        }
        other = farm.gateway.open_session(hello(**({"api_key": "key of one"} | changes[apart])))
        for teacher in farm.teachers.values():
            teacher.hold()
        tasks = [ask(farm, session, 1, 2) for session in (one, other)]
        await settled()
        for teacher in farm.teachers.values():
            teacher.let_go()
        await asyncio.gather(*tasks)
        assert sum(len(firsts) for teacher in farm.teachers.values() for firsts in teacher.seen) == 4
        assert farm.metric("joined_total", teacher="scripted", project="one") == 0


@on_loop
async def test_a_tenant_with_forged_keys_poisons_itself_alone(tmp_path):
    async with ScriptedFarm(tmp_path, projects=keyed(victim=Allowance(), attacker=Allowance())) as farm:
        victim = farm.gateway.open_session(hello(api_key="key of victim"))
        attacker = farm.gateway.open_session(hello(api_key="key of attacker"))
        farm.teacher.hold()
        forged = CropBatch(pixels=crops(66), keys=pixel_keys(crops(1)))
        attack = label(farm, attacker, forged)
        await until(lambda: farm.teacher.running)
        asked = ask(farm, victim, 1)
        await settled()
        farm.teacher.let_go()
        assert_right(await asked, 1)
        assert_right(await attack, 66)


@pytest.mark.parametrize("end", ["cancelled", "failed"])
@on_loop
async def test_an_owner_who_leaves_passes_its_crops_on(tmp_path, end):
    async with ScriptedFarm(tmp_path) as farm:
        one, other = farm.gateway.open_session(hello()), farm.gateway.open_session(hello())
        farm.teacher.hold()
        owner = ask(farm, one, 1, 66)
        await until(lambda: farm.teacher.running)
        joiners = [ask(farm, other, 2, 1), ask(farm, one, 1)]
        await settled()
        if end == "cancelled":
            owner.cancel()
        else:
            farm.teacher.raises[66] = ZeroDivisionError
        farm.teacher.let_go()
        assert_right(await joiners[0], 2, 1)
        assert_right(await joiners[1], 1)
        with pytest.raises(asyncio.CancelledError if end == "cancelled" else TeacherFailed):
            await owner
        assert "<InFlight 0 crop(s)>" in repr(farm.gateway)
        assert farm.gateway.admitted_crops == 0


@on_loop
async def test_two_slices_that_join_each_other_crosswise_both_end(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        session = farm.gateway.open_session(hello())
        farm.teacher.hold()
        first = ask(farm, session, 1, 2)
        await until(lambda: farm.teacher.running)
        second, third = ask(farm, session, 3, 1), ask(farm, session, 2, 3)
        await settled()
        farm.teacher.let_go()
        for task, firsts in ((first, (1, 2)), (second, (3, 1)), (third, (2, 3))):
            assert_right(await task, *firsts)


@on_loop
async def test_more_than_the_window_is_refused_for_now_and_room_comes_back(tmp_path):
    async with ScriptedFarm(tmp_path, window=16) as farm:
        session = farm.gateway.open_session(hello())
        farm.teacher.hold()
        tasks = [ask(farm, session, *range(n, n + 8)) for n in (0, 8)]
        await settled()
        with pytest.raises(
            Overloaded, match="16 crops in flight or not taken, 1 more exceed the window of 16"
        ) as caught:
            await ask(farm, session, 99)
        assert caught.value.retry_after_s > 0
        farm.teacher.let_go()
        await asyncio.gather(*tasks)
        with pytest.raises(Overloaded):
            await ask(farm, session, 99)
        session.credit.took(8)
        assert_right(await ask(farm, session, 99), 99)


@on_loop
async def test_nothing_is_decoded_that_there_is_no_room_for(tmp_path):
    async with ScriptedFarm(tmp_path, window=8) as farm:
        session = farm.gateway.open_session(hello())
        decoding, free = [], asyncio.Event()

        async def decode() -> SentCrops:
            decoding.append(1)
            await free.wait()
            return SentCrops(CropBatch(pixels=crops(*range(8))))

        tasks = [asyncio.ensure_future(farm.gateway.label(session, 8, decode)) for _ in range(5)]
        await settled()
        assert len(decoding) == 1
        free.set()
        assert_right(await tasks[0], *range(8))
        for task in tasks[1:]:
            with pytest.raises(Overloaded):
                await task


@on_loop
async def test_a_slice_beyond_what_welcome_allowed_is_refused(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        session = farm.gateway.open_session(hello())
        with pytest.raises(WrongBatchSize, match="9 crops; Welcome allowed 8"):
            await ask(farm, session, *range(9))
        assert farm.gateway.admitted_crops == 0


@on_loop
async def test_whatever_fails_is_counted_down(tmp_path, monkeypatch):
    monkeypatch.setattr(lane_module, "PAUSE_AFTER_DEATH_S", 0.0)
    async with ScriptedFarm(tmp_path) as farm:
        farm.teacher.raises = {1: lambda: ZeroDivisionError(), 2: lambda: BackendDied("gone")}
        session = farm.gateway.open_session(hello())
        for firsts in ((1, 7), (2,), (7,)):
            task = ask(farm, session, *firsts)
            await asyncio.wait([task])
            if firsts != (7,):
                assert task.exception() is not None
        farm.teacher.hold()
        gone = ask(farm, session, 5)
        await until(lambda: farm.teacher.running)
        gone.cancel()
        await asyncio.wait([gone])
        assert farm.gateway.admitted_crops == farm.metric("admitted_crops") == 0
        assert session.credit.untaken_crops == 1, "one answer, which was not taken yet"
        assert farm.metric("waiting_crops", teacher="scripted") == 0


@on_loop
async def test_a_closed_session_gives_its_share_back(tmp_path):
    async with ScriptedFarm(tmp_path, budget_crops=22, window=64) as farm:
        one, other = farm.gateway.open_session(hello()), farm.gateway.open_session(hello())
        assert (one.credit.window_crops, other.credit.window_crops) == (11, 11)
        with pytest.raises(Overloaded, match="2 sessions fill"):
            farm.gateway.open_session(hello())
        farm.gateway.close_session(other)
        assert one.credit.window_crops == 22


DIGEST = served_digest(CARD, "scripted")


@pytest.mark.parametrize(
    ("changes", "fault", "words"),
    [
        ({"teacher": "nobody"}, UnknownTeacher, "no teacher 'nobody' here; served are: scripted"),
        (
            {"expected_teacher_digest": "0" * 64},
            DigestMismatch,
            "teacher digest of 'scripted' is 7363.*expected 000",
        ),
        ({"expected_teacher_digest": "7363726"}, DigestMismatch, "expected 7363726:"),
        ({"expected_teacher_digest": "7363726970746564" + "0" * 48 + "-and-more"}, DigestMismatch, "and-more"),
        ({"expected_teacher_digest": "ščripted"}, DigestMismatch, "ščripted"),
        ({"expected_artifact_digest": "0" * 64}, DigestMismatch, "artifact digest"),
        ({"crop_format": CropFormat(height=5, width=4)}, WrongCropSize, r"takes uint8 \[N, 4, 4, 3\].*\[N, 5, 4, 3\]"),
        ({"crop_format": CropFormat(height=4, width=4, channels=1)}, WrongCropSize, r"\[N, 4, 4, 1\]"),
        ({"crop_format": CropFormat(height=4, width=4, number_type="float32")}, WrongNumberType, "float32"),
        ({"spec": LabelSpec(outputs=("stage9",))}, UnknownOutput, "labels, embedding"),
        ({"spec": LabelSpec(top_k=11)}, BadLabelSpec, "10 classes"),
    ],
)
@on_loop
async def test_what_a_session_is_refused_for(tmp_path, changes, fault, words):
    async with ScriptedFarm(tmp_path) as farm:
        with pytest.raises(fault, match=words):
            farm.gateway.open_session(hello(**changes))
        assert "0 session" in repr(farm.credit), "a refused Hello keeps nothing"


@pytest.mark.parametrize(
    ("changes", "fault", "words"),
    [
        ({"number_type": "uint16"}, WrongNumberType, "JPEG holds uint8"),
        ({"channels": 4}, WrongCropSize, "JPEG holds 1 or 3 channels"),
    ],
)
@on_loop
async def test_jpeg_is_refused_where_it_cannot_hold_the_crops(tmp_path, changes, fault, words):
    async with ScriptedFarm(tmp_path, make_card(crop_format=CropFormat(height=4, width=4, **changes))) as farm:
        with pytest.raises(fault, match=words):
            farm.gateway.open_session(hello(codec="jpeg"))


@pytest.mark.parametrize("pinned", [DIGEST, DIGEST[:8]])
@on_loop
async def test_the_pinned_teacher_is_served(tmp_path, pinned):
    async with ScriptedFarm(tmp_path) as farm:
        session = farm.gateway.open_session(hello(expected_teacher_digest="73637269", expected_artifact_digest=pinned))
        assert session.lane.card == CARD


@on_loop
async def test_before_ready_and_while_draining_nobody_gets_in(tmp_path):
    farm = ScriptedFarm(tmp_path)
    with pytest.raises(NotReady):
        farm.gateway.open_session(hello())
    async with farm:
        farm.gateway.draining = True
        with pytest.raises(GoingAway, match="draining"):
            farm.gateway.open_session(hello())
