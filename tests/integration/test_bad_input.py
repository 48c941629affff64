"""What bad input gets: the same fault class on the student's side over both wires, in words that help, and nobody else
notices: a well-behaved student on each wire labels all the while.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from teacherfarm.protos import faults
from teacherfarm.protos.crop import CropFormat
from teacherfarm.protos.messages import (
    GetTeacher,
    ListTeachers,
    Ping,
    SliceFault,
    SliceLabels,
    TeacherList,
    Welcome,
)
from teacherfarm.protos.wire import HEADER_BYTES, PAYLOAD_BYTES, encode_header
from teacherfarm.student import LabelSpec, TeacherClient, Timeouts
from teacherfarm.student import client as client_module
from tests.raw_student import Silence, hello, raw_student, slice_header

pytestmark = pytest.mark.usefixtures("nobody_else_is_harmed")


@pytest.fixture
def address(tiny_farm, wire):
    return getattr(tiny_farm, wire)


def zeros(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype)


BAD_CROPS = {
    "size": (zeros(2, 16, 16, 3), faults.WrongCropSize, r"takes uint8 \[N, 32, 32, 3\], got \[2, 16, 16, 3\]; cut"),
    "channels": (zeros(2, 32, 32, 1), faults.WrongCropSize, r"\[2, 32, 32, 1\]"),
    "number type": (zeros(2, 32, 32, 3, dtype=np.int32), faults.WrongNumberType, r"takes uint8 .* int32; convert"),
    "floats": (zeros(2, 32, 32, 3, dtype=np.float32), faults.WrongNumberType, r"Normalisation is part .*teacher_view="),
    "a student's tensor": (
        zeros(2, 3, 32, 32, dtype=np.float32),
        faults.WrongNumberType,
        r"in channels-first order.* return two views",
    ),
    "channels first": (zeros(2, 3, 32, 32), faults.WrongLayout, r"channels first: use pixels.transpose\(0, 2, 3, 1\)"),
    "one crop": (zeros(32, 32, 3), faults.WrongLayout, r"3 dimension\(s\) .* numpy.stack"),
    "empty": (zeros(0, 32, 32, 3), faults.WrongBatchSize, r"at least one crop, got an empty array"),
}


@pytest.mark.parametrize("case", BAD_CROPS)
def test_bad_crops_are_refused_and_the_client_goes_on(case, address, tiny_crops, right_records):
    crops, fault, words = BAD_CROPS[case]
    with TeacherClient(address) as teacher:
        before = teacher.submit(tiny_crops[:8])
        with pytest.raises(fault, match=words) as caught:
            teacher.submit(crops)
        assert isinstance(caught.value, ValueError)
        after = teacher.label(tiny_crops[8:16])
        assert before.result().records.tobytes() == right_records[:8].tobytes()
        assert after.records.tobytes() == right_records[8:16].tobytes()
        assert teacher.stats.sessions == 1
        assert teacher.room() == teacher._core.room.window_crops


def test_keys_of_another_number_of_crops(address, tiny_crops):
    with TeacherClient(address) as teacher, pytest.raises(faults.WrongBatchSize, match="2 crops need 32 bytes of keys"):
        teacher.submit(tiny_crops[:2], keys=b"x" * 16)


def refused(address, **arguments):
    with pytest.raises(faults.TeacherFarmFault) as caught:
        TeacherClient(address, **arguments).__enter__()
    return caught.value


def test_unknown_teacher_names_the_known(address):
    fault = refused(address, teacher="tinny")
    assert type(fault) is faults.UnknownTeacher
    assert str(fault) == "no teacher 'tinny' here; served are: tiny"


def test_digest_mismatch(address):
    fault = refused(address, digest="0123456789abcdef")
    assert type(fault) is faults.DigestMismatch
    assert "expected 0123456789abcdef" in str(fault)
    assert "start a new run" in str(fault)


@pytest.mark.parametrize("digest", ["0123", "dönerdöner"])
def test_a_digest_that_can_be_nobodys(address, digest):
    with pytest.raises(ValueError, match=f"first 8 to 64 hexadecimal digits of a teacher's digest, got '{digest}'"):
        TeacherClient(address, digest=digest)
    answer = first_answer(address, (hello(expected_teacher_digest=digest), b""))
    assert type(answer.fault) is faults.DigestMismatch


def test_the_digest_that_is_served_is_accepted(address, tiny_crops):
    with TeacherClient(address) as teacher:
        digest = teacher.card.teacher_digest
    for pinned in (digest, digest[:8]):
        with TeacherClient(address, digest=pinned) as teacher:
            assert len(teacher.label(tiny_crops[:2])) == 2


@pytest.mark.parametrize(
    ("spec", "fault", "words"),
    [
        (
            LabelSpec(outputs=("embeddings",)),
            faults.UnknownOutput,
            "it has labels, embedding. Taps are chosen at export",
        ),
        (LabelSpec(top_k=11), faults.BadLabelSpec, "top_k=11 of a teacher with 10 classes; ask at most that many"),
        (LabelSpec(outputs=("embedding",), top_k=3), faults.BadLabelSpec, "top_k=3 needs the output 'labels'"),
    ],
)
def test_bad_label_spec(address, spec, fault, words):
    caught = refused(address, spec=spec)
    assert type(caught) is fault
    assert words in str(caught)


def test_another_temperature_asked_of_a_top_k_label(address, tiny_crops):
    with TeacherClient(address, spec=LabelSpec(top_k=3, temperature=2.0)) as teacher:
        labels = teacher.label(tiny_crops[:4])
    assert labels.probabilities(2.0).shape == (4, 10)
    with pytest.raises(
        faults.TemperatureMismatch, match=r"temperature 2 and cannot be used at 4: ask LabelSpec\(top_k=3"
    ):
        labels.probabilities(4.0)


def test_another_wire_version(address, monkeypatch):
    monkeypatch.setattr(client_module, "Hello", functools.partial(client_module.Hello, wire_version=2))
    fault = refused(address)
    assert type(fault) is faults.WireVersionMismatch
    assert "speaks wire version 2, this side 1: install" in str(fault)


# A student that does not check what it sends: the server must, and say the same.


def first_answer(address, *messages):
    """The answer to the last message, and everybody's before it taken."""
    with raw_student(address) as student:
        for header, payload in messages:
            student.send(header, payload)
            answer, _ = student.receive()
        return answer


