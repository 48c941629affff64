"""Everything that can go wrong between a student and a farm, as one tree of exceptions.

    TeacherFarmFault
    |-- BadMessage             the peer broke the wire's rules
    |   |-- MalformedMessage
    |   |-- MessageTooLarge
    |   |-- UnexpectedMessage
    |   `-- WireVersionMismatch
    |-- BadCrops               the crops are not what the teacher takes
    |   |-- WrongCropSize
    |   |-- WrongNumberType
    |   |-- WrongLayout
    |   |-- WrongBatchSize
    |   `-- UnreadableCrop
    |-- BadLabelSpec           the teacher cannot give what was asked
    |   |-- UnknownOutput
    |   |-- TemperatureMismatch
    |   `-- NoHead
    |-- UnknownTeacher
    |-- DigestMismatch         another teacher than the one that was pinned
    |-- Unauthenticated        no API key, or none that is valid here
    |-- NotAllowed             the key's project may not use this teacher
    |-- HandshakeFailed        no encrypted connection: one end does not trust the other
    |-- BadTeacher             a model directory that cannot be served
    |   |-- EmptyModelDirectory
    |   |-- DamagedArtifact
    |   `-- GoldenMismatch
    |-- TeacherFailed          the teacher broke on this slice
    |   `-- PoisonBatch        ... and took its backend along, three times
    |-- UnreadableImage        an image of a data set cannot be decoded
    |-- BadDataSet             a data set that cannot be used as it is
    |-- UnknownDataSet         the server cuts crops from no data set of this name
    |-- BadReference           a crop by reference that names no crop
    |-- SampleMismatch         the server's sample is another image than the student's
    |   |-- UnknownSample      ... or it has none
    |   `-- SampleChanged      ... or it changed since it was indexed
    |-- Starved                no labels came in the time that the student allows
    |-- WindowFull             too many answers wait to be taken
    |-- Overloaded             no room now
    |   `-- QuotaExceeded      ... within the project's allowance
    |-- NotReady               the server is still loading
    |-- SessionLost            the connection died
    |   `-- GoingAway          ... because the server is draining
    |-- BackendDied            what ran the teacher is gone
    |-- LabelStoreFault        the server cannot keep labels where it is told to
    |-- BadRecording           recorded labels that cannot be used
    |   |-- LabelsMismatch     ... because they are another teacher's, plan's or spec's
    |   |-- DamagedLabels      ... because the files are not what was written
    |   |-- LabelsMissing      ... because some that are needed were never recorded
    |   `-- ReplayRefused      ... because the method or the order needs crops that come once
    |-- RecordingStopped       labels can no longer be written; training goes on
    |-- BadLabelFile           another project's file of labels that cannot be read
    |   `-- UnsafeLabelFile    ... because it asks for more than numbers: it may try to run a program
    `-- ServerFault            anything undeclared, logged in full on the server

The student raises the class that the server raised: a class is found by its wire code, never by a name from the peer. A
fault that is the caller's mistake is a ValueError too.
"""

from __future__ import annotations

from typing import ClassVar, Literal

RetryAdvice = Literal["never", "later", "elsewhere"]


