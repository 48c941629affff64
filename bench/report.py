"""What a benchmark prints: a table for people, then one JSON line for programs."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from bench.interleave import Ratio, high

LIBRARIES = ("numpy", "protobuf", "pyzmq", "grpcio", "onnxruntime", "torch", "xxhash")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contestant in the table; the reference itself has no ratio."""

    name: str
    rates: Sequence[float]
    ratio: Ratio | None = None


def say(text: str) -> None:
    """A line for people, at once."""
    print(text, flush=True)


def table(rows: Sequence[Row], *, unit: str = "crops/s") -> str:
    """Crops/s, or ``unit``, at the median and the 90th percentile, and the ratio to the reference with its spread."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'':{width}}  {f'{unit} p50':>12} {'p90':>9} {'slices':>7} {'ratio':>7} {'spread':>7}"]
    for row in rows:
        middle = sorted(row.rates)[len(row.rates) // 2]
        figures = f"{row.ratio.value:7.3f} {row.ratio.spread:7.3f}" if row.ratio else f"{'1':>7} {'':>7}"
        lines.append(f"{row.name:{width}}  {middle:12,.0f} {high(row.rates):9,.0f} {len(row.rates):7} {figures}")
    return "\n".join(lines)


def json_line(figures: Mapping[str, float]) -> str:
    """The figures, the machine and the versions, on one line."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    values: dict[str, object] = {name: round(value, 4) for name, value in figures.items()}
    values["machine"] = {"cores": len(os.sched_getaffinity(0)), "cpu": _cpu_model(), "system": platform.platform()}
    values["versions"] = found
    return json.dumps(values)


def finish(figures: Mapping[str, float]) -> None:
    """Print the JSON line, the last of the output."""
    sys.stdout.flush()
    say(json_line(figures))


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            found = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        found = []
    return found[0] if found else platform.machine()
