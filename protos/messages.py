"""The values that travel on the wire, one class a message. wire.py turns them into bytes and back."""

from __future__ import annotations

from dataclasses import dataclass, field

from teacherfarm.protos.crop import Codec, CropFormat, Rendering
from teacherfarm.protos.faults import TeacherFarmFault
from teacherfarm.protos.references import Mixing, Place
from teacherfarm.protos.soft_label import LabelSpec

WIRE_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleView:
    """A data set that the server has, too, by the server's name, and how crops of its samples become pixels.

    ``plan``: a crop plan as JSON; empty where every crop comes with its box.
    """

    dataset: str
    rendering: Rendering
    plan: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello:
    """A student's first message on a session. ``crop_format``: None for the teacher's own, in ``codec``.

    ``samples`` goes with the codec "reference", and only with it.
    """

    teacher: str
    spec: LabelSpec
    crop_format: CropFormat | None = None
    codec: Codec = "raw"
    api_key: str = field(default="", repr=False)
    expected_teacher_digest: str = ""
    expected_artifact_digest: str = ""
    student: str = ""
    samples: SampleView | None = None
    wire_version: int = WIRE_VERSION

    def __post_init__(self) -> None:
        if self.crop_format is not None and self.crop_format.codec != self.codec:
            raise ValueError(f"codec {self.codec!r} beside a crop format in {self.crop_format.codec!r}")
        if (self.codec == "reference") != (self.samples is not None):
            raise ValueError("crops go by reference where both are said: codec 'reference', and the samples' data set")


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcome:
    """The server's answer to Hello; the payload is the teacher card as JSON. ``keys_wanted``: see SliceLabels.

    ``slice_crops``: most crops in one slice of pixels; ``reference_crops``: in one by reference, 0 for none.
    """

    session_id: str
    window_crops: int
    slice_crops: int
    artifact_digest: str
    keys_wanted: bool = False
    reference_crops: int = 0
    wire_version: int = WIRE_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Rows ``first_row`` to ``first_row + num_crops`` of a crop batch; the payload is their pixels, or by ``place``
    and ``mixing`` what :mod:`teacherfarm.protos.references` packs.
    """

    batch_id: int
    first_row: int
    num_crops: int
    taken_crops: int = 0
    keys: bytes = b""
    crop_bytes: tuple[int, ...] = ()
    priority: int = 0
    place: Place = "pixels"
    mixing: Mixing = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedCrop:
    """Why one crop by reference got no label; ``row`` counts within its answer."""

    row: int
    fault: TeacherFarmFault


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceLabels:
    """The answer to one slice, or to several that follow each other in a batch; payload: ``num_crops`` label records.

    ``keys_wanted``: another session could ask the same crops at the same time, so keys are worth their making.
    ``refused``: crops by reference that the server could not cut; their records mean nothing.
    """

    batch_id: int
    first_row: int
    num_crops: int
    window_crops: int
    keys_wanted: bool = False
    refused: tuple[RefusedCrop, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceFault:
    """A fault instead of an answer: of one slice, or of the session where ``num_crops`` is 0."""

    fault: TeacherFarmFault
    batch_id: int = 0
    first_row: int = 0
    num_crops: int = 0
    window_crops: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class GoAway:
    """The server drains: it answers what it has and takes nothing new."""

    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentReport:
    """How a student fared since its last ping: the share of its time that it waited for labels (0 to 1), and the
    crops/s that it would take if it never waited.
    """

    stall: float
    wanted_per_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FarmLoad:
    """How busy a teacher was since a student's last ping: ``busy`` is the used share (0 to 1) of the time of its
    ``backends``, ``labels_per_s`` what all its students together got.
    """

    busy: float
    backends: int
    labels_per_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ping:
    """A sign of life from the student, and how many crops' answers its user has taken. A payload is ignored."""

    taken_crops: int = 0
    report: StudentReport | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Pong:
    """The answer to Ping. ``load``: None from a server that does not say."""

    window_crops: int = 0
    load: FarmLoad | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Goodbye:
    """The student ends the session on purpose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListTeachers:
    """Asks which teachers there are; needs no Hello."""

    api_key: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSummary:
    """One line of a teacher list; ``state`` is loading, ready, waiting (no backend now) or failed."""

    name: str
    teacher_digest: str
    state: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherList:
    """The answer to ListTeachers."""

    teachers: tuple[TeacherSummary, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class GetTeacher:
    """Asks for one teacher's card, or with ``head`` for a piece of its linear classifier's file from byte
    ``head_from`` on; needs no Hello.
    """

    name: str
    api_key: str = field(default="", repr=False)
    head: bool = False
    head_from: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """The answer to GetTeacher; the payload is the card as JSON, or a piece of a classifier of ``head_bytes``."""

    name: str
    artifact_digest: str
    head_bytes: int = 0


Value = (
    Hello
    | Welcome
    | Slice
    | SliceLabels
    | SliceFault
    | GoAway
    | Ping
    | Pong
    | Goodbye
    | ListTeachers
    | TeacherList
    | GetTeacher
    | Teacher
)
