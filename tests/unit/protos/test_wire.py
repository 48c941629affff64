"""Headers: every value comes back, and no bytes at all raise anything but a fault."""

import dataclasses
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from teacherfarm.protos import faults, wire
from teacherfarm.protos import teacherfarm_pb2 as pb
from teacherfarm.protos.crop import CropFormat, Rendering
from teacherfarm.protos.faults import (
    BadCrops,
    BadLabelSpec,
    BadMessage,
    BadReference,
    MalformedMessage,
    MessageTooLarge,
    Overloaded,
    TeacherFailed,
    TeacherFarmFault,
    WireVersionMismatch,
    WrongCropSize,
    from_code,
)
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.protos.wire import decode_header, encode_header

REFUSALS = (BadMessage, BadLabelSpec, BadCrops, BadReference)

text = st.text(max_size=40)
uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
specs = st.one_of(
    st.builds(
        LabelSpec,
        outputs=st.lists(text, max_size=3, unique=True).map(tuple),
        feature_type=st.sampled_from(["float16", "int8"]),
    ),
    st.builds(LabelSpec, top_k=st.integers(1, 2**32 - 1), temperature=st.floats(0.001, 1000)),
)
formats = st.builds(
    CropFormat,
    height=st.integers(1, 2**32 - 1),
    width=st.integers(1, 2**32 - 1),
    channels=st.integers(1, 2**32 - 1),
    number_type=st.sampled_from(["uint8", "uint16", "float32"]),
)


PLACES = [
    {},
    *({"place": place, "mixing": mixing} for place in ("view", "box") for mixing in ("none", "mixup", "cutmix")),
]
samples = st.builds(
    wire.SampleView,
    dataset=text,
    plan=text,
    rendering=st.builds(
        Rendering,
        height=st.integers(1, 2**32 - 1),
        width=st.integers(1, 2**32 - 1),
        interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "area"]),
        antialias=st.booleans(),
    ),
)


@st.composite
def slices(draw: st.DrawFn) -> wire.Slice:
    num_crops = draw(st.integers(1, wire.SLICE_CROPS))
    lengths = draw(st.sampled_from([(), (7,) * num_crops, (2**32 - 1,) * num_crops]))
    return wire.Slice(
        batch_id=draw(uint64),
        first_row=draw(uint32),
        num_crops=num_crops,
        taken_crops=draw(uint64),
        keys=draw(st.sampled_from([b"", bytes(range(16)) * num_crops])),
        crop_bytes=lengths,
        priority=draw(st.integers(-8, 8)),
        **draw(st.sampled_from(PLACES)),
    )


VALUES: dict[type, st.SearchStrategy] = {
    wire.Hello: st.builds(
        wire.Hello,
        teacher=text,
        spec=specs,
        crop_format=st.none() | formats,
        codec=st.just("raw"),
        api_key=text,
        expected_teacher_digest=text,
        expected_artifact_digest=text,
        student=text,
    )
    | st.builds(wire.Hello, teacher=text, spec=specs, codec=st.just("reference"), samples=samples),
    wire.Welcome: st.builds(
        wire.Welcome,
        session_id=text,
        window_crops=uint32,
        slice_crops=uint32,
        artifact_digest=text,
        reference_crops=uint32,
    ),
    wire.Slice: slices(),
    wire.SliceLabels: st.builds(
        wire.SliceLabels, batch_id=uint64, first_row=uint32, num_crops=uint32, window_crops=uint32
    ),
    wire.GoAway: st.builds(wire.GoAway, reason=text),
    wire.Ping: st.builds(
        wire.Ping,
        taken_crops=uint64,
        report=st.none() | st.builds(wire.StudentReport, stall=st.floats(0, 1), wanted_per_s=st.floats(0, 1e9)),
    ),
    wire.Pong: st.builds(
        wire.Pong,
        window_crops=uint32,
        load=st.none()
        | st.builds(wire.FarmLoad, busy=st.floats(0, 1), backends=uint32, labels_per_s=st.floats(0, 1e9)),
    ),
    wire.Goodbye: st.just(wire.Goodbye()),
    wire.ListTeachers: st.builds(wire.ListTeachers, api_key=text),
    wire.TeacherList: st.builds(
        wire.TeacherList,
        teachers=st.lists(st.builds(wire.TeacherSummary, name=text, teacher_digest=text, state=text), max_size=3).map(
            tuple
        ),
    ),
    wire.GetTeacher: st.builds(wire.GetTeacher, name=text, api_key=text, head=st.booleans(), head_from=uint64),
    wire.Teacher: st.builds(wire.Teacher, name=text, artifact_digest=text, head_bytes=uint64),
}


