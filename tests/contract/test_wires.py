"""One suite over both wires: front-end and transport joined by a real connection, with nothing behind them."""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import asynccontextmanager

import pytest

from teacherfarm.protos.faults import BadMessage, Overloaded, SessionLost
from teacherfarm.protos.messages import Ping
from teacherfarm.protos.wire import decode_header, encode_header
from teacherfarm.student.settings import CurveKeys, TlsFiles
from teacherfarm.student.transports.grpc_transport import GrpcTransport
from teacherfarm.student.transports.zmq_transport import ZmqTransport
from teacherfarm.teacher_server.frontends import grpc_frontend, zmq_frontend
from teacherfarm.teacher_server.frontends.curve import ServerCurve
from teacherfarm.teacher_server.frontends.grpc_frontend import GrpcFrontend
from teacherfarm.teacher_server.frontends.tls import ServerTls
from teacherfarm.teacher_server.frontends.zmq_frontend import ZmqFrontend
from tests.credentials import CurveFarm, TlsFarm
from tests.on_loop import on_loop, until

MIB = 1 << 20


class Echo:
    """A conversation that says again what it hears."""

    def __init__(self, send: Callable) -> None:
        self.send = send
        self.heard: list[tuple[int, bytes]] = []
        self.refused: list[BadMessage] = []
        self.finished = self.greeted = False
        self.last_heard_s = time.monotonic()
        self.closed = 0
        self.mute = False

    def receive(self, header, payload) -> None:
        number = decode_header(header).taken_crops
        self.heard.append((number, bytes(payload)))
        if not self.mute:
            self.send(bytes(header), bytes(payload))

    def refuse(self, fault: BadMessage) -> None:
        self.refused.append(fault)
        self.finished = True

    def go_away(self) -> None:
        self.send(encode_header(Ping(taken_crops=99)), b"")

    def close(self) -> None:
        self.closed += 1
        self.finished = True


class Wire:
    """``protection``: what its two ends need to speak TLS or CURVE; None is in the clear."""

    def __init__(self, name: str, protection: TlsFarm | CurveFarm | None = None) -> None:
        self.name = name
        self.protection = protection
        self.echoes: list[Echo] = []
        self.module = {"zmq": zmq_frontend, "grpc": grpc_frontend}[name]

    def _converse(self, send) -> Echo:
        self.echoes.append(Echo(send))
        return self.echoes[-1]

    @asynccontextmanager
    async def serving(self, most_sessions: int = 8, **options):
        kind = {"zmq": ZmqFrontend, "grpc": GrpcFrontend}[self.name]
        frontend = kind(
            "127.0.0.1:0",
            self._converse,
            payload_bytes=MIB,
            most_sessions=most_sessions,
            **self.serving_options(),
            **options,
        )
        await frontend.start()
        assert not frontend.address.endswith(":0")
        try:
            yield frontend
        finally:
            await frontend.close()
            await frontend.close()

    @asynccontextmanager
    async def connected(self, frontend):
        kind = {"zmq": ZmqTransport, "grpc": GrpcTransport}[self.name]
        transport = kind(frontend.address, payload_bytes=MIB, close_s=1.0, **self.student_options())
        try:
            await transport.open()
            yield transport
        finally:
            await transport.close()

    def serving_options(self) -> dict:
        match self.protection:
            case TlsFarm(cert=cert, key=key, ca=ca):
                return {"tls": ServerTls(cert=str(cert), key=str(key), client_ca=str(ca))}
            case CurveFarm(secret_file=secret_file, clients=clients):
                return {"curve": ServerCurve(key_file=str(secret_file), clients=str(clients))}
        return {}

    def student_options(self) -> dict:
        match self.protection:
            case TlsFarm() as tls:
                return {"tls": TlsFiles(ca=str(tls.ca), cert=str(tls.student_cert), key=str(tls.student_key))}
            case CurveFarm() as curve:
                return {"curve": CurveKeys(server_key=curve.public_key, client_key=str(curve.students["me"]))}
        return {}


