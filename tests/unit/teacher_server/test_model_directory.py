"""Model directories and golden answers: what is missing, half written, altered or another teacher is not served."""

import asyncio
import dataclasses
import hashlib

import numpy as np
import pytest

from teacherfarm.protos.crop import CropFormat
from teacherfarm.protos.faults import (
    BackendDied,
    BadTeacher,
    DamagedArtifact,
    EmptyModelDirectory,
    GoldenMismatch,
    NotReady,
    UnknownTeacher,
)
from teacherfarm.protos.soft_label import log_softmax
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.teacher_server.farm.farm import BatchSettings, Farm
from teacherfarm.teacher_server.farm.golden import check_golden_answers
from teacherfarm.teacher_server.farm.model_directory import ExportedTeacher, read_model_directory, served_digest
from teacherfarm.teacher_server.metrics import Metrics
from tests.on_loop import on_loop
from tests.unit.teacher_server.scripted import (
    CARD,
    ScriptedFarm,
    Teacher,
    answer,
    crops,
    exported,
    golden_bytes,
    make_card,
)

MODEL = b"not really a model"


def write(folder, card: TeacherCard = CARD, **changes):
    """A whole teacher on disk, then changed."""
    card = dataclasses.replace(card, artifact_digest=hashlib.sha256(MODEL).hexdigest())
    card = dataclasses.replace(card, **changes)
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(MODEL)
    (folder / "golden.npz").write_bytes(golden_bytes())
    (folder / "card.json").write_text(card.to_json())
    return folder


def test_a_directory_of_teachers_and_a_teacher_itself(tmp_path):
    for name in ("b", "a"):
        write(tmp_path / name, make_card(name))
    (tmp_path / ".half-way").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    found = read_model_directory(tmp_path)
    assert [(t.name, t.fault) for t in found] == [("a", None), ("b", None)]
    assert found[0].model_file == tmp_path / "a" / "1" / "model.onnx"
    assert [t.name for t in read_model_directory(tmp_path / "b")] == ["b"]


def test_a_directory_without_teachers_says_how_to_get_one(tmp_path):
    for models in (tmp_path, tmp_path / "missing"):
        with pytest.raises(EmptyModelDirectory, match=f"{models}.*teacherfarm export") as caught:
            read_model_directory(models)
        assert str(models) in str(caught.value)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(EmptyModelDirectory, match="not a directory"):
        read_model_directory(file)


DAMAGE = {
    "no card": (lambda folder: (folder / "card.json").unlink(), "no card.json"),
    "half a card": (lambda folder: cut(folder / "card.json"), "card.json is damaged"),
    "a card that is not text": (lambda folder: (folder / "card.json").write_bytes(b"\xff\xfe\x00"), "is damaged"),
    "a folder for a card": (lambda folder: swap_for_folder(folder / "card.json"), "card.json"),
    "no model": (lambda folder: (folder / "1" / "model.onnx").unlink(), "lacks 1/model.onnx"),
    "a folder for a model": (lambda folder: swap_for_folder(folder / "1" / "model.onnx"), "lacks 1/model.onnx"),
    "half a model": (lambda folder: cut(folder / "1" / "model.onnx"), "half written or altered"),
    "an altered model": (lambda folder: flip_a_bit(folder / "1" / "model.onnx"), "not the file its card describes"),
    "no golden answers": (lambda folder: (folder / "golden.npz").unlink(), "lacks golden.npz"),
}


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file):
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])


def swap_for_folder(file):
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_teacher_is_named_and_the_others_are_served(tmp_path, damage):
    harm, words = DAMAGE[damage]
    write(tmp_path / "good", make_card("good"))
    harm(write(tmp_path / "bad", make_card("bad")))
    bad, good = read_model_directory(tmp_path)
    assert good.fault is None
    assert type(bad.fault) is DamagedArtifact
    assert words in str(bad.fault)
    assert "export 'bad' again" in str(bad.fault)