def test_every_message_is_tried():
    assert {*VALUES, wire.SliceFault} == set(wire.Value.__args__)
    assert len(pb.Header.DESCRIPTOR.oneofs_by_name["kind"].fields) == len(VALUES) + 1


@given(st.one_of(*VALUES.values()))
def test_every_value_comes_back(value):
    again = decode_header(encode_header(value))
    assert type(again) is type(value)
    assert again == value


@pytest.mark.parametrize("told", [math.nan, -1.0, -math.inf, 5.0, math.inf])
def test_figures_of_a_peer_can_always_be_summed_and_shown(told):
    ping = decode_header(pb.Header(ping=pb.Ping(report=pb.StudentReport(stall=told))).SerializeToString())
    pong = decode_header(pb.Header(pong=pb.Pong(load=pb.FarmLoad(busy=told, labels_per_s=told))).SerializeToString())
    assert ping.report.stall == pong.load.busy == (1.0 if told > 0 else 0.0)
    assert 0 <= pong.load.labels_per_s <= 1e9


def test_refused_crops_come_back_as_their_faults_and_fit_a_header():
    refused = tuple(
        wire.RefusedCrop(row=row, fault=faults.SampleChanged(f"sample {row}: {'x' * 5000}"))
        for row in range(wire.SLICE_CROPS)
    )
    labels = wire.SliceLabels(batch_id=1, first_row=0, num_crops=wire.SLICE_CROPS, window_crops=9, refused=refused)
    header = encode_header(labels)
    assert len(header) <= wire.HEADER_BYTES
    again = decode_header(header)
    assert [crop.row for crop in again.refused] == list(range(wire.SLICE_CROPS))
    assert {type(crop.fault) for crop in again.refused} == {faults.SampleChanged}
    assert again.refused[3].fault.message.startswith("sample 3: xxx")
    beyond = pb.Header(slice_labels=pb.SliceLabels(num_crops=2, refused=[pb.RefusedCrop(row=2, code=1)]))
    with pytest.raises(MalformedMessage, match="crop 2 of 2"):
        decode_header(beyond.SerializeToString())


@pytest.mark.parametrize("hello", [pb.Hello(codec="reference"), pb.Hello(codec="raw", samples=pb.SampleView(height=1))])
def test_a_hello_by_reference_says_both(hello):
    hello.wire_version = wire.WIRE_VERSION
    with pytest.raises(MalformedMessage, match="says both"):
        decode_header(pb.Header(hello=hello).SerializeToString())


def test_the_largest_slice_fits_a_header():
    value = wire.Slice(
        batch_id=2**64 - 1,
        first_row=2**32 - 1,
        num_crops=wire.SLICE_CROPS,
        keys=bytes(16 * wire.SLICE_CROPS),
        crop_bytes=(2**32 - 1,) * wire.SLICE_CROPS,
    )
    assert len(encode_header(value)) <= wire.HEADER_BYTES


