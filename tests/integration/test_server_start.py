"""A server that cannot serve says why in a sentence and ends with 1; one that is still loading makes students wait."""

from __future__ import annotations

import json
import shutil
import threading

import numpy as np
import pytest

from teacherfarm.protos.faults import NotReady
from teacherfarm.protos.teacher_card import CARD_FILE, GOLDEN_FILE
from teacherfarm.protos.wire import SliceFault
from teacherfarm.student import TeacherClient, Timeouts
from teacherfarm.teacher_server.farm.model_directory import file_digest
from tests.farm_process import FarmProcess, wait_for
from tests.raw_student import hello, raw_student
from tests.scripted_farm import make_crops, right_classes


def remove_everything(folder):
    shutil.rmtree(folder)


def half_a_card(folder):
    card = (folder / CARD_FILE).read_text()
    (folder / CARD_FILE).write_text(card[: len(card) // 2])


def no_card(folder):
    (folder / CARD_FILE).unlink()


def half_a_model(folder):
    model = (folder / "1/model.onnx").read_bytes()
    (folder / "1/model.onnx").write_bytes(model[: len(model) // 2])


def no_model(folder):
    (folder / "1/model.onnx").unlink()


def a_model_that_is_none(folder):
    (folder / "1/model.onnx").write_bytes(b"not a model")
    card = json.loads((folder / CARD_FILE).read_text())
    (folder / CARD_FILE).write_text(json.dumps(card | {"artifact_digest": file_digest(folder / "1/model.onnx")}))


def no_golden_answers(folder):
    (folder / GOLDEN_FILE).unlink()


def half_the_golden_answers(folder):
    golden = (folder / GOLDEN_FILE).read_bytes()
    (folder / GOLDEN_FILE).write_bytes(golden[: len(golden) // 2])


def other_golden_answers(folder):
    golden = dict(np.load(folder / GOLDEN_FILE))
    golden["probabilities"] = np.roll(golden["probabilities"], 1, axis=1)
    np.savez(folder / GOLDEN_FILE, **golden)


DAMAGES = {
    remove_everything: "EmptyModelDirectory: {models} holds no exported teacher",
    half_a_card: "card.json is damaged (the card is not JSON",
    no_card: "DamagedArtifact: {models}/tiny has no card.json: export 'tiny' again",
    half_a_model: "half written or altered; export 'tiny' again",
    no_model: "lacks 1/model.onnx, which its card names: export 'tiny' again",
    a_model_that_is_none: "DamagedArtifact: ONNX Runtime cannot load",
    no_golden_answers: "lacks golden.npz, so its answers cannot be checked: export 'tiny' again",
    half_the_golden_answers: "golden.npz cannot be read",
    other_golden_answers: "GoldenMismatch: teacher 'tiny' (fp32, ",
}


def test_a_model_directory_that_cannot_be_served(tiny_models, tmp_path):
    started = []
    try:
        for damage in DAMAGES:
            models = tmp_path / damage.__name__ / "models"
            shutil.copytree(tiny_models, models)
            damage(models / "tiny")
            started.append((damage, models, FarmProcess(models.parent, models).start(wait=False)))
        for damage, models, farm in started:
            assert farm.wait(60) == 1, f"{damage.__name__}: {farm.log()}"
            log = farm.log()
            assert DAMAGES[damage].format(models=models) in log, f"{damage.__name__}: {log}"
            assert "Traceback" not in log, f"{damage.__name__}: {log}"
            assert log.count("\n") <= 3, f"{damage.__name__}: {log}"
    finally:
        for _, _, farm in started:
            farm.stop()


def test_a_damaged_teacher_does_not_take_the_others_along(tiny_models, tmp_path, tiny_crops, wire):
    models = tmp_path / "models"
    shutil.copytree(tiny_models, models)
    shutil.copytree(tiny_models / "tiny", models / "damaged")
    no_golden_answers(models / "damaged")
    half_a_card(models / "damaged")
    with FarmProcess(tmp_path, models) as farm:
        with TeacherClient(getattr(farm, wire), "tiny") as teacher:
            assert len(teacher.label(tiny_crops[:4])) == 4
        with pytest.raises(Exception, match=r"damaged.*export 'damaged' again") as caught:
            TeacherClient(getattr(farm, wire), "damaged").__enter__()
        assert type(caught.value).__name__ == "DamagedArtifact"
        assert farm.get("/readyz") == (503, "not ready: damaged is failed\n")


@pytest.mark.parametrize("taken", ["grpc", "zmq", "http"])
def test_an_address_that_is_taken(taken, tiny_farm, tiny_models, tmp_path):
    farm = FarmProcess(tmp_path, tiny_models)
    farm.addresses = {taken: tiny_farm.addresses[taken]}
    try:
        assert farm.start(wait=False).wait() == 1
        assert "teacherfarm serve: OSError: cannot listen for " in farm.log()
        assert tiny_farm.addresses[taken].partition("://")[2] in farm.log()
        assert "Traceback" not in farm.log()
    finally:
        farm.stop()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--window=0"], "window must be at least 1, got 0"),
        (["--config=nowhere.toml"], "cannot read settings from nowhere.toml"),
    ],
)
def test_settings_that_cannot_be(flags, words, tiny_models, tmp_path):
    farm = FarmProcess(tmp_path, tiny_models, *flags)
    try:
        assert farm.start(wait=False).wait() == 2
        assert words in farm.log()
        assert "Traceback" not in farm.log()
    finally:
        farm.stop()


def test_students_that_come_early_wait_and_then_get_labels(start_scripted, tmp_path):
    gate = tmp_path / "gate"
    gate.touch()
    farm = start_scripted(f"--gate={gate}")
    farm.kill()
    gate.unlink()
    farm.start(wait=False)  # on the ports that are known now
    crops = make_crops(8, seed=1)
    found = {}

    def label(address):
        with TeacherClient(address) as teacher:
            found[address] = teacher.label(crops).top1

    students = [threading.Thread(target=label, args=(address,)) for address in (farm.zmq, farm.grpc)]
    for student in students:
        student.start()
    for address in (farm.zmq, farm.grpc):
        # Refused by the server that is there already, not by the lack of one.
        wait_for(lambda address=address: isinstance(answer_to_hello(address), NotReady))
        with pytest.raises(NotReady, match=r"within 0\.2 s: teacher 'scripted' is loading, not ready yet"):
            TeacherClient(address, timeouts=Timeouts(connect_s=0.2)).connect()
    assert farm.get("/readyz") == (503, "not ready: scripted is loading\n")
    assert farm.get("/healthz") == (200, "alive\n")
    assert not found
    gate.touch()
    farm.wait_ready()
    for student in students:
        student.join(30)
    assert found.keys() == {farm.zmq, farm.grpc}
    assert all((top1 == right_classes(crops, 10)).all() for top1 in found.values())
    assert farm.get("/readyz") == (200, "ready\n")


def answer_to_hello(address):
    """The fault that a student gets now, if any."""
    with raw_student(address) as student:
        student.send(hello())
        try:
            answer, _ = student.receive()
        except Exception:
            return None
        return answer.fault if isinstance(answer, SliceFault) else None
