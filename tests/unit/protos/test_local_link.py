"""Connections within one machine send without pacing; all others, and what is no connection, stay as they are."""

import os
import socket
from pathlib import Path

import pytest

from teacherfarm.protos.local_link import UNPACED, is_loopback, stop_pacing
from tests.real_parts import absent

ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
DEFAULT = next((name for name in ALLOWED.read_bytes().split() if name != UNPACED), b"") if ALLOWED.exists() else b""
"""Told from what is chosen, whatever this system's own choice is."""


@pytest.fixture(autouse=True)
def a_choice():
    if not DEFAULT:
        absent("only Linux, with more than one congestion control, has a choice")


def control(link):
    return link.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request):
    with socket.socket(socket.AF_INET6 if ":" in request.param else socket.AF_INET) as listening:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, DEFAULT)
        try:
            listening.bind((request.param, 0))
        except OSError as error:
            absent(f"no {request.param} here: {error}")
        listening.listen()
        yield listening


def test_a_connection_within_the_machine_is_not_paced(listener):
    with socket.socket(listener.family) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, DEFAULT)
        link.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            assert (control(link), control(accepted)) == (DEFAULT, DEFAULT)
            assert stop_pacing(link.fileno())
            assert (control(link), control(accepted)) == (UNPACED, DEFAULT)
            link.sendall(b"still ours")
            assert accepted.recv(16) == b"still ours"


def test_who_connects_to_a_listener_within_the_machine_is_not_paced(listener):
    assert stop_pacing(listener.fileno())
    with socket.create_connection(listener.getsockname()[:2]):
        accepted, _ = listener.accept()
        with accepted:
            assert control(accepted) == UNPACED


def test_a_connection_from_an_address_to_itself_is_within_the_machine(monkeypatch):
    """A student on the farm's machine that was given the machine's name."""
    own, other = ("10.1.2.3", 50000), ("10.1.2.4", 7000)
    for peer, expected in ((("10.1.2.3", 7000), True), (other, False)):
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, DEFAULT)
            with monkeypatch.context() as patched:
                patched.setattr(socket.socket, "getsockname", lambda _: own)
                patched.setattr(socket.socket, "getpeername", lambda _, peer=peer: peer)
                assert stop_pacing(link.fileno()) is expected
            assert control(link) == (UNPACED if expected else DEFAULT)


def test_a_listener_that_other_machines_reach_stays_as_it_is():
    with socket.create_server(("0.0.0.0", 0)) as listening:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, DEFAULT)
        assert not stop_pacing(listening.fileno())
        assert control(listening) == DEFAULT


def test_what_is_no_such_socket_is_left_alone(tmp_path, monkeypatch):
    closed = os.open(tmp_path, os.O_RDONLY)
    before = os.listdir("/proc/self/fd")
    assert not stop_pacing(closed)
    assert os.listdir("/proc/self/fd") == before
    os.close(closed)
    assert not stop_pacing(closed)
    here, there = socket.socketpair()
    with here, there, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        assert not stop_pacing(here.fileno())
        assert not stop_pacing(datagrams.fileno())
    monkeypatch.delattr(socket, "TCP_CONGESTION")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert not stop_pacing(listening.fileno())


def test_loopback_addresses_and_names():
    for host in ("127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "127.example.org", ""):
        assert not is_loopback(host)