@pytest.mark.parametrize("place", ["../other/1/model.onnx", "/etc/hostname", "1/../../other/1/model.onnx", "x\0y"])
def test_a_card_names_no_file_outside_its_folder(tmp_path, place):
    write(tmp_path / "other", make_card("other"))
    write(tmp_path / "bad", make_card("bad"), model_file=place)
    bad, _ = read_model_directory(tmp_path)
    assert type(bad.fault) is DamagedArtifact
    assert "outside its folder" in str(bad.fault)


def test_nor_does_a_link(tmp_path):
    write(tmp_path / "other", make_card("other"))
    model = write(tmp_path / "bad", make_card("bad")) / "1" / "model.onnx"
    model.unlink()
    model.symlink_to(tmp_path / "other" / "1" / "model.onnx")
    assert "outside its folder" in str(read_model_directory(tmp_path)[0].fault)


def test_two_folders_with_one_name_are_not_served_as_one(tmp_path):
    for folder in ("one", "other"):
        write(tmp_path / folder, make_card("same"))
    with pytest.raises(DamagedArtifact, match=r"one and .*other both hold a teacher named 'same'"):
        read_model_directory(tmp_path)


def test_the_served_digest_names_file_precision_and_provider():
    cards = [CARD, make_card(artifact_digest="b"), make_card(precision="fp16")]
    digests = {served_digest(card, provider) for card in cards for provider in ("cpu", "cuda")}
    assert len(digests) == 6


def check(golden: bytes, tmp_path, card=CARD, teacher=None) -> float:
    async def scenario() -> float:
        (tmp_path / "golden.npz").write_bytes(golden)
        return await check_golden_answers(card, tmp_path / "golden.npz", teacher or Teacher(card, largest_batch=2))

    return asyncio.run(scenario())


def right_probabilities(*firsts):
    return np.exp(log_softmax(answer(crops(*firsts), ("logits",))["logits"]))


def test_the_right_teacher_passes(tmp_path):
    assert check(golden_bytes(), tmp_path) < 1e-3


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-3), ("fp16", 2e-2), ("bf16", 1e-1)])
def test_another_teacher_is_refused_beyond_its_precisions_tolerance(tmp_path, precision, allowed):
    card = make_card(precision=precision)
    probabilities = right_probabilities(1, 2, 3)
    probabilities[2, 7] += 0.7 * allowed
    assert check(golden_bytes(probabilities=probabilities), tmp_path, card) == pytest.approx(0.7 * allowed, rel=0.3)
    probabilities[2, 7] += 0.8 * allowed
    with pytest.raises(GoldenMismatch, match=rf"{precision}.*scripted\).*at most {allowed:g}.*[Ee]xport"):
        check(golden_bytes(probabilities=probabilities), tmp_path, card)


def test_answers_that_are_no_numbers_are_refused(tmp_path):
    teacher = Teacher(CARD, largest_batch=2)
    teacher.rewrite = lambda outputs: {name: values * np.nan for name, values in outputs.items()}
    with pytest.raises(GoldenMismatch):
        check(golden_bytes(), tmp_path, teacher=teacher)
    with pytest.raises(GoldenMismatch):
        check(golden_bytes(probabilities=np.full((3, 10), np.nan)), tmp_path)


def test_answers_of_another_shape_are_refused(tmp_path):
    with pytest.raises(GoldenMismatch, match=r"\[3, 10\].*\[3, 11\]"):
        check(golden_bytes(probabilities=np.zeros((3, 11))), tmp_path)


def test_a_sigmoid_teacher_is_compared_by_its_probabilities(tmp_path):
    card = make_card(activation="sigmoid")
    right = 1 / (1 + np.exp(-answer(crops(1, 2, 3), ("logits",))["logits"]))
    assert check(golden_bytes(probabilities=right), tmp_path, card) < 1e-3
    with pytest.raises(GoldenMismatch):
        check(golden_bytes(), tmp_path, card)


