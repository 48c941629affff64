"""Tries libraries in a process of their own: a broken one may crash, and a whole one is heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

LONGEST_S = 120.0
ERROR_CHARACTERS = 300

PROGRAM = """
import importlib, json, sys
for name in sys.argv[2:]:
    found = {"name": name, "error": "", "providers": [], "failing": {}}
    print(json.dumps({"name": name, "error": "the interpreter crashed"}), flush=True)
    try:
        module = importlib.import_module(name)
        if name == "onnxruntime":
            module.set_default_logger_severity(4)
            for provider in set(module.get_available_providers()) - {"AzureExecutionProvider"}:
                try:
                    session = module.InferenceSession(bytes.fromhex(sys.argv[1]), providers=[provider])
                    if provider not in session.get_providers():
                        raise RuntimeError("it does not load; onnxruntime's own warnings say which library it misses")
                    found["providers"].append(provider)
                except Exception as error:
                    found["failing"][provider] = str(error)
    except BaseException as error:
        found["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(found), flush=True)
"""
MODEL = (
    "08083a390a100a017812017922084964656e7469747912036f6e655a0f0a0178120a0a08080112040a020801620f0a017912"
    "0a0a08080112040a02080142040a00100d"
)
"""One Identity node over float32 [1], as ONNX (opset 13)."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """How importing a library went; for onnxruntime, which providers ran a model, and why others did not."""

    error: str = ""
    providers: tuple[str, ...] = ()
    failing_providers: dict[str, str] = field(default_factory=dict)


def try_imports(names: Sequence[str]) -> dict[str, Imported]:
    """Import each, in order, in one other process; the one that takes the process down is named, the rest are not
    tried.
    """
    if not names:
        return {}
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, MODEL, *names],
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
        output = done.stdout
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else error.stdout or ""
    results: dict[str, Imported] = {}
    for line in output.splitlines():
        try:
            found = json.loads(line)
        except ValueError:  # a library that prints
            continue
        results[found["name"]] = Imported(
            error=found["error"][:ERROR_CHARACTERS],
            providers=tuple(found.get("providers", ())),
            failing_providers={name: why[:ERROR_CHARACTERS] for name, why in found.get("failing", {}).items()},
        )
    return results
