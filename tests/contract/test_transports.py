"""One suite over every Transport, each with what it really talks to: what the client relies on."""

import asyncio
import re
import shutil
from contextlib import AsyncExitStack
from dataclasses import replace

import numpy as np
import pytest

from teacherfarm.protos.crop import CropFormat
from teacherfarm.protos.faults import (
    BadLabelSpec,
    DigestMismatch,
    SessionLost,
    TeacherFailed,
    TeacherFarmFault,
    UnknownOutput,
    WrongCropSize,
)
from teacherfarm.protos.messages import Goodbye, Hello, Ping, Pong, Slice, SliceFault, SliceLabels, Welcome
from teacherfarm.protos.soft_label import LabelSpec, SoftLabels
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.protos.wire import decode_header, encode_header
from teacherfarm.student.client import AsyncTeacherClient
from teacherfarm.student.settings import Timeouts, parse_addresses
from teacherfarm.student.transports import triton_transport
from teacherfarm.student.transports.connect import open_transport
from teacherfarm.student.transports.loopback_transport import LoopbackFarm
from teacherfarm.teacher_server.backends.onnx_backend import OnnxBackend
from teacherfarm.teacher_server.farm.model_directory import read_model_directory
from teacherfarm.teacher_server.server import Server
from teacherfarm.teacher_server.settings import ServerSettings
from tests.credentials import CurveFarm, TlsFarm
from tests.on_loop import on_loop, settled
from tests.unit.teacher_server.scripted import SIZE, Teacher, answer, exported, make_card

CARD = make_card(crop_format=CropFormat(height=SIZE, width=SIZE))
POISON = 66
TIMEOUTS = Timeouts(connect_s=10.0, close_s=1.0)


class Peer:
    """What a transport under test talks to."""

    card: TeacherCard = CARD

    async def start(self) -> None:
        self.teacher = None

    def crops(self, *firsts: int) -> np.ndarray:
        crops = np.random.default_rng(5).integers(0, 256, (len(firsts), *self.card.crop_format.shape), dtype=np.uint8)
        crops[:, 0, 0, 0] = firsts
        return crops

    async def right(self, crops: np.ndarray) -> np.ndarray:
        return answer(crops, ("log_probabilities",))["log_probabilities"]


class ServerPeer(Peer):
    """A whole server in this process, on a free port, with a scripted teacher. ``wire`` "grpcs" is mutual TLS, and
    "curve" is ZeroMQ by CURVE.
    """

    def __init__(self, wire: str, folder) -> None:
        self._options, secured = "", {}
        if wire == "grpcs":
            tls = TlsFarm(folder / "tls")
            wire, self._options = "grpc", tls.options(mutual=True)
            secured = {"tls_cert": str(tls.cert), "tls_key": str(tls.key), "tls_client_ca": str(tls.ca)}
        elif wire == "curve":
            curve = CurveFarm(folder / "curve", "me")
            wire, self._options = "zmq", f"&client_key={curve.students['me']}"
            secured = {"curve_key": str(curve.secret_file), "curve_clients": str(curve.clients)}
        addresses = {"zmq": "off", "grpc": "off", "http": "off", wire: "127.0.0.1:0"}
        self._wire = wire

        def make_backend(_, card: TeacherCard) -> Teacher:
            teacher = Teacher(card, largest_batch=8)
            teacher.raises[POISON] = lambda: ZeroDivisionError("a layer")
            return teacher

        settings = ServerSettings(models="unused", **addresses, **secured)
        self.server = Server(settings, make_backend=make_backend, teachers=[exported(folder, CARD)])

    async def start(self) -> None:
        await self.server.start()
        [address] = self.server.addresses()
        self.address = address + self._options

    def transport(self):
        [address] = parse_addresses(self.address)
        return open_transport(address, TIMEOUTS, "")

    async def die(self) -> None:
        await self.server.stop()

    close = die


class LoopbackPeer(Peer):
    address = "zmq://in-memory:1"

    def __init__(self) -> None:
        self.farm = LoopbackFarm(CARD, self._script)

    def _script(self, pixels, outputs):
        if POISON in pixels[:, 0, 0, 0]:
            raise ZeroDivisionError("a layer")
        return answer(pixels, outputs)

    def transport(self):
        return self.farm.open(parse_addresses(self.address)[0], TIMEOUTS, "")

    async def die(self) -> None:
        self.farm.kill_sessions()

    async def close(self) -> None:
        """Nothing to stop."""