@pytest.mark.parametrize(
    ("crop_format", "fault"),
    [
        (CropFormat(height=16, width=32), faults.WrongCropSize),
        (CropFormat(height=32, width=32, channels=1), faults.WrongCropSize),
        (CropFormat(height=1 << 31, width=1 << 31), faults.WrongCropSize),
        (CropFormat(height=32, width=32, number_type="float32"), faults.WrongNumberType),
        (CropFormat(height=32, width=32, number_type="complex64"), faults.WrongNumberType),
    ],
)
def test_the_server_refuses_other_crops_at_hello(address, crop_format, fault):
    answer = first_answer(address, (hello(crop_format=crop_format), b""))
    assert isinstance(answer, SliceFault)
    assert type(answer.fault) is fault
    assert answer.num_crops == 0


def test_the_server_refuses_a_bad_slice_and_the_session_goes_on(address, tiny_crops):
    crop = tiny_crops[0].tobytes()
    cases = [
        (slice_header(1, 2), crop, faults.WrongCropSize, "2 raw crops uint8 [N, 32, 32, 3] take 6144 bytes, got 3072"),
        (slice_header(2, 1), b"", faults.WrongCropSize, "got 0"),
        (slice_header(3, 65), crop * 65, faults.WrongBatchSize, "a slice of 65 crops; Welcome allowed 64"),
    ]
    with raw_student(address) as student:
        student.send(hello())
        assert isinstance(student.receive()[0], Welcome)
        for header, payload, fault, words in cases:
            student.send(header, payload)
            answer, _ = student.receive()
            assert isinstance(answer, SliceFault)
            assert type(answer.fault) is fault
            assert words in str(answer.fault)
        student.send(slice_header(4, 1), crop)
        answer, payload = student.receive()
        assert isinstance(answer, SliceLabels)
        assert (answer.batch_id, answer.first_row, answer.num_crops) == (4, 0, 1)
        assert len(payload) == 20


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (slice_header(1, 1), faults.SessionLost),
        (encode_header(Ping()), faults.SessionLost),
        (encode_header(TeacherList(teachers=())), faults.UnexpectedMessage),
        (b"\xff\xff\xff", faults.MalformedMessage),
        (b"", faults.MalformedMessage),
        (b"\x00" * (HEADER_BYTES + 1), faults.MessageTooLarge),
        (hello(wire_version=0), faults.WireVersionMismatch),
        (encode_header(GetTeacher(name="nobody")), faults.UnknownTeacher),
    ],
)
def test_a_broken_first_message_ends_the_session_with_a_fault(address, message, fault):
    with raw_student(address) as student:
        student.send(message)
        answer, _ = student.receive()
        assert isinstance(answer, SliceFault)
        assert type(answer.fault) is fault
        if address.startswith("grpc"):
            with pytest.raises(Silence, match="StopIteration"):
                student.receive()


def test_hello_twice(address):
    answer = first_answer(address, (hello(), b""), (hello(), b""))
    assert isinstance(answer.fault, faults.UnexpectedMessage)
    assert "Hello twice" in str(answer.fault)


def test_an_oversized_message_ends_its_session_alone(address, tiny_farm):
    with raw_student(address) as student:
        student.send(hello())
        assert isinstance(student.receive()[0], Welcome)
        before = tiny_farm.rss_bytes()
        student.send(slice_header(1, 1), bytes(8 * PAYLOAD_BYTES))
        if address.startswith("grpc"):
            with pytest.raises(Silence, match="RESOURCE_EXHAUSTED"):
                student.receive()
        else:
            # The connection is cut; what comes after it is another session.
            student.send(encode_header(ListTeachers()))
            student.send(encode_header(Ping()))
            kinds = {type(student.receive()[0]) for _ in range(2)}
            assert kinds <= {TeacherList, SliceFault}
        assert tiny_farm.rss_bytes() < before + 16 * PAYLOAD_BYTES


def test_a_student_of_a_server_that_speaks_something_else(tiny_farm, wire):
    status_page = tiny_farm.http.partition("://")[2]
    fault = refused(f"{wire}://{status_page}", timeouts=Timeouts(connect_s=0.5))
    assert isinstance(fault, faults.SessionLost)
    assert f"no session with {wire}://{status_page} within 0.5 s" in str(fault)
    assert f"is a server running there, with this port for this wire? `teacherfarm doctor {wire}://" in str(fault)
