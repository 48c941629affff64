"""ZeroMQ's connections within one machine are not paced, on both ends; a port for other machines stays as it is."""

import asyncio
import os
import socket
from contextlib import closing

import pytest
import zmq

from teacherfarm.protos.local_link import UNPACED
from teacherfarm.student.transports.zmq_transport import ZmqTransport
from teacherfarm.teacher_server.frontends.zmq_frontend import listen
from tests.on_loop import on_loop
from tests.real_parts import absent


@pytest.fixture(autouse=True)
def a_choice():
    if not hasattr(socket, "TCP_CONGESTION"):
        absent("only Linux has a choice of congestion controls")


def controls(port):
    """(What it is, its congestion control) of this process's sockets at the port."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            own = os.dup(int(number))
        except OSError:
            continue
        try:
            link = socket.socket(fileno=own)
        except OSError:
            os.close(own)
            continue
        with link:
            if link.family != socket.AF_INET or link.type != socket.SOCK_STREAM:
                continue
            ends = [link.getsockname()[1]]
            try:
                ends.append(link.getpeername()[1])
            except OSError:
                ends.append(None)
            if port in ends:
                what = "listening" if ends[1] is None else "student" if ends[1] == port else "server"
                found.add((what, link.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")))
    return found


@on_loop
async def test_both_ends_of_a_connection_within_the_machine():
    with zmq.Context() as context, closing(context.socket(zmq.ROUTER)) as router:
        router.linger = 0
        address = listen(router, "127.0.0.1:0")
        student = ZmqTransport(address, payload_bytes=1 << 20, close_s=1.0)
        await student.open()
        expected = {("listening", UNPACED), ("server", UNPACED), ("student", UNPACED)}
        while controls(int(address.rpartition(":")[2])) != expected:
            await asyncio.sleep(0.01)
        await student.close()


def test_a_port_for_other_machines_stays_as_the_system_says():
    with zmq.Context() as context, closing(context.socket(zmq.ROUTER)) as router, socket.socket() as untouched:
        usual = untouched.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")
        address = listen(router, "0.0.0.0:0")
        assert controls(int(address.rpartition(":")[2])) == {("listening", usual)}
