"""Front-end and transport that do not trust each other: who refuses whom, and in which words."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import pytest

from teacherfarm.protos.curve_keys import read_pair
from teacherfarm.protos.faults import HandshakeFailed, SessionLost, Unauthenticated
from teacherfarm.protos.wire import decode_header
from teacherfarm.student.settings import CurveKeys, TlsFiles
from teacherfarm.student.transports.grpc_transport import GrpcTransport
from teacherfarm.student.transports.zmq_transport import ZmqTransport
from teacherfarm.teacher_server.frontends.curve import ServerCurve
from teacherfarm.teacher_server.frontends.grpc_frontend import GrpcFrontend
from teacherfarm.teacher_server.frontends.tls import ServerTls
from teacherfarm.teacher_server.frontends.zmq_frontend import ZmqFrontend
from tests.contract.test_wires import MIB, Echo, header_of, hear
from tests.credentials import Authority, CurveFarm, TlsFarm
from tests.on_loop import on_loop, until


@pytest.fixture
def tls(tmp_path):
    return TlsFarm(tmp_path / "tls")


@pytest.fixture
def curve(tmp_path):
    return CurveFarm(tmp_path / "curve", "me")


class Meeting(AsyncExitStack):
    """Opens front-ends and transports, and closes them."""

    def __init__(self) -> None:
        super().__init__()
        self.echoes: list[Echo] = []

    async def serve(self, kind, **protection):
        frontend = kind("127.0.0.1:0", self._converse, payload_bytes=MIB, most_sessions=8, **protection)
        self.push_async_callback(frontend.close)
        await frontend.start()
        return frontend

    async def serve_tls(self, cert, key, client_ca="", **options):
        return await self.serve(GrpcFrontend, tls=ServerTls(cert=cert, key=key, client_ca=str(client_ca), **options))

    async def serve_curve(self, curve, clients=None):
        own = ServerCurve(key_file=str(curve.secret_file), clients=str(clients or curve.clients))
        return await self.serve(ZmqFrontend, curve=own)

    async def say(self, frontend, number=1, **protection):
        """A transport that has said something."""
        kind = GrpcTransport if isinstance(frontend, GrpcFrontend) else ZmqTransport
        transport = kind(frontend.address, payload_bytes=MIB, close_s=1.0, **protection)
        self.push_async_callback(transport.close)
        await transport.open()
        transport.send(header_of(number))
        return transport

    async def refused(self, frontend, kind=HandshakeFailed, **protection) -> str:
        """What the transport says, after nothing of it reached the farm."""
        transport = await self.say(frontend, **protection)
        with pytest.raises(kind) as caught:
            await transport.receive()
        assert type(caught.value) is kind
        assert self.echoes == []
        return str(caught.value)

    def _converse(self, send) -> Echo:
        self.echoes.append(Echo(send))
        return self.echoes[-1]


def files(tls: TlsFarm, **own) -> TlsFiles:
    return TlsFiles(ca=str(tls.ca), **{name: str(file) for name, file in own.items()})


@on_loop
async def test_a_farm_by_an_unknown_authority(tls, tmp_path):
    other = Authority(tmp_path / "other").ca
    async with Meeting() as meeting:
        farm = await meeting.serve_tls(tls.cert, tls.key)
        said = await meeting.refused(farm, tls=TlsFiles(ca=str(other)))
        assert f"grpcs://{farm.address}: the server's certificate is by none of the authorities in ca={other}" in said
        said = await meeting.refused(farm, tls=TlsFiles())
        assert "by none of the usual public authorities" in said
        assert "ca= must name the certificate of the authority" in said


@on_loop
async def test_a_farm_whose_certificate_expired_while_it_ran(tls):
    cert, key = tls.authority.issue("old", "127.0.0.1", days=-1)
    async with Meeting() as meeting:
        farm = await meeting.serve_tls(cert, key, now=lambda: datetime.now(UTC) - timedelta(days=5))
        said = await meeting.refused(farm, tls=files(tls))
        assert "the server's certificate, or one that vouches for it, has expired" in said


@on_loop
async def test_a_farm_by_another_name(tls):
    cert, key = tls.authority.issue("elsewhere", "farm.example", "10.1.2.3")
    async with Meeting() as meeting:
        said = await meeting.refused(await meeting.serve_tls(cert, key), tls=files(tls))
        assert "the server's certificate is not for '127.0.0.1' (IP address mismatch" in said
        assert "subjectAltNames" in said


@on_loop
async def test_a_student_without_a_certificate_or_with_a_foreign_one(tls, tmp_path):
    other = Authority(tmp_path / "other")
    foreign_cert, foreign_key = other.issue("me", "student.example")
    old_cert, old_key = tls.authority.issue("me", "student.example", days=-1)
    async with Meeting() as meeting:
        farm = await meeting.serve_tls(tls.cert, tls.key, tls.ca)
        said = await meeting.refused(farm, tls=files(tls))
        assert "the server asks students for certificates: add cert=FILE&key=FILE" in said
        for cert, key in ((foreign_cert, foreign_key), (old_cert, old_key)):
            said = await meeting.refused(farm, tls=files(tls, cert=cert, key=key))
            assert f"the server does not accept this student's certificate, cert={cert}: expired, or by none" in said
        welcome = await meeting.say(farm, tls=files(tls, cert=tls.student_cert, key=tls.student_key))
        assert await hear(welcome) == (1, b"")


@on_loop
async def test_one_end_in_the_clear(tls, curve):
    own = CurveKeys(server_key=curve.public_key, client_key=str(curve.students["me"]))
    async with Meeting() as meeting:
        clear, encrypted = await meeting.serve(GrpcFrontend), await meeting.serve_tls(tls.cert, tls.key)
        assert "speaks in the clear, not TLS" in await meeting.refused(clear, tls=files(tls))
        assert "the farm speaks TLS: use grpcs://" in await meeting.refused(encrypted)
        clear, encrypted = await meeting.serve(ZmqFrontend), await meeting.serve_curve(curve)
        assert "server_key= allows CURVE alone: is it the right port?" in await meeting.refused(clear, curve=own)
        assert "the farm speaks CURVE: add ?server_key=KEY" in await meeting.refused(encrypted)


@on_loop
async def test_nobody_there_is_not_a_question_of_trust(tls):
    async with Meeting() as meeting:
        farm = await meeting.serve_tls(tls.cert, tls.key)
        await farm.close()
        assert f"grpcs://{farm.address}" in await meeting.refused(farm, SessionLost, tls=files(tls))


@on_loop
async def test_a_renewed_certificate_is_used_after_reloading_and_a_bad_one_is_not(tls):
    cert, key = tls.authority.issue("mistaken", "farm.example")
    async with Meeting() as meeting:
        farm = await meeting.serve_tls(cert, key)
        await meeting.refused(farm, tls=files(tls))
        cert.write_bytes(tls.cert.read_bytes())
        with pytest.raises(ValueError, match=r"mistaken\.key\.pem is not the key of the certificate"):
            farm.reload()
        assert "is not for" in await meeting.refused(farm, tls=files(tls))
        key.write_bytes(tls.key.read_bytes())
        farm.reload()
        assert await hear(await meeting.say(farm, tls=files(tls))) == (1, b"")


@on_loop
async def test_a_student_that_is_not_on_the_allow_list(curve, caplog):
    stranger = curve.stranger("mallory")
    caplog.set_level(logging.DEBUG)
    async with Meeting() as meeting:
        farm = await meeting.serve_curve(curve)
        said = await meeting.refused(farm, curve=CurveKeys(server_key=curve.public_key, client_key=str(stranger)))
        assert f"client_key={stranger}, is not on the farm's allow-list" in said
        assert "--curve-clients" in said
        said = await meeting.refused(farm, curve=CurveKeys(server_key=curve.public_key))
        assert "this student has no key of its own: make one (teacherfarm keys curve --out DIR)" in said
    pair = read_pair(stranger, "x")
    assert f"its key {pair.public} is not in --curve-clients" in caplog.text
    for file in (stranger, curve.secret_file):
        assert read_pair(file, "x").secret not in caplog.text


@on_loop
async def test_another_farms_key(curve, tmp_path):
    other = CurveFarm(tmp_path / "other")
    async with Meeting() as meeting:
        farm = await meeting.serve_curve(curve)
        keys = CurveKeys(server_key=other.public_key, client_key=str(curve.students["me"]))
        assert "is server_key= the key of this farm?" in await meeting.refused(farm, SessionLost, curve=keys)


@on_loop
async def test_anybody_who_knows_the_farms_key(curve):
    async with Meeting() as meeting:
        farm = await meeting.serve_curve(curve, "any")
        student = await meeting.say(farm, curve=CurveKeys(server_key=curve.public_key))
        assert await hear(student) == (1, b"")


@on_loop
async def test_who_is_taken_off_the_allow_list_is_told_and_not_heard_any_more(curve):
    keys = {name: CurveKeys(server_key=curve.public_key, client_key=str(curve.add(name))) for name in ("bob", "eve")}
    async with Meeting() as meeting:
        farm = await meeting.serve_curve(curve)
        bob, eve = [await meeting.say(farm, curve=keys[name]) for name in ("bob", "eve")]
        assert await hear(bob) == await hear(eve) == (1, b"")
        (curve.clients / "eve.public").unlink()
        farm.reload()
        header, _ = await eve.receive()
        assert type(decode_header(header).fault) is Unauthenticated
        eve.send(header_of(2))
        # Bob's message comes after hers.
        await until(lambda: "1 peer(s)" in repr(farm))
        bob.send(header_of(3))
        assert await hear(bob) == (3, b"")
        assert sorted(number for echo in meeting.echoes for number, _ in echo.heard) == [1, 1, 3]
        assert "is not on the farm's allow-list" in await self_refused(meeting, farm, keys["eve"])


async def self_refused(meeting, farm, keys) -> str:
    transport = await meeting.say(farm, curve=keys)
    with pytest.raises(HandshakeFailed) as caught:
        await transport.receive()
    return str(caught.value)


@on_loop
async def test_a_broken_allow_list_changes_nothing(curve):
    own = CurveKeys(server_key=curve.public_key, client_key=str(curve.students["me"]))
    async with Meeting() as meeting:
        farm = await meeting.serve_curve(curve)
        (curve.clients / "half.public").write_text('public-key = "123"')
        with pytest.raises(ValueError, match=r"half\.public, line 1"):
            farm.reload()
        assert await hear(await meeting.say(farm, curve=own)) == (1, b"")


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (TlsFiles(ca="nowhere.pem"), "ca=nowhere.pem: cannot read it: No such file"),
        (TlsFiles(ca="{ca}", cert="nowhere.pem", key="{key}"), "cert=nowhere.pem: cannot read it"),
        (TlsFiles(ca="{key}"), "holds no certificate in PEM"),
        (
            TlsFiles(ca="{ca}", cert="{cert}", key="{student_key}"),
            "is no key in PEM, or not the key of the certificate",
        ),
    ],
)
@on_loop
async def test_a_students_files_that_cannot_be_used_are_named(own, words, tls):
    named = {name: getattr(own, name).format(**vars(tls)) for name in ("ca", "cert", "key")}
    transport = GrpcTransport("127.0.0.1:1", payload_bytes=MIB, close_s=1.0, tls=TlsFiles(**named))
    with pytest.raises(ValueError, match=words):
        await transport.open()
    await transport.close()


@on_loop
async def test_a_students_key_file_that_cannot_be_used_is_named(curve):
    keys = CurveKeys(server_key=curve.public_key, client_key="nowhere.secret")
    transport = ZmqTransport("127.0.0.1:1", payload_bytes=MIB, close_s=1.0, curve=keys)
    with pytest.raises(ValueError, match=r"client_key: cannot read nowhere\.secret: No such file"):
        await transport.open()
    await transport.close()


def test_a_secret_shows_in_no_repr(curve):
    secrets = [read_pair(file, "x").secret for file in (curve.secret_file, curve.students["me"])]
    keys = CurveKeys(server_key=curve.public_key, client_key=str(curve.students["me"]))
    shown = [
        repr(ServerCurve(key_file=str(curve.secret_file), clients=str(curve.clients))),
        repr(keys),
        repr(ZmqTransport("h:1", payload_bytes=1, close_s=1.0, curve=keys)),
        repr(read_pair(curve.secret_file, "x")),
    ]
    assert not any(secret in text for secret in secrets for text in shown)


def test_a_farms_certificate_that_cannot_be_used_is_named(tls, tmp_path, caplog):
    def make(**changes):
        given = {"cert": str(tls.cert), "key": str(tls.key), "client_ca": ""} | changes
        return ServerTls(**given)

    assert "until" in repr(make())
    assert caplog.text == ""
    old_cert, old_key = tls.authority.issue("old", "127.0.0.1", days=-1)
    soon_cert, soon_key = tls.authority.issue("soon", "127.0.0.1", days=3)
    half = tmp_path / "half.pem"
    half.write_bytes(tls.cert.read_bytes()[:200])
    for changes, words in (
        ({"cert": "nowhere.pem"}, r"tls_cert: cannot read nowhere\.pem: No such file"),
        ({"key": "nowhere.pem"}, r"tls_key: cannot read nowhere\.pem: No such file"),
        ({"client_ca": "nowhere.pem"}, r"tls_client_ca: cannot read nowhere\.pem"),
        ({"cert": str(half)}, r"tls_cert: .*half\.pem holds no certificate in PEM"),
        ({"key": str(half)}, r"tls_key: .*half\.pem holds no private key in PEM"),
        ({"key": str(old_key)}, r"tls_key: .*old\.key\.pem is not the key of the certificate in .*farm\.pem"),
        ({"cert": str(old_cert), "key": str(old_key)}, r"old\.pem expired on \d{4}-\d\d-\d\d \d\d:\d\d UTC.*SIGHUP"),
        ({"client_ca": str(old_cert)}, r"tls_client_ca: the certificate in .*old\.pem expired on"),
        ({"now": lambda: datetime(2001, 1, 1, tzinfo=UTC)}, r"not valid before .* it is 2001-01-01 .*clock right"),
    ):
        with pytest.raises(ValueError, match=words):
            make(**changes)
    make(cert=str(soon_cert), key=str(soon_key))
    assert "soon.pem expires on" in caplog.text
