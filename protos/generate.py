"""Makes teacherfarm_pb2.py and .pyi from teacherfarm.proto: ``python -m teacherfarm.protos.generate [--check]``.

Needs grpcio-tools 1.76 and mypy-protobuf: stubs of later generators do not import beside tritonclient's protobuf 6.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import tempfile
from pathlib import Path

GENERATOR = "1.76"
STUBS = ("teacherfarm_pb2.py", "teacherfarm_pb2.pyi")


def generate(out: Path) -> None:
    """Write both stubs into ``out``."""
    from grpc_tools import protoc  # type: ignore[import-untyped]

    here = Path(__file__).resolve().parent
    # Beside this interpreter, which need not be on PATH.
    plugin = Path(sys.executable).parent / "protoc-gen-mypy"
    arguments = [
        "protoc",
        f"--plugin=protoc-gen-mypy={plugin}",
        f"-I{here}",
        f"--python_out={out}",
        f"--mypy_out={out}",
        "teacherfarm.proto",
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed, see above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the committed stubs are stale")
    options = parser.parse_args()
    version = importlib.metadata.version("grpcio-tools")
    if not version.startswith(GENERATOR):
        raise SystemExit(
            f"grpcio-tools {GENERATOR}.x makes these stubs, found {version}: pip install grpcio-tools~={GENERATOR}.0"
        )
    here = Path(__file__).resolve().parent
    if not options.check:
        generate(here)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = [name for name in STUBS if (Path(folder) / name).read_bytes() != (here / name).read_bytes()]
    if stale:
        sys.exit(f"{', '.join(stale)} do not match teacherfarm.proto: run make protos")


if __name__ == "__main__":
    main()
