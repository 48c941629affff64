"""The wire format: values to header and payload and back, with its limits. Does no input or output.

A message is a small protobuf header and one payload (pixels, label records, a card). ZeroMQ carries the two as two
frames, gRPC as one byte string framed like the protobuf ``Message`` with the payload as its last field, so that the
payload is joined once and read as a view, never copied into a protobuf object.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from teacherfarm.protos import teacherfarm_pb2 as pb
from teacherfarm.protos.crop import CROP_KEY_BYTES, MOST_PRIORITY, Codec, CropFormat, Rendering
from teacherfarm.protos.faults import (
    BadLabelSpec,
    BadReference,
    MalformedMessage,
    MessageTooLarge,
    TeacherFarmFault,
    WireVersionMismatch,
    WrongNumberType,
    from_code,
)
from teacherfarm.protos.messages import (
    WIRE_VERSION,
    FarmLoad,
    GetTeacher,
    GoAway,
    Goodbye,
    Hello,
    ListTeachers,
    Ping,
    Pong,
    RefusedCrop,
    SampleView,
    Slice,
    SliceFault,
    SliceLabels,
    StudentReport,
    Teacher,
    TeacherList,
    TeacherSummary,
    Value,
    Welcome,
)
from teacherfarm.protos.references import Mixing, Place
from teacherfarm.protos.soft_label import FeatureType, LabelSpec

PAYLOAD_BYTES = 2400 << 10
"""Most bytes of a payload, unless a single crop or label is larger."""
HEADER_BYTES = 64 << 10
"""Most bytes of a header: 16 bytes of key for each of 1024 crops, and room."""
SLICE_CROPS = 1024
MESSAGE_OVERHEAD_BYTES = 16
"""Tags and lengths around header and payload in a gRPC message."""
FAULT_TEXT_CHARACTERS = 4000
LONGEST_RETRY_AFTER_S = 600.0
REFUSALS_IN_WORDS = 16
REFUSAL_CHARACTERS = 1000
MOST_PER_S = 1e9
"""Crops per second beyond which a peer's word is not believed."""

PLACES: tuple[Place, ...] = ("pixels", "view", "box")
MIXINGS: tuple[Mixing, ...] = ("none", "mixup", "cutmix")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "area")

Buffer = bytes | bytearray | memoryview


def encode_header(value: Value) -> bytes:
    """The header of a message."""
    # The two that travel with every slice are filled field by field, which takes a third of the constructors' time.
    match value:
        case Slice():
            header = pb.Header()
            slice_ = header.slice
            slice_.batch_id = value.batch_id
            slice_.first_row = value.first_row
            slice_.num_crops = value.num_crops
            slice_.taken_crops = value.taken_crops
            slice_.priority = value.priority
            if value.keys:
                slice_.keys = value.keys
            if value.crop_bytes:
                slice_.crop_bytes.extend(value.crop_bytes)
            if value.place != "pixels":
                slice_.place = PLACES.index(value.place)  # type: ignore[assignment]
                slice_.mixing = MIXINGS.index(value.mixing)  # type: ignore[assignment]
            return header.SerializeToString()
        case SliceLabels():
            header = pb.Header()
            labels = header.slice_labels
            labels.batch_id = value.batch_id
            labels.first_row = value.first_row
            labels.num_crops = value.num_crops
            labels.window_crops = value.window_crops
            labels.keys_wanted = value.keys_wanted
            for number, refused in enumerate(value.refused):
                # Every fault has its code; beyond the first few their words would not fit.
                words = _text(refused.fault.message, REFUSAL_CHARACTERS) if number < REFUSALS_IN_WORDS else ""
                labels.refused.add(row=refused.row, code=refused.fault.code, message=words)
            return header.SerializeToString()
        case SliceFault():
            return pb.Header(
                fault=pb.Fault(
                    code=value.fault.code,
                    message=_text(value.fault.message),
                    retry_after_s=value.fault.retry_after_s,
                    batch_id=value.batch_id,
                    first_row=value.first_row,
                    num_crops=value.num_crops,
                    window_crops=value.window_crops,
                )
            ).SerializeToString()
        case _:
            return _encode_rare(value).SerializeToString()


