"""``teacherfarm keys curve``: makes a CURVE key pair for a farm or a student, and says which half goes where."""

from __future__ import annotations

import argparse
import re
import socket
from pathlib import Path

from teacherfarm.protos.curve_keys import write_pair

DESCRIPTION = """\
Makes a key pair for ZeroMQ by CURVE: NAME.public to give away, NAME.secret to keep (only you can read it). The farm and
each student have a pair of their own, each made on the machine that keeps its secret file.
"""

EXAMPLE = """\
example:
  on the farm:     teacherfarm keys curve --out keys/ --name farm
                   mkdir keys/students
  on a student:    teacherfarm keys curve --out keys/ --name alice
                   (bring keys/alice.public to the farm, into keys/students/)
  on the farm:     teacherfarm serve models/ --zmq 0.0.0.0:7001 \\
                       --curve-key keys/farm.secret --curve-clients keys/students/
  on the student:  zmq://farm.example:7001?server_key=KEY&client_key=keys/alice.secret
                   (KEY: public-key in farm.public, 40 characters; quote the address in a shell, for its &)

A student's public file that comes or goes later: kill -HUP PID of the server. See docs/SECURITY.md.
"""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``teacherfarm keys curve`` takes."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the two files go")
    parser.add_argument("--name", default="", help="what they are called (default: this machine's name)")


def make(options: argparse.Namespace) -> int:
    """Make the pair. Raises ValueError where files of this name are there already."""
    name = options.name or socket.gethostname()
    if not NAME.fullmatch(name):
        raise ValueError(f"a key's name is 1 to 63 letters, digits, '.', '_' and '-', got {name!r}: --name")
    # Only now: help needs no zmq.
    from teacherfarm.teacher_server.frontends.curve import make_pair

    pair = make_pair()
    public_file, secret_file = write_pair(options.out, name, pair)
    print(
        f"{public_file}: to give away. A student's goes into the farm's --curve-clients folder.\n"
        f"{secret_file}: stays here. A farm's is its --curve-key, a student's its client_key=.\n"
        f"The public key, a farm's server_key=: {pair.public}"
    )
    return 0
