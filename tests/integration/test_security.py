"""A farm that speaks TLS and CURVE, as a process: students that it lets in, those it does not, files that change."""

from __future__ import annotations

import logging
import signal

import pytest

from teacherfarm.protos.curve_keys import read_pair
from teacherfarm.protos.faults import HandshakeFailed, Overloaded, Unauthenticated
from teacherfarm.protos.messages import ListTeachers, TeacherList, Welcome
from teacherfarm.protos.wire import encode_header
from teacherfarm.student import TeacherClient, Timeouts
from teacherfarm.student.listing import list_teachers
from tests.credentials import CurveFarm, TlsFarm
from tests.farm_process import FarmProcess, wait_for
from tests.raw_student import hello, raw_student
from tests.scripted_farm import make_crops, right_classes

SOON = Timeouts(connect_s=10.0)


@pytest.fixture
def tls(tmp_path):
    return TlsFarm(tmp_path / "tls")


@pytest.fixture
def curve(tmp_path):
    return CurveFarm(tmp_path / "curve", "me")


def check_labels(address, **options):
    with TeacherClient(address, timeouts=SOON, **options) as teacher:
        crops = make_crops(48, seed=1)
        assert (teacher.label(crops).top1 == right_classes(crops, 10)).all()
        assert teacher.stats.sessions == 1


def refused(address, kind=HandshakeFailed, **options):
    with pytest.raises(kind) as caught:
        TeacherClient(address, timeouts=SOON, **options).connect()
    assert type(caught.value) is kind
    return str(caught.value)


def reload(farm, line):
    before = farm.log().count(line)
    farm.signal(signal.SIGHUP)
    wait_for(lambda: farm.log().count(line) > before)


def test_labels_by_tls_and_by_curve_and_nothing_in_the_clear(start_scripted, tls, curve):
    farm = start_scripted(*tls.flags, *curve.flags)
    assert farm.grpc.startswith("grpcs://127.0.0.1:")
    assert farm.zmq.endswith(f"?server_key={curve.public_key}")
    by_tls = farm.grpc + tls.options()
    by_curve = f"{farm.zmq}&client_key={curve.students['me']}"
    for address in (by_tls, by_curve):
        check_labels(address)
        assert [teacher.name for teacher in list_teachers(address)] == ["scripted"]
    clear = [farm.grpc.replace("grpcs", "grpc"), farm.zmq.partition("?")[0]]
    assert "the farm speaks TLS: use grpcs://" in refused(clear[0])
    assert "the farm speaks CURVE: add ?server_key=KEY" in refused(clear[1])
    # One alternative that cannot be does not stop the other.
    check_labels(f"{clear[1]},{by_tls}")
    check_labels(f"{clear[0]},{by_curve}")
    assert "Traceback" not in farm.log()


def test_a_farm_that_asks_students_for_certificates(start_scripted, tls):
    farm = start_scripted(*tls.mutual_flags)
    check_labels(farm.grpc + tls.options(mutual=True))
    assert "the server asks students for certificates" in refused(farm.grpc + tls.options())
    check_labels(farm.zmq)


def test_secrets_are_in_no_log(start_scripted, tls, curve, caplog):
    caplog.set_level(logging.DEBUG)
    farm = start_scripted(*tls.mutual_flags, *curve.flags, "--log-level=DEBUG")
    stranger = curve.stranger("mallory")
    check_labels(farm.grpc + tls.options(mutual=True), api_key="an api key")
    check_labels(f"{farm.zmq}&client_key={curve.students['me']}", api_key="an api key")
    said = refused(f"{farm.zmq}&client_key={stranger}")
    reload(farm, "read the allow-list")
    secrets = [read_pair(file, "x").secret for file in (curve.secret_file, curve.students["me"], stranger)]
    secrets += [line for file in (tls.key, tls.student_key) for line in file.read_text().splitlines()[1:-1]]
    for secret in [*secrets, "an api key"]:
        assert secret not in farm.log()
        assert secret not in caplog.text
        assert secret not in said


def label_for_ever(teacher, crops):
    while True:
        teacher.label(crops)


def test_the_allow_list_changes_under_open_sessions(start_scripted, curve):
    eve_file = curve.add("eve")
    farm = start_scripted(*curve.flags)
    crops = make_crops(8, seed=2)
    with (
        TeacherClient(f"{farm.zmq}&client_key={curve.students['me']}", timeouts=SOON) as me,
        TeacherClient(f"{farm.zmq}&client_key={eve_file}", timeouts=SOON) as eve,
    ):
        for student in (me, eve):
            assert (student.label(crops).top1 == right_classes(crops, 10)).all()
        (curve.clients / "eve.public").unlink()
        dan_file = curve.add("dan")
        reload(farm, "read the allow-list")
        # It may hear of it before or after its next crops.
        with pytest.raises(Unauthenticated, match="taken off the farm's allow-list"):
            label_for_ever(eve, crops)
        assert "is not on the farm's allow-list" in refused(f"{farm.zmq}&client_key={eve_file}")
        check_labels(f"{farm.zmq}&client_key={dan_file}")
        (curve.clients / "broken.public").write_text("public-key = no key")
        reload(farm, "stays as it was")
        assert "broken.public" in farm.log()
        check_labels(f"{farm.zmq}&client_key={dan_file}")
        assert (me.label(crops).top1 == right_classes(crops, 10)).all()
        assert me.stats.sessions == 1