@pytest.fixture(params=["zmq", "grpc", "zmq by CURVE", "grpc by TLS"])
def wire(request, tmp_path) -> Wire:
    match request.param:
        case "zmq by CURVE":
            return Wire("zmq", CurveFarm(tmp_path / "curve", "me"))
        case "grpc by TLS":
            return Wire("grpc", TlsFarm(tmp_path / "tls"))
        case name:
            return Wire(name)


def header_of(number: int) -> bytes:
    return encode_header(Ping(taken_crops=number))


async def hear(transport) -> tuple[int, bytes]:
    header, payload = await transport.receive()
    return decode_header(header).taken_crops, bytes(payload)


async def all_until_lost(transport) -> list[tuple[int, bytes]]:
    """Every message until SessionLost."""
    heard = []
    while True:
        try:
            heard.append(await hear(transport))
        except SessionLost:
            return heard


@on_loop
async def test_messages_of_every_size_arrive_whole_and_in_order_both_ways(wire):
    rng = random.Random(1)
    payloads = [rng.randbytes(rng.choice([0, 1, 127, 128, 5000, 70_000])) for _ in range(300)] + [rng.randbytes(MIB)]
    async with wire.serving() as frontend, wire.connected(frontend) as transport:
        for number, payload in enumerate(payloads, 1):
            transport.send(header_of(number), payload)
        for number, payload in enumerate(payloads, 1):
            assert await hear(transport) == (number, payload)
        assert wire.echoes[0].heard == list(enumerate(payloads, 1))


@on_loop
async def test_question_and_answer_take_turns_without_a_stall(wire):
    async with wire.serving() as frontend, wire.connected(frontend) as transport:
        for number in range(1, 200):
            transport.send(header_of(number), bytes(number))
            assert await hear(transport) == (number, bytes(number))


@on_loop
async def test_students_do_not_hear_each_other(wire):
    async with wire.serving() as frontend, wire.connected(frontend) as one, wire.connected(frontend) as other:
        for number in range(1, 20):
            one.send(header_of(number), b"one")
            other.send(header_of(number + 100), b"other")
        for number in range(1, 20):
            assert await hear(one) == (number, b"one")
            assert await hear(other) == (number + 100, b"other")
        assert len(wire.echoes) == 2


@on_loop
async def test_an_end_cuts_what_was_said_only_at_its_end(wire):
    said = [(number, b"x" * number) for number in range(1, 300)]
    async with wire.serving() as frontend, wire.connected(frontend) as transport:
        for number, payload in said:
            transport.send(header_of(number), payload)
        await until(lambda: wire.echoes and len(wire.echoes[0].heard) == len(said))
        await frontend.close()
        heard = await all_until_lost(transport)
        # ZeroMQ drops what its user has not read yet when a connection dies; the client asks for it again.
        assert heard == (said if wire.name == "grpc" else said[: len(heard)])
        with pytest.raises(SessionLost):
            await transport.receive()


@on_loop
async def test_a_student_that_leaves_ends_its_conversation(wire, monkeypatch):
    # ZeroMQ's server is told by Goodbye, which an echo does not understand, or finds out by silence.
    if wire.name == "zmq":
        monkeypatch.setattr(wire.module, "SWEEP_INTERVAL_S", 0.01)
        monkeypatch.setattr(wire.module, "HELLO_WITHIN_S", -1.0)
    async with wire.serving() as frontend:
        async with wire.connected(frontend) as transport:
            transport.send(header_of(1))
            await hear(transport)
        await until(lambda: wire.echoes[0].closed)
        assert "0 " in repr(frontend)


@on_loop
async def test_a_student_that_never_says_hello_is_dropped(wire, monkeypatch):
    monkeypatch.setattr(wire.module, "HELLO_WITHIN_S", 0.05)
    if wire.name == "zmq":
        monkeypatch.setattr(wire.module, "SWEEP_INTERVAL_S", 0.01)
    async with wire.serving() as frontend, wire.connected(frontend) as transport:
        if wire.name == "zmq":
            transport.send(header_of(1))
        await until(lambda: wire.echoes and wire.echoes[0].closed)


