"""``teacherfarm doctor``: its command line, which checks a target gets, and the report."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

from teacherfarm.doctor.finding import Finding, as_json, as_text, ok, problem, worst
from teacherfarm.protos.faults import TeacherFarmFault

if TYPE_CHECKING:
    from teacherfarm.student.settings import Address

DESCRIPTION = """\
Looks at one thing and says in plain words what is wrong and what to do.

without a target   this installation: versions, traps, what imports, what ONNX Runtime can compute on
MODELS             a model directory: cards, digests, golden answers, what is half written
ADDRESS            a farm, as a student sees it: name, port, protocol, protection, key, teachers; then the link:
                   round trip, bandwidth, labels/s, and who is the bound (a few seconds of the teachers' time)
http://HOST:PORT   a server's status page: ready, or why not
"""
EPILOG = """\
examples:
  teacherfarm doctor
  teacherfarm doctor models/
  teacherfarm doctor zmq://10.0.0.5:7001 --student-rate 2000
  teacherfarm doctor "grpcs://farm.example.org:7000?ca=ca.pem" --teacher resnet50 --json

Exit status: 0 all is well or may only surprise; 1 there is a problem; 2 wrong arguments.
"""
DEFAULT_SECONDS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``teacherfarm doctor`` takes."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("target", nargs="?", default="", metavar="TARGET", help="MODELS or ADDRESS: see above")
    parser.add_argument("--teacher", default="", metavar="NAME", help="which teacher to measure [the first ready one]")
    parser.add_argument(
        "--seconds", type=float, default=DEFAULT_SECONDS, metavar="S", help="how long to ask for labels; 0: not [5]"
    )
    parser.add_argument(
        "--student-rate", type=float, metavar="N", help="crops/s of your training loop: would this farm feed it?"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of sentences")


def main(options: argparse.Namespace) -> int:
    """Check the target and print the report; 1 where something is a problem."""
    if options.seconds < 0:
        raise ValueError(f"--seconds must not be negative, got {options.seconds:g}")
    if options.student_rate is not None and not options.student_rate > 0:
        raise ValueError(f"--student-rate must be positive, got {options.student_rate:g}")
    findings, figures = check(options)
    if options.json:
        print(json.dumps(as_json(options.target or "this installation", findings, figures), indent=2))
    else:
        print(as_text(findings))
    return 1 if worst(findings) == "problem" else 0


def check(options: argparse.Namespace) -> tuple[list[Finding], dict[str, float]]:
    """The findings about the target, and what was measured."""
    target: str = options.target
    if not target:
        from teacherfarm.doctor.installation import check_installation

        return check_installation(), {}
    if target.startswith(("http://", "https://")):
        from teacherfarm.doctor.farm import check_status_page

        return check_status_page(target), {}
    if "://" not in target or target.startswith("local://"):
        from teacherfarm.doctor.models import check_models

        return check_models(Path(target.removeprefix("local://"))), {}
    return check_addresses(options)


def check_addresses(options: argparse.Namespace) -> tuple[list[Finding], dict[str, float]]:
    """Every address that was given, and the link to the first where a teacher is ready."""
    from teacherfarm.doctor.farm import check_farm
    from teacherfarm.student.settings import choose_api_key, parse_addresses

    places, key = parse_addresses(options.target), choose_api_key(None)
    findings: list[Finding] = []
    figures: dict[str, float] = {}
    for place in places:
        if place.scheme == "local":
            raise ValueError(f"{place} beside other addresses: look at it alone, teacherfarm doctor {place.place}")
        if len(places) > 1:
            findings.append(ok("address", str(place)))
        found, teachers = check_farm(place, key)
        findings += found
        ready = [teacher.name for teacher in teachers if teacher.state == "ready"]
        if options.teacher and teachers and options.teacher not in ready:
            shown = ", ".join(teacher.name for teacher in teachers)
            findings.append(
                problem("--teacher", f"{options.teacher} is not ready here; shown are: {shown}", "another --teacher")
            )
        elif ready and not figures and options.seconds:
            found, figures = check_link(options, place, options.teacher or ready[0], key)
            findings += found
    return findings, figures


def check_link(
    options: argparse.Namespace, place: Address, teacher: str, api_key: str
) -> tuple[list[Finding], dict[str, float]]:
    """Measure, and say what the figures mean."""
    from teacherfarm.doctor.link import measure
    from teacherfarm.doctor.verdict import link_findings
    from teacherfarm.protos.allocator import keep_large_buffers

    keep_large_buffers()
    try:
        found = asyncio.run(measure(place, teacher, api_key, seconds=options.seconds))
    except (TeacherFarmFault, TimeoutError) as fault:
        trouble = f"{type(fault).__name__}: {fault}" if str(fault) else "no answer in time"
        return [problem("labels", trouble, 'docs/USING.md, "Trouble, by fault"; the server\'s log says more')], {}
    measured = {
        "round_trip_s": found.rtt_s,
        "up_bytes_per_s": found.up_bytes_per_s,
        "raw_crops_per_s": found.raw_per_s,
        "jpeg_crops_per_s": found.jpeg_per_s,
        "labels_per_s": found.labels_per_s,
        "teachers_busy": found.load.busy if found.load is not None else None,
    }
    figures = {name: value for name, value in measured.items() if value is not None}
    return link_findings(found, options.student_rate), figures