@given(uint64, uint32, uint32, uint32, st.floats(0, 600), text)
def test_a_fault_comes_back_as_its_class(batch_id, first_row, num_crops, window_crops, retry_after_s, message):
    for kind in (TeacherFarmFault, WrongCropSize, Overloaded):
        sent = wire.SliceFault(
            fault=kind(message, retry_after_s=retry_after_s),
            batch_id=batch_id,
            first_row=first_row,
            num_crops=num_crops,
            window_crops=window_crops,
        )
        got = decode_header(encode_header(sent))
        assert type(got.fault) is kind
        assert (got.fault.message, got.fault.retry_after_s) == (message, retry_after_s)
        assert dataclasses.replace(got, fault=sent.fault) == sent


def test_a_long_or_unprintable_fault_still_arrives():
    for message in ("x" * 10**6, "猫" * 10**5, "file \udcff\ud800 name"):
        got = decode_header(encode_header(wire.SliceFault(fault=TeacherFailed(message))))
        assert type(got.fault) is TeacherFailed
        assert got.fault.message[:4] == message[:4]
    assert decode_header(encode_header(wire.GoAway(reason="\udcff"))).reason == "?"


@pytest.mark.parametrize("sent", [math.nan, -math.inf, -1.0, math.inf, 1e300])
def test_a_delay_that_no_clock_can_be_set_to_is_bounded(sent):
    header = pb.Header(fault=pb.Fault(code=80, retry_after_s=sent)).SerializeToString()
    assert 0 <= decode_header(header).fault.retry_after_s <= wire.LONGEST_RETRY_AFTER_S


def test_an_unknown_fault_code_is_a_fault_still():
    got = decode_header(pb.Header(fault=pb.Fault(code=7777, message="new")).SerializeToString())
    assert type(got.fault) is type(from_code(7777, "new")) is TeacherFarmFault
    assert "7777" in str(got.fault)


def decodes_or_refuses(header: bytes) -> None:
    try:
        value = decode_header(header)
    except REFUSALS:
        return
    assert isinstance(value, wire.Value)


@settings(max_examples=400)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\x0a\x00")
@example(b"\x1a\x00")
@example(b"\x12\x03\x12\x01\xff")  # text that is not UTF-8
def test_no_bytes_raise_anything_but_a_fault(header):
    decodes_or_refuses(header)
    decodes_or_refuses(memoryview(header))
    decodes_or_refuses(bytearray(header))


@settings(max_examples=300)
@given(st.one_of(*VALUES.values()).map(encode_header), st.data())
def test_a_damaged_header_is_refused_or_read(header, data):
    if not header:
        return
    damaged = bytearray(header)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    decodes_or_refuses(bytes(damaged))
    decodes_or_refuses(header[: data.draw(st.integers(0, len(header)))])
    decodes_or_refuses(header + header)


@settings(max_examples=300)
@given(st.data())
def test_any_well_formed_header_is_refused_or_read(data):
    """What parses as protobuf may still hold any number and any text in any field."""
    kind = data.draw(st.sampled_from([f.name for f in pb.Header.DESCRIPTOR.oneofs_by_name["kind"].fields]))
    header = pb.Header()
    message = getattr(header, kind)
    message.SetInParent()
    fill(message, data)
    decodes_or_refuses(header.SerializeToString())


def fill(message, data):
    kinds = {"double": st.floats(), "string": text, "bytes": st.binary(max_size=40)}
    for field in message.DESCRIPTOR.fields:
        if not data.draw(st.booleans()):
            continue
        values = {
            field.TYPE_BOOL: st.booleans(),
            field.TYPE_DOUBLE: kinds["double"],
            field.TYPE_STRING: kinds["string"]
            | st.sampled_from(["uint8", "raw", "jpeg", "reference", "bilinear", "float16", "int8"]),
            field.TYPE_BYTES: kinds["bytes"],
            field.TYPE_UINT32: st.integers(0, 3) | uint32,
            field.TYPE_UINT64: uint64,
            field.TYPE_ENUM: st.integers(0, 3) | st.integers(-(2**31), 2**31 - 1),
            field.TYPE_SINT32: st.integers(-(2**31), 2**31 - 1),
        }
        if field.type == field.TYPE_MESSAGE:
            inner = getattr(message, field.name)
            fill(inner.add() if field.is_repeated else inner, data)
        elif field.is_repeated:
            getattr(message, field.name).extend(data.draw(st.lists(values[field.type], max_size=3)))
        else:
            setattr(message, field.name, data.draw(values[field.type]))