@on_loop
async def test_a_message_larger_than_allowed_ends_its_session_alone(wire):
    async with wire.serving() as frontend, wire.connected(frontend) as good, wire.connected(frontend) as bad:
        for transport in (good, bad):
            transport.send(header_of(1))
            await hear(transport)
        bad.send(header_of(2), bytes(2 * MIB))
        with pytest.raises(SessionLost):
            await bad.receive()
        good.send(header_of(3), b"still here")
        assert await hear(good) == (3, b"still here")
        assert all(len(payload) < MIB for echo in wire.echoes for _, payload in echo.heard)


@on_loop
async def test_a_student_takes_no_message_larger_than_allowed_either(wire):
    async with wire.serving() as frontend, wire.connected(frontend) as transport:
        transport.send(header_of(1))
        await hear(transport)
        wire.echoes[0].send(header_of(2), bytes(2 * MIB))
        with pytest.raises(SessionLost):
            await transport.receive()


@on_loop
async def test_a_session_too_many_is_refused_and_the_others_go_on(wire):
    async with wire.serving(most_sessions=1) as frontend, wire.connected(frontend) as one:
        one.send(header_of(1))
        assert await hear(one) == (1, b"")
        async with wire.connected(frontend) as other:
            other.send(header_of(2))
            if wire.name == "zmq":
                header, _ = await other.receive()
                assert type(decode_header(header).fault).__name__ == "Overloaded"
            else:
                with pytest.raises(SessionLost):
                    await other.receive()
        one.send(header_of(3))
        assert await hear(one) == (3, b"")
        assert len(wire.echoes) == 1


@on_loop
async def test_a_stranger_too_many_is_told_to_come_back_and_the_others_go_on(wire):
    async with wire.serving(most_strangers=1) as frontend, wire.connected(frontend) as one:
        one.send(header_of(1))
        assert await hear(one) == (1, b"")
        async with wire.connected(frontend) as other:
            other.send(header_of(2))
            header, _ = await other.receive()
            fault = decode_header(header).fault
            assert type(fault) is Overloaded
            assert "1 others have not said Hello yet" in str(fault)
            assert fault.retry_after_s == 1.0
        # Whoever has said Hello is no stranger.
        wire.echoes[0].greeted = True
        async with wire.connected(frontend) as third:
            third.send(header_of(3))
            assert await hear(third) == (3, b"")
        one.send(header_of(4))
        assert await hear(one) == (4, b"")
        assert len(wire.echoes) == 2


@on_loop
async def test_a_silent_student_is_closed_and_a_talking_one_is_not(wire, monkeypatch):
    monkeypatch.setattr(wire.module, "SWEEP_INTERVAL_S", 0.01)
    async with (
        wire.serving(idle_session_s=1000.0) as frontend,
        wire.connected(frontend) as silent,
        wire.connected(frontend) as talking,
    ):
        for number, transport in enumerate((silent, talking)):
            transport.send(header_of(number))
            await hear(transport)
        quiet, lively = sorted(wire.echoes, key=lambda echo: echo.heard)
        for echo in (quiet, lively):
            echo.greeted, echo.last_heard_s = True, time.monotonic()
        quiet.last_heard_s -= 2000.0
        await until(lambda: quiet.closed)
        if wire.name == "grpc":
            with pytest.raises(SessionLost, match="the server ended the stream"):
                await silent.receive()
        talking.send(header_of(2))
        assert await hear_pings_and(talking, 2)
        assert not lively.closed


async def hear_pings_and(transport, number: int) -> bool:
    """The answer of this number, whatever the server asks in between whether somebody is there."""
    while True:
        header, _ = await transport.receive()
        match decode_header(header):
            case Ping(taken_crops=taken_crops):
                return taken_crops == number