def _encode_rare(value: Value) -> pb.Header:
    match value:
        case Hello():
            crop_format = value.crop_format
            return pb.Header(
                hello=pb.Hello(
                    wire_version=value.wire_version,
                    api_key=value.api_key,
                    teacher=value.teacher,
                    expected_teacher_digest=value.expected_teacher_digest,
                    expected_artifact_digest=value.expected_artifact_digest,
                    spec=pb.LabelSpec(
                        outputs=value.spec.outputs,
                        top_k=value.spec.top_k,
                        temperature=value.spec.temperature,
                        feature_type=value.spec.feature_type,
                    ),
                    crop_format=None
                    if crop_format is None
                    else pb.CropFormat(
                        height=crop_format.height,
                        width=crop_format.width,
                        channels=crop_format.channels,
                        number_type=crop_format.number_type,
                    ),
                    codec=value.codec,
                    student=value.student,
                    samples=_encode_samples(value.samples),
                )
            )
        case Welcome():
            return pb.Header(
                welcome=pb.Welcome(
                    wire_version=value.wire_version,
                    session_id=value.session_id,
                    window_crops=value.window_crops,
                    slice_crops=value.slice_crops,
                    artifact_digest=value.artifact_digest,
                    keys_wanted=value.keys_wanted,
                    reference_crops=value.reference_crops,
                )
            )
        case GoAway():
            return pb.Header(go_away=pb.GoAway(reason=_text(value.reason)))
        case Ping():
            told = value.report
            report = pb.StudentReport(stall=told.stall, wanted_per_s=told.wanted_per_s) if told is not None else None
            return pb.Header(ping=pb.Ping(taken_crops=value.taken_crops, report=report))
        case Pong():
            said = value.load
            load = (
                pb.FarmLoad(busy=said.busy, backends=said.backends, labels_per_s=said.labels_per_s)
                if said is not None
                else None
            )
            return pb.Header(pong=pb.Pong(window_crops=value.window_crops, load=load))
        case Goodbye():
            return pb.Header(goodbye=pb.Goodbye())
        case ListTeachers():
            return pb.Header(list_teachers=pb.ListTeachers(api_key=value.api_key))
        case TeacherList():
            summaries = [
                pb.TeacherSummary(name=t.name, teacher_digest=t.teacher_digest, state=t.state) for t in value.teachers
            ]
            return pb.Header(teacher_list=pb.TeacherList(teachers=summaries))
        case GetTeacher():
            question = pb.GetTeacher(api_key=value.api_key, name=value.name, head=value.head, head_from=value.head_from)
            return pb.Header(get_teacher=question)
        case Teacher():
            teacher = pb.Teacher(name=value.name, artifact_digest=value.artifact_digest, head_bytes=value.head_bytes)
            return pb.Header(teacher=teacher)
        case _:
            raise TypeError(f"not a wire value: {value!r}")


def decode_header(header: Buffer) -> Value:
    """The value of a header. Raises faults only (BadMessage and below, BadLabelSpec, WrongNumberType)."""
    if len(header) > HEADER_BYTES:
        raise MessageTooLarge(f"a header of {len(header)} bytes; at most {HEADER_BYTES} are allowed")
    try:
        parsed = pb.Header.FromString(header if isinstance(header, bytes) else bytes(header))
    except DecodeError as error:
        raise MalformedMessage(f"{len(header)} bytes that are not a teacherfarm header ({error})") from error
    match parsed.WhichOneof("kind"):
        case "slice":
            return _decode_slice(parsed.slice)
        case "slice_labels":
            answer = parsed.slice_labels
            return SliceLabels(
                batch_id=answer.batch_id,
                first_row=answer.first_row,
                num_crops=answer.num_crops,
                window_crops=answer.window_crops,
                keys_wanted=answer.keys_wanted,
                refused=tuple(_decode_refusal(refused, answer.num_crops) for refused in answer.refused),
            )
        case "fault":
            fault = parsed.fault
            return SliceFault(
                fault=from_code(fault.code, fault.message, _delay_s(fault.retry_after_s)),
                batch_id=fault.batch_id,
                first_row=fault.first_row,
                num_crops=fault.num_crops,
                window_crops=fault.window_crops,
            )
        case kind:
            return _decode_rare(kind, parsed)


def _text(message: str, most_characters: int = FAULT_TEXT_CHARACTERS) -> str:
    """What protobuf takes as text: a file name that is not UTF-8 must not stop a fault on its way."""
    return message[:most_characters].encode("utf-8", "replace").decode()


def _encode_samples(samples: SampleView | None) -> pb.SampleView | None:
    if samples is None:
        return None
    rendering = samples.rendering
    return pb.SampleView(
        dataset=samples.dataset,
        plan=samples.plan,
        height=rendering.height,
        width=rendering.width,
        interpolation=rendering.interpolation,
        antialias=rendering.antialias,
    )


