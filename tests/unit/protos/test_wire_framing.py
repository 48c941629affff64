"""The hand-framed gRPC message, and both ends of the wire joined in memory."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from teacherfarm.protos import teacherfarm_pb2 as pb
from teacherfarm.protos import wire
from teacherfarm.protos.faults import MalformedMessage
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.protos.wire import (
    decode_header,
    encode_header,
    join,
    slice_crops,
    split,
)

payloads = st.binary(max_size=300) | st.sampled_from([127, 128, 16383, 16384, 1 << 20, 1 << 21]).map(bytes)


@given(st.integers(0, 2**64 - 1), payloads)
def test_what_is_joined_splits_and_parses_as_the_protobuf_message(taken, payload):
    header = encode_header(wire.Ping(taken_crops=taken))
    message = join(header, payload)
    got_header, got_payload = split(message)
    assert (bytes(got_header), bytes(got_payload)) == (header, payload)
    parsed = pb.Message.FromString(message)
    assert (parsed.header.ping.taken_crops, parsed.payload) == (taken, payload)


@given(st.integers(0, 2**64 - 1), payloads)
def test_split_reads_what_protobuf_serialises(taken, payload):
    message = pb.Message(header=pb.Header(ping=pb.Ping(taken_crops=taken)), payload=payload).SerializeToString()
    header, got = split(message)
    assert decode_header(header) == wire.Ping(taken_crops=taken)
    assert bytes(got) == payload


def test_payloads_of_every_buffer_kind_join():
    pixels = np.arange(24, dtype=np.uint8)
    for payload in (pixels.tobytes(), bytearray(pixels), memoryview(pixels)):
        assert bytes(split(join(b"h", payload))[1]) == pixels.tobytes()
    for nothing in (None, b"", memoryview(b"")):
        assert join(b"h", nothing) == b"\x0a\x01h"


def test_the_payload_is_a_view_not_a_copy():
    message = join(b"h", bytes(1 << 20))
    payload = split(message)[1]
    assert payload.obj is message


@given(st.binary(max_size=60))
@example(b"\x0a")
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")  # a length beyond any message
@example(b"\x0a\x80\x80\x80\x80\x10")
@example(b"\x12\x05abc")
@example(b"\x1a\x00")
def test_no_bytes_split_into_anything_but_a_fault_or_views(message):
    try:
        header, payload = split(message)
    except MalformedMessage:
        return
    assert len(header) + len(payload) <= len(message)


@given(st.binary(min_size=1, max_size=40), st.binary(min_size=1, max_size=300), st.data())
def test_a_message_cut_short_is_refused(header, payload, data):
    message = join(header, payload)
    border = len(join(header))
    cut = data.draw(st.integers(1, len(message) - 1).filter(lambda cut: cut != border))
    with pytest.raises(MalformedMessage):
        split(message[:cut])


def test_a_length_longer_than_any_message_needs_is_refused():
    with pytest.raises(MalformedMessage, match="broken length"):
        split(b"\x0a\x81\x80\x80\x80\x80\x00h")


def test_an_unknown_field_is_named():
    with pytest.raises(MalformedMessage, match=r"unknown field \(tag 26\) at byte 3"):
        split(join(b"h") + b"\x1a\x01x")


@pytest.mark.parametrize(
    ("crop_bytes", "record_bytes", "teacher_batch", "payload_bytes", "expected"),
    [
        (150_528, 2000, 64, 1 << 20, 6),
        (150_528, 2000, 4, 1 << 20, 4),
        (3072, 20, 5000, 1 << 20, 341),
        (100, 20, 5000, 1 << 20, 1024),
        (3072, 200_000, 64, 1 << 20, 5),
        (2 << 20, 2000, 64, 1 << 20, 1),
        (3072, 20, 64, 1024, 1),
    ],
)
def test_slices_fit_payload_teacher_batch_and_header(crop_bytes, record_bytes, teacher_batch, payload_bytes, expected):
    assert slice_crops(crop_bytes, record_bytes, teacher_batch, payload_bytes) == expected


def test_a_batch_of_32_crops_of_224_px_is_two_messages():
    assert slice_crops(224 * 224 * 3, 2000, 64) == 16


class End:
    """One end of a wire in memory: what it says lies joined in ``said`` until the other end hears it."""

    def __init__(self) -> None:
        self.said: list[bytes] = []

    def say(self, value: wire.Value, payload: bytes = b"") -> None:
        self.said.append(join(encode_header(value), payload))

    def hear(self, other: "End") -> list[tuple[wire.Value, bytes]]:
        heard, other.said = [split(message) for message in other.said], []
        return [(decode_header(header), bytes(payload)) for header, payload in heard]


def test_a_session_between_two_ends_in_memory():
    student, server = End(), End()
    pixels = np.arange(2 * 48, dtype=np.uint8)
    student.say(wire.Hello(teacher="t", spec=LabelSpec(top_k=3, temperature=4.0)))
    [(hello, _)] = server.hear(student)
    assert (hello.teacher, hello.spec) == ("t", LabelSpec(top_k=3, temperature=4.0))
    server.say(
        wire.Welcome(session_id="s", window_crops=8, slice_crops=2, artifact_digest="a"),
        b"card",
    )
    student.say(wire.Slice(batch_id=7, first_row=4, num_crops=2, taken_crops=4, keys=bytes(32)), pixels.tobytes())
    [(welcome, card)] = student.hear(server)
    assert (welcome.window_crops, card) == (8, b"card")
    [(slice_, payload)] = server.hear(student)
    assert np.array_equal(np.frombuffer(payload, np.uint8), pixels)
    server.say(
        wire.SliceLabels(
            batch_id=slice_.batch_id, first_row=slice_.first_row, num_crops=slice_.num_crops, window_crops=6
        ),
        b"records",
    )
    server.say(wire.SliceFault(fault=MalformedMessage("m")))
    (labels, records), (fault, nothing) = student.hear(server)
    assert (labels.batch_id, labels.first_row, labels.window_crops, records) == (7, 4, 6, b"records")
    assert type(fault.fault) is MalformedMessage
    assert nothing == b""


def test_nothing_but_one_header_and_one_payload_is_a_message():
    message = wire.join(b"header", b"payload")
    for wrong in (message + b"\x12\x00", message * 2, b"\x12\x01p" + b"\x0a\x01h", b"\x0a\x00" * 3):
        with pytest.raises(MalformedMessage):
            wire.split(wrong)