@on_loop
async def test_everybody_is_told_to_go_away(wire):
    async with wire.serving() as frontend, wire.connected(frontend) as one, wire.connected(frontend) as other:
        for transport in (one, other):
            transport.send(header_of(1))
            await hear(transport)
        frontend.go_away()
        assert [await hear(one), await hear(other)] == [(99, b"")] * 2


@on_loop
async def test_a_taken_address_is_said(wire):
    async with wire.serving() as frontend:
        kind = type(frontend)
        second = kind(frontend.address, wire._converse, payload_bytes=MIB, most_sessions=1, **wire.serving_options())
        with pytest.raises(OSError, match=f"cannot listen for .* on {frontend.address}"):
            await second.start()
        await second.close()


@on_loop
async def test_a_zeromq_student_that_reads_nothing_loses_its_session_and_harms_nobody(monkeypatch):
    import zmq

    wire = Wire("zmq")
    monkeypatch.setattr(wire.module, "SEND_HIGH_WATER", 16)
    async with wire.serving() as frontend, wire.connected(frontend) as good:
        good.send(header_of(1))
        await hear(good)
        with zmq.Context() as context, context.socket(zmq.DEALER) as stalled:
            stalled.linger = 0
            stalled.setsockopt(zmq.RCVHWM, 1)
            stalled.connect(f"tcp://{frontend.address}")
            stalled.send_multipart([header_of(1), b""])
            await until(lambda: len(wire.echoes) == 2)
            lazy = wire.echoes[1]
            num_said = 0
            while not lazy.closed:
                lazy.send(header_of(2), bytes(MIB))
                num_said += 1
                assert num_said < 100, "its queue grew beyond the high-water mark"
                await asyncio.sleep(0)
            good.send(header_of(2), b"x")
            assert await hear(good) == (2, b"x")


@on_loop
async def test_a_grpc_student_that_reads_nothing_is_bounded_and_harms_nobody(monkeypatch):
    wire = Wire("grpc")
    monkeypatch.setattr(wire.module, "SEND_HIGH_WATER", 16)
    async with wire.serving() as frontend, wire.connected(frontend) as good:
        good.send(header_of(1))
        await hear(good)
        async with wire.connected(frontend) as stalled:
            stalled.send(header_of(1))
            await until(lambda: len(wire.echoes) == 2 and wire.echoes[1].heard)
            lazy = wire.echoes[1]
            for number in range(2, 100):
                lazy.send(header_of(number), bytes(MIB))
            [outgoing] = [queue for echo, queue in frontend._outgoing.items() if echo is lazy]
            assert outgoing.qsize() <= 17
            good.send(header_of(2), b"x")
            assert await hear(good) == (2, b"x")
            assert len(await all_until_lost(stalled)) < 99


@pytest.mark.parametrize("frames", [[b"one"], [b"one", b"two", b"three"], [b"", b"", b"", b"", b""]])
@on_loop
async def test_zeromq_messages_of_other_than_two_frames_are_refused(frames):
    import zmq

    wire = Wire("zmq")
    async with wire.serving() as frontend:
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.connect(f"tcp://{frontend.address}")
            socket.send_multipart(frames)
            await until(lambda: wire.echoes and wire.echoes[0].refused)
            assert f"not {len(frames)}" in str(wire.echoes[0].refused[0])
            await until(lambda: "0 peer(s)" in repr(frontend))


@pytest.mark.parametrize("message", [b"\x1a\x00", b"\x0a\x50x", b"\xff" * 30])
@on_loop
async def test_grpc_messages_that_cannot_be_taken_apart_are_refused(message):
    import grpc

    wire = Wire("grpc")
    async with wire.serving() as frontend, grpc.aio.insecure_channel(frontend.address) as channel:
        stream = channel.stream_stream("/teacherfarm.v1.TeacherFarm/StreamLabels")()
        await stream.write(message)
        assert await stream.read() is grpc.aio.EOF
        assert len(wire.echoes[0].refused) == 1