class TeacherFarmFault(Exception):
    """Root of the tree. ``retry_after_s`` is 0 unless the server named a time to come back."""

    code: ClassVar[int] = 1
    retry: ClassVar[RetryAdvice] = "never"

    def __init__(self, message: str = "", *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments would be lost by Exception's own pickling, which DataLoader workers use.
        return (_rebuild, (type(self), self.message, self.retry_after_s))


def _rebuild(kind: type[TeacherFarmFault], message: str, retry_after_s: float) -> TeacherFarmFault:
    return kind(message, retry_after_s=retry_after_s)


class BadMessage(TeacherFarmFault):
    """The peer broke the wire's rules; the session ends."""

    code = 10


class MalformedMessage(BadMessage):
    code = 11


class MessageTooLarge(BadMessage):
    code = 12


class UnexpectedMessage(BadMessage):
    code = 13


class WireVersionMismatch(BadMessage):
    code = 14


class BadCrops(TeacherFarmFault, ValueError):
    """The crops are not what the teacher takes; the session goes on."""

    code = 20


class WrongCropSize(BadCrops):
    code = 21


class WrongNumberType(BadCrops):
    code = 22


class WrongLayout(BadCrops):
    code = 23


class WrongBatchSize(BadCrops):
    code = 24


class UnreadableCrop(BadCrops):
    code = 25


class BadLabelSpec(TeacherFarmFault, ValueError):
    """The teacher cannot give what the label spec asks."""

    code = 30


class UnknownOutput(BadLabelSpec):
    code = 31


class TemperatureMismatch(BadLabelSpec):
    code = 32


class NoHead(BadLabelSpec):
    """This teacher's linear classifier cannot be had: it has none, or not from here."""

    code = 33


class UnknownTeacher(TeacherFarmFault):
    code = 40


class DigestMismatch(TeacherFarmFault):
    code = 41


class Unauthenticated(TeacherFarmFault):
    """No API key, or none that is valid here. The same whether a key was mistyped, revoked or never made."""

    code = 42


class NotAllowed(TeacherFarmFault):
    """The API key is valid, but its project may not use this teacher."""

    code = 43


class HandshakeFailed(TeacherFarmFault):
    """TLS or CURVE found no agreement: an expired or foreign certificate, a key that is not on the allow-list, or one
    end speaks in the clear. Never crosses the wire.
    """

    code = 44


class BadTeacher(TeacherFarmFault):
    """A model directory that cannot be served."""

    code = 50


class EmptyModelDirectory(BadTeacher):
    code = 51


class DamagedArtifact(BadTeacher):
    code = 52


class GoldenMismatch(BadTeacher):
    code = 53


class TeacherFailed(TeacherFarmFault):
    """The teacher raised on this slice, alone; the same slice would break it again."""

    code = 60


class PoisonBatch(TeacherFailed):
    """This slice killed its backend three times."""

    code = 61


class UnreadableImage(TeacherFarmFault, ValueError):
    """An image of a data set cannot be decoded. Crosses the wire where the server was to cut crops from it."""

    code = 70


class Starved(TeacherFarmFault):
    """No labels came within the student's answer time-out, and its policy is to raise."""

    code = 71
    retry = "later"


class WindowFull(TeacherFarmFault):
    """More answers wait to be taken than the window holds: take some before asking for more."""

    code = 72
    retry = "later"


class Overloaded(TeacherFarmFault):
    """No room at the moment; ``retry_after_s`` says when to come back. The client waits by itself."""

    code = 80
    retry = "later"


class QuotaExceeded(Overloaded):
    """The project has used up its allowance for now. The client waits by itself."""

    code = 82


class NotReady(TeacherFarmFault):
    """The server is up but this teacher is still being loaded and checked."""

    code = 81
    retry = "later"


class SessionLost(TeacherFarmFault):
    """The connection died; the client opens another session and resends what was unanswered."""

    code = 90
    retry = "elsewhere"


class GoingAway(SessionLost):
    """The server is draining."""

    code = 91


class BackendDied(TeacherFarmFault):
    """What ran the teacher is gone (a process, an endpoint); the slice may be tried elsewhere."""

    code = 92
    retry = "elsewhere"


class LabelStoreFault(TeacherFarmFault):
    """Labels cannot be kept in this place, or what is there is no label store. Never crosses the wire."""

    code = 93


class BadRecording(TeacherFarmFault):
    """Recorded labels that cannot be used. Never crosses the wire, nor do those below."""

    code = 95


class LabelsMismatch(BadRecording, ValueError):
    """Recorded labels of another teacher, plan, rendering, spec or data set than asked."""

    code = 96


class DamagedLabels(BadRecording):
    """A file of recorded labels is not what was written, and nothing in it can be trusted."""

    code = 97


class RecordingStopped(TeacherFarmFault):
    """Labels can no longer be written (a full disk). Raised once; what was committed stays, and training goes on."""

    code = 98


class LabelsMissing(BadRecording):
    """A replay asks for labels that were not recorded, or were damaged, and there is no teacher to ask."""

    code = 110


class ReplayRefused(BadRecording, ValueError):
    """What is to be trained needs crops that come once, so that recorded labels cannot serve it."""

    code = 111


class BadDataSet(TeacherFarmFault, ValueError):
    """A data set of images that cannot be used as it is: nothing there, no such format, or the same name twice."""

    code = 100


class UnknownDataSet(TeacherFarmFault):
    """The server cuts crops from no data set of this name."""

    code = 101


class BadReference(TeacherFarmFault, ValueError):
    """A crop by reference that names no crop: a box outside its image, a partner that is not there."""

    code = 102


class SampleMismatch(TeacherFarmFault):
    """The server's sample of this name holds another image than the student's. Concerns this crop alone."""

    code = 103


class UnknownSample(SampleMismatch):
    """The data set has no sample of this name, nor one that holds the same image."""

    code = 104


class SampleChanged(SampleMismatch):
    """An image changed, or went away, since its data set was indexed."""

    code = 105


class BadLabelFile(TeacherFarmFault, ValueError):
    """Another project's file of labels is damaged, or not what its name says. Never crosses the wire."""

    code = 113


class UnsafeLabelFile(BadLabelFile):
    """A file of labels asks for more than arrays and numbers: it may have been made to run a program."""

    code = 114


class ServerFault(TeacherFarmFault):
    """An undeclared error inside the server; its log has the details under the same session."""

    code = 99
    retry = "never"


def _tree(root: type[TeacherFarmFault]) -> dict[int, type[TeacherFarmFault]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        below = _tree(child)
        if clash := found.keys() & below.keys():
            raise AssertionError(f"two faults share wire code {clash}")
        found |= below
    return found


_BY_CODE = _tree(TeacherFarmFault)


def from_code(code: int, message: str, retry_after_s: float = 0.0) -> TeacherFarmFault:
    """The fault with this wire code; an unknown code (a newer peer) gives the root class and says so."""
    kind = _BY_CODE.get(code)
    if kind is None:
        return TeacherFarmFault(f"[unknown fault code {code}] {message}", retry_after_s=retry_after_s)
    return kind(message, retry_after_s=retry_after_s)
