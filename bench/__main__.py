"""``python -m bench NAME``: a table for people and one JSON line last."""

from __future__ import annotations

import argparse
import importlib
import sys

BENCHMARKS = {
    "service": "labels/s through the running server with EfficientNet-Lite0, over a bare ONNX Runtime loop",
    "wire": "crops/s through a server that computes nothing, over bare ZeroMQ and gRPC loops",
    "triton": "labels/s through the gateway from a Triton server, over straight tritonclient to the same Triton",
    "fairness": "shares of hungry projects beside their weights, and what one of them gets alone over all together",
    "failover": "labels lost, doubled or wrong, and the pause, when one of two Triton servers is killed under load",
    "replay": "labels/s from recorded labels, over FKD's and TinyViT's files of the same labels",
    "loader": "crops/s that crop_dataset cuts from JPEG files, over torchvision's ImageFolder and RandomResizedCrop",
    "reference": "labels/s of crops named by reference over crops sent as pixels, on a link of 200 Mbit/s",
    "fanout": "crops that the teacher computes for each one that four students ask for at about the same time",
    "warm": "labels/s of crops whose labels are kept, over labels/s of crops that come for the first time",
    "stall": "crops/s of a training loop with soft labels, over the same loop without a teacher",
}

STUDIES = {
    "accuracy": "top-1 of a student alone and by every method, with deviation and bytes on the wire (its own --help)",
}
"""What takes hours, and a command line of its own."""

WITH_MODELS = ("service", "triton", "fanout", "warm")


def main(arguments: list[str] | None = None) -> int:
    """0 after a benchmark; 2 and the list of them without a name."""
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in STUDIES:
        study = importlib.import_module(f"bench.{given[0]}")
        return int(study.main(given[1:]))
    listed = "\n".join(f"  {name:8} {about}" for name, about in {**BENCHMARKS, **STUDIES}.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"{__doc__}\n\nbenchmarks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", choices=list(BENCHMARKS), help="which one (see above)")
    parser.add_argument("--seconds", type=float, help="about how long to measure")
    parser.add_argument(
        "--models", help=f"{', '.join(WITH_MODELS)}: where the exported teacher is or is put (default: a cache folder)"
    )
    parser.add_argument(
        "--data", help="loader: your own JPEG files, a folder with one folder per class (default: made for it)"
    )
    options = parser.parse_args(given)
    if options.name is None:
        parser.print_help()
        return 2
    if options.seconds is not None and options.seconds <= 0:
        parser.error(f"--seconds must be positive, got {options.seconds:g}")
    if options.models is not None and options.name not in WITH_MODELS:
        parser.error(f"--models belongs to {', '.join(WITH_MODELS)}, not to {options.name}")
    if options.data is not None and options.name != "loader":
        parser.error(f"--data belongs to loader, not to {options.name}")
    benchmark = importlib.import_module(f"bench.{options.name}")
    chosen = {name: value for name in ("models", "data") if (value := getattr(options, name)) is not None}
    benchmark.run(options.seconds or benchmark.DEFAULT_SECONDS, **chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