def test_a_certificate_is_renewed_under_open_sessions(start_scripted, tls, tmp_path):
    cert, key = tls.authority.issue("served", "farm.example")
    farm = start_scripted(f"--tls-cert={cert}", f"--tls-key={key}")
    assert "is not for '127.0.0.1'" in refused(farm.grpc + tls.options())
    cert.write_bytes(tls.cert.read_bytes())
    key.write_bytes(tls.key.read_bytes())
    reload(farm, "read the certificate")
    with TeacherClient(farm.grpc + tls.options(), timeouts=SOON) as teacher:
        old_cert, old_key = tls.authority.issue("old", "127.0.0.1", days=-1)
        cert.write_bytes(old_cert.read_bytes())
        key.write_bytes(old_key.read_bytes())
        reload(farm, "stays as it was")
        assert "expired on" in farm.log()
        check_labels(farm.grpc + tls.options())
        crops = make_crops(8, seed=3)
        assert (teacher.label(crops).top1 == right_classes(crops, 10)).all()


def test_a_silent_session_is_closed_and_its_student_opens_another(start_scripted, wire):
    farm = start_scripted("--idle-session-s=0.5")
    crops = make_crops(8, seed=4)
    with TeacherClient(getattr(farm, wire), timeouts=SOON) as teacher:
        for _ in range(2):
            assert (teacher.label(crops).top1 == right_classes(crops, 10)).all()
            session = f"session s{teacher.stats.sessions} closed ({wire})"
            wait_for(lambda session=session: session in farm.log())
        assert (teacher.label(crops).top1 == right_classes(crops, 10)).all()
        assert teacher.stats.sessions >= 3


def test_connections_that_say_no_hello_are_few_and_harm_nobody(start_scripted, wire):
    farm = start_scripted("--max-strangers=2")
    address = getattr(farm, wire)
    with TeacherClient(address, timeouts=SOON) as teacher, raw_student(address) as one, raw_student(address) as two:
        for stranger in (one, two):
            stranger.send(encode_header(ListTeachers()))
            assert isinstance(stranger.receive()[0], TeacherList)
        with pytest.raises(Overloaded, match="2 others have not said Hello yet"):
            TeacherClient(address, timeouts=Timeouts(connect_s=0.2)).connect()
        crops = make_crops(8, seed=5)
        assert (teacher.label(crops).top1 == right_classes(crops, 10)).all()
        one.send(hello())
        assert isinstance(one.receive()[0], Welcome)
        check_labels(address)


BAD_STARTS = {
    "expired": (["--tls-cert={old}", "--tls-key={old_key}"], "tls_cert: the certificate in {old} expired on 20"),
    "another's key": (["--tls-cert={cert}", "--tls-key={old_key}"], "tls_key: {old_key} is not the key of"),
    "no certificate": (["--tls-cert=nowhere.pem", "--tls-key={key}"], "tls_cert: cannot read nowhere.pem: No such"),
    "a public key": (["--curve-key={public}", "--curve-clients=any"], "{public} has no line secret-key: that is a"),
    "no allow-list": (["--curve-key={secret}", "--curve-clients=nowhere"], "curve_clients: cannot read nowhere: No"),
    "half": (["--curve-key={secret}"], "curve_key and curve_clients come together"),
}


def test_a_farm_that_cannot_be_what_it_is_told_says_why(tls, curve, tmp_path, tiny_models):
    old, old_key = tls.authority.issue("old", "127.0.0.1", days=-1)
    names = {"old": old, "old_key": old_key, "cert": tls.cert, "key": tls.key, "secret": curve.secret_file}
    names["public"] = curve.secret_file.with_suffix(".public")
    started = []
    try:
        for name, (flags, words) in BAD_STARTS.items():
            given = [flag.format(**names) for flag in flags]
            farm = FarmProcess(tmp_path, tiny_models, *given).start(wait=False)
            started.append((name, words.format(**names), farm))
        for name, words, farm in started:
            assert farm.wait(60) == 2, name
            assert words in farm.log(), f"{name}: {farm.log()}"
            assert farm.log().count("\n") == 1, f"{name}: {farm.log()}"
    finally:
        for _, _, farm in started:
            farm.stop()


def test_a_farm_listens_beyond_this_machine_only_encrypted_and_asking_who_comes(tls, curve, tmp_path, tiny_models):
    for flags, words in (
        ([], "grpc = '0.0.0.0:0' would listen beyond this machine in the clear"),
        (tls.flags, "grpc = '0.0.0.0:0' would listen beyond this machine, encrypted but for anybody"),
        (tls.mutual_flags, "zmq = '0.0.0.0:0' would listen beyond this machine in the clear"),
    ):
        farm = FarmProcess(tmp_path, tiny_models, *flags, host="0.0.0.0").start(wait=False)
        assert farm.wait(60) == 2
        assert words in farm.log()
    with FarmProcess(tmp_path, tiny_models, *tls.mutual_flags, *curve.flags, host="0.0.0.0") as farm:
        assert farm.grpc.startswith("grpcs://0.0.0.0:")
        by_curve = f"{farm.zmq}&client_key={curve.students['me']}".replace("0.0.0.0", "127.0.0.1")
        assert [teacher.name for teacher in list_teachers(by_curve)] == ["tiny"]