class LocalPeer(Peer):
    def __init__(self, models) -> None:
        [self.teacher] = read_model_directory(models)
        self.card = self.teacher.card
        self.address = f"local://{models}"

    async def start(self) -> None:
        """The transport loads the teacher."""

    def transport(self):
        return open_transport(parse_addresses(self.address)[0], TIMEOUTS, "")

    async def right(self, crops):
        backend = OnnxBackend(self.card, self.teacher.model_file, threads=1)
        await backend.start()
        outputs = await backend.run(crops, ("log_probabilities",))
        await backend.close()
        return outputs["log_probabilities"]

    async def close(self) -> None:
        """Nothing to stop."""


class TritonPeer(LocalPeer):
    """A real Triton server; ``mortal`` ones are a test's own."""

    def __init__(self, models, server) -> None:
        super().__init__(models)
        self.server = server
        self.address = f"triton://{server.grpc}"

    async def die(self) -> None:
        self.server.kill()


POISONED = f"""
answer = TritonPythonModel._run

def fail_on_poison(self, names, crops):
    if {POISON} in crops[:, 0, 0, 0]:
        raise ZeroDivisionError("a layer")
    return answer(self, names, crops)

TritonPythonModel._run = fail_on_poison
"""


@pytest.fixture
def peer(request, tmp_path):
    if request.param == "local":
        return LocalPeer(request.getfixturevalue("tiny_models"))
    if request.param == "triton":
        return TritonPeer(request.getfixturevalue("triton_repository"), request.getfixturevalue("triton"))
    if request.param == "mortal triton":
        repository = shutil.copytree(request.getfixturevalue("triton_repository"), tmp_path / "models")
        with (repository / "tiny" / "1" / "model.py").open("a") as model:
            model.write(POISONED)
        # Found by the connection's end, at once, and not by a heartbeat.
        request.getfixturevalue("monkeypatch").setattr(triton_transport, "HEARTBEAT_S", 1e6)
        return TritonPeer(repository, request.getfixturevalue("start_triton")(repository=repository))
    return LoopbackPeer() if request.param == "loopback" else ServerPeer(request.param, tmp_path)


ours = ["zmq", "curve", "grpc", "grpcs", "loopback"]
every_transport = pytest.mark.parametrize("peer", [*ours, "local", "triton"], indirect=True)
mortal_peers = pytest.mark.parametrize("peer", [*ours, "mortal triton"], indirect=True)
HELLO = Hello(teacher="", spec=LabelSpec())


async def opened(stack: AsyncExitStack, peer, hello: Hello = HELLO):
    """A running peer, and a transport that has said Hello."""
    stack.push_async_callback(peer.close)
    await peer.start()
    transport = peer.transport()
    stack.push_async_callback(transport.close)
    await transport.open()
    transport.send(encode_header(hello))
    return transport


async def greet(transport):
    await transport.open()
    transport.send(encode_header(HELLO))
    await transport.receive()


async def hear(transport) -> tuple[object, bytes]:
    header, payload = await transport.receive()
    return decode_header(header), bytes(payload)


def slice_of(peer, *firsts, batch_id=1) -> tuple[bytes, memoryview]:
    crops = peer.crops(*firsts)
    return encode_header(Slice(batch_id=batch_id, first_row=0, num_crops=len(firsts))), crops.reshape(-1).data


@every_transport
@on_loop
async def test_hello_is_answered_with_welcome_and_the_card(peer):
    async with AsyncExitStack() as stack:
        transport = await opened(stack, peer)
        welcome, card = await hear(transport)
        assert isinstance(welcome, Welcome)
        assert TeacherCard.from_json(card) == peer.card
        assert welcome.slice_crops >= 1
        assert welcome.window_crops >= welcome.slice_crops
        assert welcome.artifact_digest


@every_transport
@on_loop
async def test_every_slice_gets_its_own_labels(peer):
    async with AsyncExitStack() as stack:
        transport = await opened(stack, peer)
        await hear(transport)
        spec = LabelSpec().resolve(peer.card)
        for batch_id in range(20):
            transport.send(*slice_of(peer, batch_id, batch_id + 100, batch_id=batch_id))
        answers = {}
        for _ in range(20):
            labels, payload = await hear(transport)
            assert isinstance(labels, SliceLabels)
            assert (labels.first_row, labels.num_crops) == (0, 2)
            answers[labels.batch_id] = np.frombuffer(payload, spec.record_dtype(peer.card))
        assert sorted(answers) == list(range(20))
        for batch_id in (0, 7, 19):
            labels = SoftLabels.from_records(answers[batch_id], spec, peer.card)
            right = await peer.right(peer.crops(batch_id, batch_id + 100))
            assert np.array_equal(labels.log_probabilities, right)


@every_transport
@on_loop
async def test_pings_are_answered(peer):
    async with AsyncExitStack() as stack:
        transport = await opened(stack, peer)
        await hear(transport)
        transport.send(encode_header(Ping(taken_crops=0)))
        pong, payload = await hear(transport)
        assert isinstance(pong, Pong)
        assert payload == b""


