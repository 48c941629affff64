"""The client's addresses, timeouts and delays: parsed once, and refused in words."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils.z85 import encode

from teacherfarm.protos.faults import Overloaded, SessionLost
from teacherfarm.student.retry import FIRST_DELAY_S, LONGEST_DELAY_S, Backoff
from teacherfarm.student.settings import Address, CurveKeys, Timeouts, TlsFiles, parse_addresses, preference

KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"  # ZeroMQ's own example, of characters that mean something in URLs
SECRET = "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("zmq://127.0.0.1:7001", ["zmq://127.0.0.1:7001"]),
        (" grpc://h:1 , zmq://h:2,", ["grpc://h:1", "zmq://h:2"]),
        ("local://models/", ["local://models/"]),
        ("local:///abs/models", ["local:///abs/models"]),
        ("zmq://[::1]:7001", ["zmq://[::1]:7001"]),
        ("grpc://h:1/", ["grpc://h:1"]),
    ],
)
def test_addresses(text, expected):
    assert [str(address) for address in parse_addresses(text)] == expected


def test_a_server_key_may_be_pasted_as_it_is_or_percent_encoded():
    for text in (KEY, quote(KEY, safe="")):
        for client_key in ("", "&client_key=/keys/me.secret"):
            [address] = parse_addresses(f"zmq://h:1?server_key={text}{client_key}")
            assert address.curve.server_key == KEY
            assert address.curve.client_key == client_key.removeprefix("&client_key=")
    both = parse_addresses(f"zmq://h:1?server_key={KEY},zmq://g:1?client_key=a%2Cb&server_key={KEY}")
    assert [str(address) for address in both] == ["zmq://h:1", "zmq://g:1"]
    assert both[1].curve.client_key == "a,b"


@given(st.binary(min_size=32, max_size=32))
def test_every_key_can_be_pasted(raw):
    key = encode(raw).decode()
    for text in (key, quote(key)):
        [address] = parse_addresses(f"zmq://h:1?server_key={text}&client_key=f")
        assert address.curve == CurveKeys(server_key=key, client_key="f")


def test_tls_files():
    [plain, full] = parse_addresses("grpcs://h:1,grpcs://h:2?ca=certs/ca.pem&cert=me.pem&key=my%20key.pem")
    assert (str(plain), plain.tls) == ("grpcs://h:1", TlsFiles())
    assert full.tls == TlsFiles(ca="certs/ca.pem", cert="me.pem", key="my key.pem")
    assert parse_addresses("grpc://h:1")[0].tls is None
    assert parse_addresses("zmq://h:1")[0].curve is None


def test_an_address_shows_no_files_and_no_keys():
    [address] = parse_addresses(f"zmq://h:1?server_key={KEY}&client_key={SECRET}")
    assert str(address) == "zmq://h:1"
    assert SECRET not in repr(address)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no address"),
        (" , ", "no address"),
        ("127.0.0.1:7001", r"'127.0.0.1:7001' is not an address.*zmq://.*for example"),
        ("http://h:1", "expected one of"),
        ("zmq://h", "needs a host and a port"),
        ("zmq://:7001", "needs a host and a port"),
        ("zmq://h:0", "needs a host and a port"),
        ("zmq://h:70000", "'zmq://h:70000'"),
        ("zmq://h:x", "'zmq://h:x'"),
        ("zmq://h:1/path", "has a path"),
        ("zmq://h:1?server_kye=K", "'zmq://h:1' has an unknown option server_kye; zmq:// takes server_key, client_key"),
        ("grpc://h:1?ca=f", "unknown option ca; grpc:// takes none; grpcs:// takes ca, cert, key"),
        ("grpcs://h:1?ca", "has the option ca without a value"),
        ("grpcs://h:1?ca=f&ca=g", "has the option ca twice"),
        ("grpcs://h:1?cert=f", "has cert= but not key=: a certificate and its key come together"),
        ("grpcs://h:1?ca=f&key=g", "has key= but not cert="),
        ("zmq://h:1?client_key=f", "has client_key= but not server_key="),
        ("zmq://h:1?server_key=short", "server_key of 'zmq://h:1' must be a CURVE key.*got 5 characters"),
        (f"zmq://h:1?server_key={KEY[:-1]}~", "which has no '~'"),
        ("local://", "model directory"),
        ("zmq://h:1,grpc://", "needs a host"),
    ],
)
def test_bad_addresses_are_named(text, words):
    with pytest.raises(ValueError, match=words):
        parse_addresses(text)


@given(st.permutations(["zmq://a:1", "zmq://b:2", "grpc://c:3", "grpc://d:4"]), st.text(max_size=8))
def test_all_students_of_a_teacher_prefer_the_same_gateway(order, teacher):
    once = preference(parse_addresses(",".join(order)), teacher)
    assert once == preference(parse_addresses(",".join(sorted(order))), teacher)
    assert sorted(map(str, once)) == sorted(order)


def test_teachers_spread_over_gateways_and_stay_when_another_one_leaves():
    addresses = tuple(Address(scheme="zmq", place=f"h{n}:1") for n in range(4))
    first = {f"t{n}": preference(addresses, f"t{n}")[0] for n in range(200)}
    counts = [list(first.values()).count(address) for address in addresses]
    assert min(counts) > 20
    for teacher, address in first.items():
        if address != addresses[3]:
            assert preference(addresses[:3], teacher)[0] == address


@pytest.mark.parametrize("name", ["connect_s", "answer_s", "close_s"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_timeouts_are_positive(name, value):
    with pytest.raises(ValueError, match=f"timeouts.{name} must be positive"):
        Timeouts(**{name: value})


def test_delays_double_up_to_the_longest_and_start_anew():
    backoff = Backoff(0.5)
    delays = [backoff.failed(SessionLost()) for _ in range(50)]
    assert delays[:4] == [FIRST_DELAY_S * 2**n for n in range(4)]
    assert delays[-1] == LONGEST_DELAY_S
    backoff.succeeded()
    assert backoff.failed(SessionLost()) == FIRST_DELAY_S


def test_students_do_not_come_back_in_step():
    delays = {Backoff(spread / 10).failed(SessionLost()) for spread in range(10)}
    assert len(delays) == 10
    assert max(delays) < 2 * min(delays)


def test_a_time_that_the_server_named_is_kept_to():
    backoff = Backoff(0.0)
    assert backoff.failed(Overloaded(retry_after_s=3.0)) == 3.0
    assert backoff.failed(Overloaded(retry_after_s=0.001)) >= 0.75 * FIRST_DELAY_S