def test_a_teacher_without_classes_is_compared_by_its_embedding(tmp_path):
    card = make_card(activation="none", num_classes=0)
    file = tmp_path / "golden.npz"
    right = answer(crops(1, 2, 3), ("embedding",))["embedding"]
    for factor, fits in ((1.0005, True), (1.01, False)):
        np.savez(file, crops=crops(1, 2, 3), embedding=right * factor)
        golden = file.read_bytes()
        if fits:
            check(golden, tmp_path, card)
        else:
            with pytest.raises(GoldenMismatch):
                check(golden, tmp_path, card)


@pytest.mark.parametrize(
    "golden",
    [
        b"",
        b"garbage",
        golden_bytes()[:-40],
        golden_bytes()[:200],
        bytes(200) + golden_bytes()[200:],
        golden_bytes(probes=crops()),
    ],
    ids=["empty", "garbage", "cut at the end", "cut early", "overwritten", "no crops"],
)
def test_a_golden_file_that_cannot_be_read_is_a_damaged_teacher(tmp_path, golden):
    with pytest.raises(DamagedArtifact, match=r"golden\.npz"):
        check(golden, tmp_path)


@on_loop
async def test_a_farm_serves_the_good_ones_and_says_why_not_the_others(tmp_path):
    cards = [make_card(name) for name in ("good", "wrong", "broken", "dead")]
    async_farm = ScriptedFarm(tmp_path, *cards)
    async_farm.teachers["wrong"].rewrite = lambda outputs: {k: v[:, ::-1] for k, v in outputs.items()}
    async_farm.teachers["broken"].raises[1] = lambda: RuntimeError("INVALID_ARGUMENT")
    async_farm.teachers["dead"].raises[1] = lambda: BackendDied("gone")
    async with async_farm as scripted:
        farm = scripted.farm
        assert not farm.ready
        assert {t.name: t.state for t in farm.summaries()} == {
            "good": "ready",
            "wrong": "failed",
            "broken": "failed",
            "dead": "failed",
        }
        assert farm.lane("good").state == "ready"
        for name, fault in (("wrong", GoldenMismatch), ("broken", BadTeacher), ("dead", BackendDied)):
            for _ in range(3):
                with pytest.raises(fault) as caught:
                    farm.lane(name)
            assert len(caught.traceback) <= 2, "asking again and again gathers nothing"
        with pytest.raises(UnknownTeacher, match=r"'nobody' here; served are: broken, dead, good, wrong"):
            farm.lane("nobody")
        with pytest.raises(UnknownTeacher, match="several teachers are served, name one of: broken"):
            farm.lane("")
        assert scripted.metric("teacher_ready", teacher="good") == 1
        assert scripted.metric("teacher_ready", teacher="wrong") == 0


@on_loop
async def test_a_farm_that_can_serve_nobody_does_not_start(tmp_path):
    farm = ScriptedFarm(tmp_path)
    farm.teacher.rewrite = lambda outputs: {k: v[:, ::-1] for k, v in outputs.items()}
    with pytest.raises(GoldenMismatch):
        await farm.farm.start()
    await farm.farm.close()


@on_loop
async def test_a_teacher_is_not_ready_before_its_check(tmp_path):
    farm = ScriptedFarm(tmp_path)
    with pytest.raises(NotReady, match="'scripted' is loading") as caught:
        farm.farm.lane("")
    assert caught.value.retry_after_s > 0
    await farm.farm.close()


def test_a_fault_found_on_disk_keeps_its_teacher_out(tmp_path):
    fault = DamagedArtifact("half written")
    teachers = [exported(tmp_path, make_card("good")), ExportedTeacher(name="bad", folder=tmp_path, fault=fault)]
    farm = Farm(teachers, lambda teacher, card: Teacher(card), metrics=Metrics(), batches=BatchSettings())
    with pytest.raises(DamagedArtifact, match="half written"):
        farm.lane("bad")
    assert not farm.ready


def test_a_card_with_an_impossible_crop_is_damaged(tmp_path):
    folder = write(tmp_path / "bad", make_card("bad", crop_format=CropFormat(height=4, width=4)))
    card = (folder / "card.json").read_text()
    (folder / "card.json").write_text(card.replace('"height": 4', '"height": -4'))
    assert "positive" in str(read_model_directory(tmp_path)[0].fault)
