"""The ``teacherfarm`` command: finds the sub-command, loads that one's module alone, and turns faults into
one line.

Knows the sub-commands' names and modules; what they take and do is theirs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol, cast

from teacherfarm import __version__
from teacherfarm.protos.faults import TeacherFarmFault

DESCRIPTION = """\
Serves frozen teachers to students that train elsewhere: a teacher is exported once, one farm serves it, and students
anywhere send crops over gRPC or ZeroMQ and get soft labels back while they train.
"""

EPILOG = """\
three commands from nothing to a student:
  teacherfarm export efficientnet-lite0 --out models/
  teacherfarm serve models/ --zmq 127.0.0.1:7001
  teacherfarm distill DATA --teacher-address zmq://127.0.0.1:7001 --student torchvision:resnet18 --out runs/first

or see it all at once, in a few minutes on two cores:  teacherfarm demo
a command's own help:  teacherfarm COMMAND --help
benchmarks, from a checkout:  python -m bench service | wire | stall | fanout | warm | replay | loader

Exit status: 0 done; 1 it could not be done; 2 wrong arguments. Errors are one line; --debug (or TEACHERFARM_DEBUG=1)
shows where they came from.
"""


class Module(Protocol):
    """What the module of a sub-command offers."""

    def add_arguments(self, parser: argparse.ArgumentParser, *given: Sequence[str]) -> None: ...
    def main(self, options: argparse.Namespace) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Command:
    """A sub-command. ``extra``: which of the distribution's extras brings all that it needs. ``looks_ahead``: which
    arguments it takes depends on those given (add_arguments is told them as well).
    """

    name: str
    module: str
    extra: str
    about: str
    looks_ahead: bool = False


COMMANDS = (
    Command(
        name="export",
        module="teacherfarm.export.command",
        extra="export",
        about="make a trained model a teacher: verified ONNX and a card",
    ),
    Command(
        name="serve",
        module="teacherfarm.teacher_server.__main__",
        extra="server",
        about="serve exported teachers over gRPC and ZeroMQ",
    ),
    Command(
        name="teachers",
        module="teacherfarm.student.listing",
        extra="student",
        about="list what a farm serves: name, state, digest, input",
    ),
    Command(
        name="keys",
        module="teacherfarm.teacher_server.keys_command",
        extra="server",
        about="make, list and revoke a farm's API keys",
    ),
    Command(
        name="check",
        module="teacherfarm.student.recipes.check_command",
        extra="student",
        about="does a teacher fit your images and your training crops?",
    ),
    Command(
        name="label",
        module="teacherfarm.student.recipes.label_command",
        extra="student",
        about="label a whole data set beforehand, to train from without a teacher",
    ),
    Command(
        name="distill",
        module="teacherfarm.student.recipes.distill_command",
        extra="student",
        about="train a student on an image folder, by a method of distillation",
        looks_ahead=True,
    ),
    Command(
        name="methods",
        module="teacherfarm.student.recipes.methods_command",
        extra="student",
        about="list the methods of distillation: what each asks of the teacher, bytes per crop, settings",
    ),
    Command(
        name="dataset",
        module="teacherfarm.student.recipes.dataset_command",
        extra="student",
        about="what a data set of images holds: names, hashes, sizes, classes",
    ),
    Command(
        name="labels",
        module="teacherfarm.student.recipes.labels_command",
        extra="student",
        about="look after kept labels: a server's store, recorded labels, other projects' files",
    ),
    Command(
        name="plan",
        module="teacherfarm.student.recipes.plan_command",
        extra="student",
        about="teacher in the loop, streaming or recording: hours, bytes and cores of each, and the cheapest",
    ),
    Command(
        name="doctor",
        module="teacherfarm.doctor.command",
        extra="student",
        about="what is wrong with an installation, a model directory, a farm or the link to it",
    ),
    Command(
        name="demo",
        module="teacherfarm.demo.command",
        extra="demo",
        about="all of it in small, then the labels of photographs",
    ),
)


def make_parser(chosen: str | None, arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line with the arguments of the ``chosen`` sub-command; the others are names and one line
    each.
    """
    parser = argparse.ArgumentParser(
        prog="teacherfarm",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"teacherfarm {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS:
        sentence = command.about[0].upper() + command.about[1:] + "."
        own = commands.add_parser(command.name, help=command.about, description=sentence)
        # Not a second default: it would undo a --debug that stands before the sub-command's name.
        own.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        if command.name == chosen:
            load(command).add_arguments(own, *([arguments] if command.looks_ahead else []))
    return parser


def load(command: Command) -> Module:
    """Import what a sub-command needs to know its arguments."""
    return cast("Module", importlib.import_module(command.module))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit status; with ``--debug`` its exceptions pass through."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    command = next((command for command in COMMANDS if command.name == name), None)
    if command is None:
        # --version, --help and misspelt names end here, by SystemExit.
        parser = make_parser(None)
        parser.parse_args(arguments)
        parser.print_help()
        return 0
    debug = "--debug" in arguments or os.environ.get("TEACHERFARM_DEBUG", "") not in ("", "0")
    try:
        parser = make_parser(command.name, arguments)
        options = parser.parse_args(arguments)
        with nullcontext() if debug else warnings_in_one_line():
            return load(command).main(options)
    except KeyboardInterrupt:
        print(f"\nteacherfarm {command.name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough; without this the interpreter complains once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if debug:
            raise
        sentence, status = explain(command, error)
        if sentence is None:
            raise
        print(f"teacherfarm {command.name}: {sentence}", file=sys.stderr)
        return status


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Whoever types a command is not helped by the line of ours that warned."""
    former = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = former


def explain(command: Command, error: Exception) -> tuple[str | None, int]:
    """An error in one line and the exit status; no line for what only a traceback explains."""
    if isinstance(error, ModuleNotFoundError):
        return explain_absent(command, error), 1
    if isinstance(error, TeacherFarmFault):
        return f"{type(error).__name__}: {error}", 1
    if isinstance(error, ValueError):
        return str(error), 2
    if isinstance(error, OSError):
        return f"{type(error).__name__}: {error}", 1
    return None, 1


def explain_absent(command: Command, error: ModuleNotFoundError) -> str | None:
    """What to install; no line where it is our own module that is missing."""
    absent = error.name or ""
    if not absent or absent.partition(".")[0] == "teacherfarm":
        return None
    or_gpu = " (with an NVIDIA GPU: 'teacherfarm[gpu]')" if command.extra == "server" else ""
    return (
        f"needs the module {absent!r}, which is not installed here: pip install "
        f"'teacherfarm[{command.extra}]'{or_gpu}, or from a checkout pip install '.[{command.extra}]'"
    )


if __name__ == "__main__":
    sys.exit(main())
