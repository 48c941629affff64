"""``teacherfarm demo``: its command line, its two parts in order, and what to do next."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from teacherfarm.demo.steps import say, step

PARTS = ("digits", "photographs")
DESCRIPTION = """\
See it work, in about two minutes on two cores; nothing is downloaded.

digits        a net learns handwritten digits, is exported and served by a process of its own; a student of a thirtieth
              of its size, which sees 20 labels, learns from its soft labels, over ZeroMQ and then over gRPC
photographs   EfficientNet-Lite0 is exported and served, and labels photographs that come with scikit-image and
              scikit-learn
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``teacherfarm demo`` takes."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo-output"),
        metavar="FOLDER",
        help="where pictures, teachers and logs go [demo-output]",
    )
    parser.add_argument("--only", choices=PARTS, help="one of the two parts")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="students of each kind [3]")
    parser.add_argument("--passes", type=int, default=20, metavar="N", help="passes over the digits of a student [20]")


def main(options: argparse.Namespace) -> int:
    """Run the parts that were asked for."""
    for name in ("seeds", "passes"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(options, name)}")
    # An end from outside unwinds like Ctrl-C, so that the server ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started_s = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    with step("load the libraries"):
        import torch

        from teacherfarm.demo import distilling, photographs, pictures

        # The server needs the other core.
        torch.set_num_threads(1)
    drawn = []
    if options.only != "photographs":
        say()
        found = distilling.run(options.out, distilling.Scale(seeds=options.seeds, student_passes=options.passes))
        drawn.append(options.out / "digits.png")
        pictures.draw_digits(found, drawn[-1])
        say()
        say(distilling.table(found))
        say()
        equal = "equal to the last bit" if distilling.wires_agree(found) else "alike"
        say(f"    Both wires brought the same labels: their students are {equal}.")
    if options.only != "digits":
        say()
        labelled = photographs.run(options.out)
        drawn.append(options.out / "photographs.png")
        pictures.draw_photographs(labelled, drawn[-1])
        say()
        for photograph in labelled.photographs:
            best = ", ".join(
                f"{name} {share:.0%}"
                for name, share in zip(photograph.classes[:3], photograph.probabilities[:3], strict=True)
            )
            say(f"    {photograph.name:<12}{best}")
    say()
    say(f"Done after {time.monotonic() - started_s:.0f} s. Look at {' and '.join(map(str, drawn))}.")
    say(next_steps(options.out, "efficientnet-lite0" if options.only != "digits" else "digits"))
    return 0


def next_steps(out: Path, teacher: str) -> str:
    """The commands that go on from here, as they can be typed here."""
    models, command = out / "models", own_command()
    return f"""
Next, with the teachers of this demo:
  {command} serve {models}    (keeps running; the others in another terminal)
  {command} teachers zmq://127.0.0.1:7001
  curl http://127.0.0.1:7002/metrics
and with your own images, DATA/train/CLASS/*.jpg and DATA/val/CLASS/*.jpg:
  {command} check   DATA --teacher-address zmq://127.0.0.1:7001 --teacher {teacher}
  {command} distill DATA --teacher-address zmq://127.0.0.1:7001 --teacher {teacher} \\
      --student torchvision:resnet18 --out runs/first"""


def own_command() -> str:
    """``teacherfarm``, or its path where the user's shell would not find it: in an environment that is not active."""
    script = Path(sys.executable).with_name("teacherfarm")
    if sys.prefix == sys.base_prefix or os.environ.get("VIRTUAL_ENV") == sys.prefix:
        return "teacherfarm"
    if not script.is_file():
        return f"{sys.executable} -m teacherfarm.cli"
    return str(script.relative_to(Path.cwd())) if script.is_relative_to(Path.cwd()) else str(script)