def _decode_samples(samples: pb.SampleView) -> SampleView:
    try:
        rendering = Rendering(
            height=samples.height,
            width=samples.width,
            interpolation=_one_of(samples.interpolation, INTERPOLATIONS, BadReference),
            antialias=samples.antialias,
        )
    except ValueError as error:
        raise BadReference(f"crops by reference: {error}") from error
    return SampleView(dataset=samples.dataset, plan=samples.plan, rendering=rendering)


def _decode_refusal(refused: pb.RefusedCrop, num_crops: int) -> RefusedCrop:
    if refused.row >= num_crops:
        raise MalformedMessage(f"crop {refused.row} of {num_crops} was refused")
    return RefusedCrop(row=refused.row, fault=from_code(refused.code, refused.message))


def _delay_s(retry_after_s: float) -> float:
    """A delay that a clock can be set to, whatever the peer sent."""
    return min(retry_after_s, LONGEST_RETRY_AFTER_S) if retry_after_s > 0 else 0.0


def _within(value: float, most: float) -> float:
    """A figure that can be summed and shown, whatever the peer sent: NaN counts as 0."""
    return min(value, most) if value > 0 else 0.0


def _decode_slice(slice_: pb.Slice) -> Slice:
    num_crops = slice_.num_crops
    if not 1 <= num_crops <= SLICE_CROPS:
        raise MalformedMessage(f"a slice holds 1 to {SLICE_CROPS} crops, this one says {num_crops}")
    if slice_.keys and len(slice_.keys) != num_crops * CROP_KEY_BYTES:
        raise MalformedMessage(f"{num_crops} crops with {len(slice_.keys)} bytes of keys, not {CROP_KEY_BYTES} each")
    if abs(slice_.priority) > MOST_PRIORITY:
        raise MalformedMessage(f"priority {slice_.priority} lies outside -{MOST_PRIORITY}..{MOST_PRIORITY}")
    if slice_.place not in range(len(PLACES)) or slice_.mixing not in range(len(MIXINGS)):
        raise MalformedMessage(f"a slice of place {slice_.place} and mixing {slice_.mixing}, unknown here")
    crop_bytes = tuple(slice_.crop_bytes)
    if crop_bytes and len(crop_bytes) != num_crops:
        raise MalformedMessage(f"{num_crops} crops with {len(crop_bytes)} lengths")
    return Slice(
        batch_id=slice_.batch_id,
        first_row=slice_.first_row,
        num_crops=num_crops,
        taken_crops=slice_.taken_crops,
        keys=slice_.keys,
        crop_bytes=crop_bytes,
        priority=slice_.priority,
        place=PLACES[slice_.place],
        mixing=MIXINGS[slice_.mixing],
    )


def _decode_rare(kind: str | None, parsed: pb.Header) -> Value:
    match kind:
        case "hello":
            return _decode_hello(parsed.hello)
        case "welcome":
            welcome = parsed.welcome
            _check_version(welcome.wire_version)
            return Welcome(
                wire_version=welcome.wire_version,
                session_id=welcome.session_id,
                window_crops=welcome.window_crops,
                slice_crops=welcome.slice_crops,
                artifact_digest=welcome.artifact_digest,
                keys_wanted=welcome.keys_wanted,
                reference_crops=welcome.reference_crops,
            )
        case "go_away":
            return GoAway(reason=parsed.go_away.reason)
        case "ping":
            return _decode_ping(parsed.ping)
        case "pong":
            return _decode_pong(parsed.pong)
        case "goodbye":
            return Goodbye()
        case "list_teachers":
            return ListTeachers(api_key=parsed.list_teachers.api_key)
        case "teacher_list":
            return TeacherList(
                teachers=tuple(
                    TeacherSummary(name=t.name, teacher_digest=t.teacher_digest, state=t.state)
                    for t in parsed.teacher_list.teachers
                )
            )
        case "get_teacher":
            asked = parsed.get_teacher
            return GetTeacher(api_key=asked.api_key, name=asked.name, head=asked.head, head_from=asked.head_from)
        case "teacher":
            teacher = parsed.teacher
            return Teacher(name=teacher.name, artifact_digest=teacher.artifact_digest, head_bytes=teacher.head_bytes)
        case _:
            raise MalformedMessage("a header that holds no message this version knows")