def test_a_header_beyond_the_limit_is_not_even_parsed(monkeypatch):
    monkeypatch.setattr(pb.Header, "FromString", None, raising=False)
    with pytest.raises(MessageTooLarge, match=rf"{wire.HEADER_BYTES + 1} bytes; at most {wire.HEADER_BYTES}"):
        decode_header(bytes(wire.HEADER_BYTES + 1))


@pytest.mark.parametrize("num_crops", [0, wire.SLICE_CROPS + 1, 2**32 - 1])
def test_a_slice_of_no_or_too_many_crops(num_crops):
    with pytest.raises(MalformedMessage, match=rf"1 to {wire.SLICE_CROPS} crops.*{num_crops}"):
        decode_header(pb.Header(slice=pb.Slice(num_crops=num_crops)).SerializeToString())


@pytest.mark.parametrize(
    ("fields", "words"), [({"keys": bytes(33)}, "33 bytes of keys"), ({"crop_bytes": [1, 2, 3]}, "3 lengths")]
)
def test_a_slice_whose_lists_do_not_match_its_crops(fields, words):
    with pytest.raises(MalformedMessage, match=f"2 crops with {words}"):
        decode_header(pb.Header(slice=pb.Slice(num_crops=2, **fields)).SerializeToString())


def test_another_wire_version_is_seen_before_anything_else():
    nonsense = pb.CropFormat(number_type="int2048", channels=9)
    hello = pb.Hello(
        wire_version=wire.WIRE_VERSION + 1, codec="png", spec=pb.LabelSpec(temperature=-1), crop_format=nonsense
    )
    for header in (
        pb.Header(hello=hello),
        pb.Header(hello=pb.Hello(wire_version=0)),
        pb.Header(welcome=pb.Welcome(wire_version=wire.WIRE_VERSION + 1)),
    ):
        with pytest.raises(WireVersionMismatch, match=rf"this side {wire.WIRE_VERSION}: install"):
            decode_header(header.SerializeToString())


@pytest.mark.parametrize(
    ("hello", "fault", "words"),
    [
        (pb.Hello(spec=pb.LabelSpec(temperature=1, feature_type="float64")), BadLabelSpec, "float16, int8"),
        (pb.Hello(spec=pb.LabelSpec(temperature=-1, feature_type="int8")), BadLabelSpec, "positive"),
        (pb.Hello(crop_format=pb.CropFormat(number_type="int8"), codec="raw"), faults.WrongNumberType, "uint8, uint16"),
        (
            pb.Hello(crop_format=pb.CropFormat(height=1, width=1, channels=1, number_type="uint8"), codec="png"),
            MalformedMessage,
            "raw, jpeg",
        ),
        (pb.Hello(crop_format=pb.CropFormat(height=1, number_type="uint8"), codec="raw"), WrongCropSize, "positive"),
    ],
)
def test_hello_that_asks_for_the_impossible(hello, fault, words):
    hello.wire_version = wire.WIRE_VERSION
    with pytest.raises(fault, match=words):
        decode_header(pb.Header(hello=hello).SerializeToString())


def test_secrets_stay_out_of_logs():
    for value in (
        wire.Hello(teacher="t", spec=LabelSpec(), api_key="secret"),
        wire.ListTeachers(api_key="secret"),
        wire.GetTeacher(name="t", api_key="secret"),
    ):
        assert "secret" not in repr(value)


def test_what_is_no_wire_value_cannot_be_encoded():
    with pytest.raises(TypeError, match="not a wire value"):
        encode_header("hello")  # type: ignore[arg-type]
