"""Hundreds of broken messages on either wire, and bytes that are none, beside students that notice nothing."""

from __future__ import annotations

import random
import socket
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from teacherfarm.protos import teacherfarm_pb2 as pb
from teacherfarm.protos.faults import ServerFault
from teacherfarm.protos.wire import Goodbye, ListTeachers, SliceFault, TeacherList, encode_header
from tests.raw_student import Silence, hello, raw_student, slice_header

pytestmark = pytest.mark.usefixtures("nobody_else_is_harmed")

CROP = bytes(range(256)) * 12
FUZZ = settings(
    max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], print_blob=True
)

texts = st.one_of(
    st.sampled_from(["", "tiny", "labels", "raw", "jpeg", "reference", "uint8", "bilinear"]), st.text(max_size=20)
)
numbers = st.one_of(st.integers(0, 70), st.integers(0, 2**32 - 1))
specs = st.builds(
    pb.LabelSpec,
    outputs=st.lists(texts, max_size=3),
    top_k=numbers,
    temperature=st.floats(),
    feature_type=st.one_of(st.just("float16"), texts),
)
formats = st.builds(pb.CropFormat, height=numbers, width=numbers, channels=numbers, number_type=texts)
hellos = st.builds(
    pb.Hello,
    wire_version=st.one_of(st.just(1), numbers),
    teacher=texts,
    expected_teacher_digest=texts,
    expected_artifact_digest=texts,
    spec=specs,
    crop_format=st.one_of(st.none(), formats),
    student=texts,
    codec=texts,
    samples=st.one_of(
        st.none(),
        st.builds(pb.SampleView, dataset=texts, plan=texts, height=numbers, width=numbers, interpolation=texts),
    ),
)
slices = st.builds(
    pb.Slice,
    batch_id=st.integers(0, 2**64 - 1),
    first_row=numbers,
    num_crops=numbers,
    taken_crops=st.integers(0, 2**64 - 1),
    keys=st.binary(max_size=64),
    crop_bytes=st.lists(numbers, max_size=4),
    priority=st.integers(-(2**31), 2**31 - 1),
    place=st.integers(0, 4),
    mixing=st.integers(0, 4),
)
headers = st.one_of(
    st.builds(lambda value: pb.Header(hello=value), hellos),
    st.builds(lambda value: pb.Header(slice=value), slices),
    st.builds(lambda value: pb.Header(ping=pb.Ping(taken_crops=value)), st.integers(0, 2**64 - 1)),
    st.builds(lambda value: pb.Header(get_teacher=pb.GetTeacher(name=value)), texts),
    st.builds(
        lambda name, first: pb.Header(get_teacher=pb.GetTeacher(name=name, head=True, head_from=first)),
        st.one_of(st.just(""), texts),
        st.integers(0, 2**64 - 1),
    ),
    st.just(pb.Header(goodbye=pb.Goodbye())),
    st.just(pb.Header(welcome=pb.Welcome(wire_version=1))),
).map(pb.Header.SerializeToString)


@st.composite
def mutated(draw):
    """A header of which some bytes were cut out, changed or put in."""
    message = bytearray(draw(headers))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(message)))
        match draw(st.sampled_from(["cut", "change", "insert"])):
            case "cut":
                del message[place : place + draw(st.integers(1, 8))]
            case "change" if place < len(message):
                message[place] = draw(st.integers(0, 255))
            case _:
                message[place:place] = draw(st.binary(max_size=8))
    return bytes(message)


payloads = st.one_of(st.just(b""), st.just(CROP), st.binary(max_size=100))
messages = st.tuples(st.one_of(headers, mutated(), st.binary(max_size=60)), payloads)


@pytest.fixture
def many_faults(tiny_farm):
    """Around a test that is to cause dozens of them."""
    before = tiny_farm.metric("teacherfarm_faults_total")
    yield
    assert tiny_farm.metric("teacherfarm_faults_total") > before + 50


def take_all(student):
    """Everything that the student was answered, up to the answer to a last question or the end of its session."""
    student.send(encode_header(ListTeachers()))
    answers = []
    try:
        while not answers or not isinstance(answers[-1], TeacherList):
            answers.append(student.receive()[0])
    except Silence:
        pass
    return answers


def check(student):
    for answer in take_all(student):
        assert not (isinstance(answer, SliceFault) and isinstance(answer.fault, ServerFault)), answer.fault


@FUZZ
@given(greet=st.booleans(), broken=st.lists(messages, min_size=1, max_size=12))
def test_broken_messages_are_answered_with_declared_faults(wire, tiny_farm, many_faults, greet, broken):
    with raw_student(getattr(tiny_farm, wire)) as student:
        if greet:
            student.send(hello())
        for header, payload in broken:
            student.send(header, payload)
        check(student)


@FUZZ
@given(frames=st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=5), min_size=1, max_size=8))
def test_zmq_messages_of_any_number_of_frames(tiny_farm, many_faults, frames):
    with raw_student(tiny_farm.zmq) as student:
        for message in frames:
            student.send_frames(message)
        check(student)


@FUZZ
@given(broken=st.lists(st.binary(max_size=60), min_size=1, max_size=8))
def test_grpc_messages_of_any_bytes(tiny_farm, many_faults, broken):
    with raw_student(tiny_farm.grpc) as student:
        for message in broken:
            student.send_bytes(message)
        check(student)


def frame(kind, stream, body):
    """An HTTP/2 frame."""
    return struct.pack(">I", len(body))[1:] + bytes([kind, 0]) + struct.pack(">I", stream) + body


ZMTP_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
ZMTP_READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
OPENINGS = {
    "nothing": b"",
    "http": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "half a zmq greeting": ZMTP_GREETING[:40],
    "a zmq peer": ZMTP_GREETING + ZMTP_READY,
    "a huge zmq frame": ZMTP_GREETING + ZMTP_READY + b"\x02" + struct.pack(">Q", 1 << 62),
    "http/2": HTTP2 + frame(4, 0, b""),
    "a huge http/2 frame": HTTP2 + frame(4, 0, b"") + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
}


@pytest.mark.parametrize("opening", OPENINGS)
def test_bytes_that_are_no_messages(opening, tiny_farm):
    generator = random.Random(opening)
    for address in (tiny_farm.zmq, tiny_farm.grpc, tiny_farm.http):
        host, _, port = address.partition("://")[2].partition(":")
        for size in (0, 1, 100, 70_000):
            with socket.create_connection((host, int(port)), timeout=10) as peer:
                try:
                    peer.sendall(OPENINGS[opening] + generator.randbytes(size))
                except (BrokenPipeError, ConnectionResetError):
                    pass  # it hung up already


def test_connections_that_say_nothing(tiny_farm, bystanders):
    peers = []
    try:
        for address in (tiny_farm.zmq, tiny_farm.grpc, tiny_farm.http) * 20:
            host, _, port = address.partition("://")[2].partition(":")
            peers.append(socket.create_connection((host, int(port)), timeout=10))
        for student in bystanders:
            student.check()
    finally:
        for peer in peers:
            peer.close()


def test_a_student_that_leaves_in_the_middle_frees_its_session(wire, tiny_farm, bystanders):
    for _ in range(3):
        with raw_student(getattr(tiny_farm, wire)) as student:
            student.send(hello())
            student.receive()
            for batch_id in range(8):
                student.send(slice_header(batch_id, 1), CROP)
            student.send(encode_header(Goodbye()))