def _decode_ping(ping: pb.Ping) -> Ping:
    report = None
    if ping.HasField("report"):
        told = ping.report
        report = StudentReport(stall=_within(told.stall, 1.0), wanted_per_s=_within(told.wanted_per_s, MOST_PER_S))
    return Ping(taken_crops=ping.taken_crops, report=report)


def _decode_pong(pong: pb.Pong) -> Pong:
    load = None
    if pong.HasField("load"):
        said = pong.load
        labels_per_s = _within(said.labels_per_s, MOST_PER_S)
        load = FarmLoad(busy=_within(said.busy, 1.0), backends=said.backends, labels_per_s=labels_per_s)
    return Pong(window_crops=pong.window_crops, load=load)


def _check_version(version: int) -> None:
    if version != WIRE_VERSION:
        raise WireVersionMismatch(
            f"the peer speaks wire version {version}, this side {WIRE_VERSION}: install the same release on both"
        )


def _decode_hello(hello: pb.Hello) -> Hello:
    # Before anything else: a peer of another version may mean something else by every other field.
    _check_version(hello.wire_version)
    crop_format = None
    if hello.HasField("crop_format"):
        crop_format = CropFormat(
            height=hello.crop_format.height,
            width=hello.crop_format.width,
            channels=hello.crop_format.channels,
            number_type=_one_of(hello.crop_format.number_type, ("uint8", "uint16", "float32"), WrongNumberType),
            codec=_codec(hello.codec),
        )
    if (hello.codec == "reference") != hello.HasField("samples"):
        raise MalformedMessage("crops go by reference where Hello says both: codec 'reference', and the data set")
    spec = hello.spec
    return Hello(
        wire_version=hello.wire_version,
        api_key=hello.api_key,
        teacher=hello.teacher,
        expected_teacher_digest=hello.expected_teacher_digest,
        expected_artifact_digest=hello.expected_artifact_digest,
        spec=LabelSpec(
            outputs=tuple(spec.outputs),
            top_k=spec.top_k,
            temperature=spec.temperature,
            feature_type=_feature_type(spec.feature_type),
        ),
        crop_format=crop_format,
        codec=_codec(hello.codec),
        student=hello.student[:200],
        samples=_decode_samples(hello.samples) if hello.HasField("samples") else None,
    )


def _one_of(value: str, known: tuple[Any, ...], fault: type[TeacherFarmFault]) -> Any:
    if value not in known:
        raise fault(f"{value!r} is not known here; known are {', '.join(known)}")
    return value


def _codec(value: str) -> Codec:
    codec: Codec = _one_of(value, ("raw", "jpeg", "reference"), MalformedMessage)
    return codec


def _feature_type(value: str) -> FeatureType:
    feature_type: FeatureType = _one_of(value, ("float16", "int8"), BadLabelSpec)
    return feature_type


def join(header: bytes, payload: Buffer | None = None) -> bytes:
    """Header and payload as one gRPC message: copies the payload once."""
    if not payload:
        return b"".join((b"\x0a", varint(len(header)), header))
    return b"".join((b"\x0a", varint(len(header)), header, b"\x12", varint(len(payload)), payload))


def split(message: bytes) -> tuple[memoryview, memoryview]:
    """Header and payload of a gRPC message as views. Raises MalformedMessage."""
    view = memoryview(message)
    header = payload = view[:0]
    position = 0
    for due in (0x0A, 0x12):
        if position == len(view):
            break
        tag = view[position]
        if tag != due:
            raise MalformedMessage(f"a gRPC message with an unknown field (tag {tag}) at byte {position}")
        length, start = _read_varint(view, position + 1)
        end = start + length
        if end > len(view):
            raise MalformedMessage(f"a gRPC message cut short: {end - len(view)} of its bytes are missing")
        if tag == 0x0A:
            header = view[start:end]
        else:
            payload = view[start:end]
        position = end
    if position < len(view):
        raise MalformedMessage(f"a gRPC message with {len(view) - position} bytes too many")
    return header, payload


def varint(number: int) -> bytes:
    """A number as protobuf writes it: for fields put beside a message by hand."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if position >= len(view) or shift > 28:
            raise MalformedMessage("a gRPC message with a broken length")
        byte = view[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7


def slice_crops(crop_bytes: int, record_bytes: int, teacher_batch: int, payload_bytes: int = PAYLOAD_BYTES) -> int:
    """Most crops in one slice: neither its pixels nor its labels exceed a payload, and it fits one teacher batch."""
    return max(1, min(payload_bytes // max(crop_bytes, record_bytes, 1), teacher_batch, SLICE_CROPS))
