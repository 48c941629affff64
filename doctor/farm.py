"""Checks of a farm's address, from the outside in: name, port, protocol, protection, key, teachers."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import urllib.error
import urllib.request

from teacherfarm.doctor.finding import Finding, ok, problem, warning
from teacherfarm.doctor.speaker import CONNECT_S, Speaker, certificate_days_left, who_speaks
from teacherfarm.protos.faults import HandshakeFailed, SessionLost, TeacherFarmFault, Unauthenticated
from teacherfarm.protos.local_link import is_loopback
from teacherfarm.student.listing import ServedTeacher, list_teachers_async
from teacherfarm.student.settings import Address, Timeouts

CERTIFICATE_DAYS = 14.0
ANSWER_S = 10.0
NEEDS: dict[str, tuple[Speaker, ...]] = {
    "zmq": ("zmq", "zmq with CURVE"),
    "grpc": ("grpc",),
    "grpcs": ("tls",),
    "triton": ("grpc",),
}
INSTEAD: dict[Speaker, str] = {
    "zmq": "this port takes zmq:// addresses",
    "zmq with CURVE": "this port takes zmq:// addresses, with ?server_key=KEY",
    "grpc": "this port takes grpc:// addresses (or triton://, if it is Triton's)",
    "tls": "this port takes grpcs:// addresses, with ?ca=FILE",
    "http": "this is an HTTP port, as the status page's: gRPC usually has 7000 and ZeroMQ 7001",
    "something else": "no teacherfarm server listens there: is the port right?",
}


def check_farm(place: Address, api_key: str) -> tuple[list[Finding], list[ServedTeacher]]:
    """The findings, and the teachers that the farm showed; none where it could not be asked."""
    reached = check_port(place)
    if any(finding.level == "problem" for finding in reached):
        return reached, []
    findings = [*reached, *check_protection(place)]
    try:
        teachers = asyncio.run(list_teachers_async(full(place), api_key=api_key, timeouts=Timeouts(connect_s=ANSWER_S)))
    except (TeacherFarmFault, ValueError) as fault:
        return [*findings, check_refusal(place, fault, api_key)], []
    findings.append(check_key(place, api_key))
    return [*findings, *check_teachers(place, teachers)], teachers


def full(place: Address) -> str:
    """The address with its options, as it can be parsed again."""
    options = []
    if place.tls is not None:
        options = [("ca", place.tls.ca), ("cert", place.tls.cert), ("key", place.tls.key)]
    if place.curve is not None:
        options = [("server_key", place.curve.server_key), ("client_key", place.curve.client_key)]
    query = "&".join(f"{name}={value}" for name, value in options if value)
    return f"{place}?{query}" if query else str(place)


def host_and_port(place: Address) -> tuple[str, int]:
    """HOST:PORT taken apart."""
    host, _, port = place.place.rpartition(":")
    return host.strip("[]"), int(port)


def check_port(place: Address) -> list[Finding]:
    """Does the name resolve, does something listen, and does it speak what the address says?"""
    host, port = host_and_port(place)
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except socket.gaierror as error:
        return [
            problem(
                "name", f"{host} is not known here ({error.strerror or error})", "check the spelling, DNS or /etc/hosts"
            )
        ]
    findings = [] if {host} == addresses else [ok("name", f"{host} is {', '.join(sorted(addresses))}")]
    try:
        speaker = who_speaks(host, port)
    except ConnectionRefusedError:
        return [
            *findings,
            problem(
                "port",
                f"nothing listens on {place.place}",
                "start the server there (teacherfarm serve models/), and is the port right? A server listens on "
                "127.0.0.1 alone unless it was told another address",
            ),
        ]
    except TimeoutError:
        return [
            *findings,
            problem(
                "port",
                f"no answer from {place.place} within {CONNECT_S:g} s",
                "a firewall drops packets, or the machine is off: ask from the server itself with 127.0.0.1",
            ),
        ]
    except OSError as error:
        return [*findings, problem("port", f"{place.place} cannot be reached: {error}", "check the network between")]
    findings.append(ok("port", f"{place.place} takes connections"))
    if speaker not in NEEDS[place.scheme]:
        wrong = f"{place} does not fit what listens there: {speaker}"
        return [*findings, problem("protocol", wrong, INSTEAD[speaker])]
    if speaker == "zmq with CURVE" and place.curve is None:
        add = "add ?server_key=KEY, the farm's public key (its ready line shows it)"
        return [*findings, problem("protocol", f"{place} speaks CURVE, and the address names no key", add)]
    return [*findings, ok("protocol", speaker)]


def check_protection(place: Address) -> list[Finding]:
    """Is what travels readable on the way, and for how long is the certificate good?"""
    host, port = host_and_port(place)
    if place.tls is not None:
        files = place.tls
        days = certificate_days_left(host, port, files.ca, files.cert, files.key, time.time())
        if days is None:
            return []  # the handshake itself says what is wrong
        if days < CERTIFICATE_DAYS:
            renew = "renew it and restart the server"
            return [warning("certificate", f"the server's certificate expires in {days:.0f} days", renew)]
        return [ok("certificate", f"good for {days:.0f} more days")]
    if place.curve is not None:
        return [ok("encryption", "CURVE")]
    if is_loopback(host):
        return [ok("encryption", "none, and none is needed within one machine")]
    return [
        warning(
            "encryption",
            f"crops and API keys travel to {host} in the clear",
            "inside a network that you trust that may do; elsewhere grpcs://, or zmq:// with ?server_key=KEY",
        )
    ]


def check_refusal(place: Address, fault: Exception, api_key: str) -> Finding:
    """Why a farm that listens does not show its teachers."""
    match fault:
        case HandshakeFailed():
            return problem("handshake", str(fault), "docs/SECURITY.md goes through certificates and CURVE keys")
        case Unauthenticated():
            shown = "a key was given and is not accepted" if api_key else "no key was given"
            return problem(
                "API key",
                f"{shown}: {fault}",
                "TEACHERFARM_API_KEY=... teacherfarm doctor ...; on the server, teacherfarm keys create PROJECT "
                "makes one",
            )
        case SessionLost():
            return problem("answer", str(fault), "look at the server's log; does it run the same release?")
        case _:
            return problem("answer", f"{type(fault).__name__}: {fault}", 'docs/USING.md, "Trouble, by fault"')


def check_key(place: Address, api_key: str) -> Finding:
    """Whether the key was needed."""
    if place.scheme == "triton":
        return ok("API key", "Triton asks for none: everybody who reaches it can use it")
    if not api_key:
        return ok("API key", "none was given, and this farm asks for none")
    try:
        asyncio.run(list_teachers_async(full(place), api_key="", timeouts=Timeouts(connect_s=ANSWER_S)))
    except TeacherFarmFault:
        return ok("API key", "accepted")
    return ok("API key", "one was given, but this farm asks for none")


def check_teachers(place: Address, teachers: list[ServedTeacher]) -> list[Finding]:
    """Are there any, and is each ready?"""
    if not teachers:
        nothing = "the farm answers, and shows no teacher"
        return [
            problem("teachers", nothing, "teachers = [...] of the project in the projects file says what it may use")
        ]
    findings = []
    for teacher in teachers:
        name = f"teacher {teacher.name}"
        if teacher.state == "ready" and teacher.card is not None:
            findings.append(ok(name, f"ready, digest {teacher.teacher_digest[:12]}"))
            continue
        why = f": {teacher.fault}" if teacher.fault is not None else ""
        if teacher.state == "loading":
            findings.append(warning(name, f"still loading{why}", "wait; /readyz and the server's log say more"))
        else:
            log = "the server's log says more; on its machine: teacherfarm doctor MODELS"
            findings.append(problem(name, f"it is {teacher.state}{why}", log))
    return findings


def check_status_page(url: str) -> list[Finding]:
    """A server's http:// address: alive, ready, and what its teachers are."""
    base = url.rstrip("/")
    try:
        status, text = _get(f"{base}/readyz")
    except OSError as error:
        reason = getattr(error, "reason", error)
        start = "is the server running, and is this its --http address?"
        return [problem("status page", f"{base} does not answer: {reason}", start)]
    if status == 404:
        return [problem("status page", f"{base} has no /readyz", "this is another program's port")]
    findings = [ok("status page", f"{base} answers")]
    if status != 200:
        findings.append(problem("ready", text.strip(), "the server's log says why; students wait meanwhile"))
    else:
        findings.append(ok("ready", "every teacher is served"))
        findings += [
            warning("kept labels", line, "the server's log says since when; it goes on and tries again by itself")
            for line in text.splitlines()
            if line.startswith("ready, but")
        ]
    try:
        shown = json.loads(_get(f"{base}/teachers")[1])
        findings += [ok(f"teacher {t['name']}", f"{t['state']}, digest {t['teacher_digest'][:12]}") for t in shown]
    except (OSError, ValueError, KeyError, TypeError):
        findings.append(problem("teachers", f"{base}/teachers is no list of teachers", "is it a teacherfarm server?"))
    return findings


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