@every_transport
@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"spec": LabelSpec(outputs=("stage9",))}, UnknownOutput),
        ({"spec": LabelSpec(top_k=11)}, BadLabelSpec),
        ({"expected_teacher_digest": "0" * 64}, DigestMismatch),
        ({"expected_artifact_digest": "0" * 64}, DigestMismatch),
    ],
)
@on_loop
async def test_a_hello_is_refused_by_the_same_class(peer, changes, fault):
    async with AsyncExitStack() as stack:
        transport = await opened(stack, peer, replace(HELLO, **changes))
        refusal, _ = await hear(transport)
        assert isinstance(refusal, SliceFault)
        assert type(refusal.fault) is fault
        assert refusal.num_crops == 0


@every_transport
@on_loop
async def test_a_bad_slice_is_refused_by_the_same_class_and_alone(peer):
    async with AsyncExitStack() as stack:
        transport = await opened(stack, peer)
        await hear(transport)
        header, payload = slice_of(peer, 1, 2, batch_id=1)
        transport.send(header, payload[:-1])
        transport.send(*slice_of(peer, 3, batch_id=2))
        answers = {}
        for _ in range(2):
            value, _ = await hear(transport)
            answers[value.batch_id] = value
        assert type(answers[1].fault) is WrongCropSize
        assert answers[1].num_crops == 2
        assert isinstance(answers[2], SliceLabels)


@mortal_peers
@on_loop
async def test_a_teacher_that_fails_is_a_fault_with_its_words(peer):
    async with AsyncExitStack() as stack:
        transport = await opened(stack, peer)
        await hear(transport)
        transport.send(*slice_of(peer, POISON))
        refusal, _ = await hear(transport)
        assert type(refusal.fault) is TeacherFailed
        assert re.search("failed on this slice: .*a layer", str(refusal.fault))


@mortal_peers
@on_loop
async def test_the_death_of_the_peer_is_a_lost_session_and_sending_on_is_silent(peer):
    async with AsyncExitStack() as stack:
        transport = await opened(stack, peer)
        await hear(transport)
        receiving = asyncio.ensure_future(hear(transport))
        await settled()
        await peer.die()
        with pytest.raises(SessionLost):
            await receiving
        for _ in range(3):
            transport.send(*slice_of(peer, 1))
            with pytest.raises(SessionLost):
                await transport.receive()


@every_transport
@on_loop
async def test_closing_may_be_done_twice_and_ends_everything(peer):
    async with AsyncExitStack() as stack:
        transport = await opened(stack, peer)
        await hear(transport)
        for first in range(8):
            transport.send(*slice_of(peer, first))
        transport.send(encode_header(Goodbye()))
        await transport.close()
        await transport.close()
        transport.send(*slice_of(peer, 1))
        for _ in range(4):
            with pytest.raises(SessionLost):
                await transport.receive()


@every_transport
@on_loop
async def test_closing_what_was_never_opened(peer):
    async with AsyncExitStack() as stack:
        stack.push_async_callback(peer.close)
        await peer.start()
        transport = peer.transport()
        await transport.close()
        await transport.close()


@pytest.mark.parametrize("scheme", ["zmq", "grpc", "triton"])
@on_loop
async def test_nobody_at_the_address_is_a_lost_session(scheme, unused_port):
    [address] = parse_addresses(f"{scheme}://127.0.0.1:{unused_port}")
    transport = open_transport(address, TIMEOUTS, "")
    try:
        with pytest.raises(SessionLost, match=f"{scheme}://127.0.0.1:{unused_port}"):
            await greet(transport)
    finally:
        await transport.close()


@pytest.fixture
def unused_port():
    """A port that somebody holds without listening, so that nobody else can."""
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@every_transport
@on_loop
async def test_a_client_over_it_gets_every_label_right(peer):
    async with AsyncExitStack() as stack:
        stack.push_async_callback(peer.close)
        await peer.start()
        open_it = {"open_transport": peer.farm.open} if isinstance(peer, LoopbackPeer) else {}
        async with AsyncTeacherClient(peer.address, window=64, timeouts=TIMEOUTS, **open_it) as client:
            batches = [peer.crops(*range(start, start + num)) for start, num in ((0, 1), (3, 40), (80, 17), (150, 100))]
            for crops, labels in zip(
                batches, await asyncio.gather(*(client.label(crops) for crops in batches)), strict=True
            ):
                assert np.array_equal(labels.log_probabilities, await peer.right(crops))
                assert labels.weight.tolist() == [1] * len(crops)
            with pytest.raises(TeacherFarmFault):
                await client.label(batches[0][:, :-1])
            assert client.stats.crops_resent == 0
