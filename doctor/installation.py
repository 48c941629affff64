"""Checks of this Python and what is installed in it. Each looks at one thing; nothing heavy is imported here."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from teacherfarm import __version__
from teacherfarm.doctor.finding import Finding, ok, problem, warning
from teacherfarm.doctor.imports import Imported, try_imports

OLDEST_PYTHON = (3, 11)
LIBRARIES = ("grpc", "zmq", "onnxruntime", "cv2", "simplejpeg", "xxhash", "torch", "torchvision", "tritonclient.grpc")
"""Imported once each, where they are installed: what imports is not only there but whole."""
DISTRIBUTIONS = {
    "grpc": ("grpcio",),
    "zmq": ("pyzmq",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "cv2": ("opencv-python-headless", "opencv-python", "opencv-contrib-python"),
    "tritonclient.grpc": ("tritonclient",),
}
EXTRAS = ("server", "gpu", "student", "export")
PAGE_FAULTS = "each large buffer costs page faults, up to 300 µs a crop"
NVIDIA = Path("/proc/driver/nvidia/version")


def installed(name: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_installation(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Every check of this module, in order."""
    imported = try_imports([name for name in LIBRARIES if any(map(installed, DISTRIBUTIONS.get(name, (name,))))])
    findings = [check_python(sys.version_info[:3]), check_extras(), check_onnxruntime_twins(), check_torch_builds()]
    findings += [check_protobuf(), *check_imports(imported), check_providers(imported, has_gpu=NVIDIA.exists())]
    return [*findings, check_fork_handlers(environment), check_allocator(environment)]


def check_python(running: Sequence[int]) -> Finding:
    """Old Pythons lack what the code uses."""
    text = ".".join(map(str, running))
    if tuple(running[:2]) < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        return problem("Python", f"this is {text}, teacherfarm needs {wanted} or newer", "make an environment with it")
    return ok("Python", f"{text}, {sys.executable}")


def check_extras() -> Finding:
    """Which of the extras are there whole, so which commands can work."""
    if (missing := missing_of_extras()) is None:
        return ok("teacherfarm", f"{__version__}, from a folder on the path; its extras cannot be told")
    whole = [extra for extra in EXTRAS if not missing[extra]]
    if not whole:
        nearest = min(EXTRAS, key=lambda extra: len(missing[extra]))
        return warning(
            "teacherfarm",
            f"{__version__}, but none of its extras is whole ({nearest} lacks {', '.join(missing[nearest])})",
            "pip install 'teacherfarm[student]' where you train, 'teacherfarm[server]' or [gpu] where teachers run",
        )
    return ok("teacherfarm", f"{__version__} with {', '.join(whole)}")


def missing_of_extras() -> dict[str, list[str]] | None:
    """What each extra lacks here; None where teacherfarm itself is not installed but only on the path."""
    try:
        stated = requires("teacherfarm") or []
    except PackageNotFoundError:
        return None
    wanted: dict[str, list[str]] = {}
    for requirement in stated:
        name, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == [\"'](\w+)[\"']", requirement)
        if name is not None and extra is not None:
            wanted.setdefault(extra[1], []).append(name[0] + _named_extras(requirement))
    return {extra: sorted({*_missing(extra, wanted)}) for extra in EXTRAS}


def _named_extras(requirement: str) -> str:
    found = re.match(r"[\w.-]+\s*(\[[\w, -]+\])", requirement)
    return found[1] if found else ""


def _missing(extra: str, wanted: Mapping[str, Sequence[str]]) -> list[str]:
    missing = []
    for requirement in wanted.get(extra, ()):
        name, _, inner = requirement.partition("[")
        if name == "teacherfarm":
            for other in inner.rstrip("]").split(","):
                missing += _missing(other.strip(), wanted)
        elif installed(name) is None:
            missing.append(name)
    return missing


def check_onnxruntime_twins() -> Finding:
    """The two distributions of ONNX Runtime write into the same folder."""
    cpu, gpu = installed("onnxruntime"), installed("onnxruntime-gpu")
    if cpu and gpu:
        return problem(
            "ONNX Runtime",
            f"onnxruntime {cpu} and onnxruntime-gpu {gpu} are both installed and overwrite each other's files: which "
            "one runs is chance",
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install one of them: 'teacherfarm[gpu]' with an "
            "NVIDIA GPU, else 'teacherfarm[server]'",
        )
    if not cpu and not gpu:
        return ok("ONNX Runtime", "not installed: teachers cannot be served or exported here, students need none")
    return ok("ONNX Runtime", f"onnxruntime {cpu}" if cpu else f"onnxruntime-gpu {gpu}")


def check_torch_builds() -> Finding:
    """torchvision's compiled operators fit only the torch that they were built beside."""
    torch, vision = installed("torch"), installed("torchvision")
    if torch is None:
        return ok("PyTorch", "not installed: students and export need it, servers do not")
    if vision is None:
        return ok("PyTorch", f"torch {torch}, no torchvision")
    if _build(torch) != _build(vision):
        return problem(
            "PyTorch",
            f"torch {torch} is a build for {_build(torch)}, torchvision {vision} one for {_build(vision)}: importing "
            "torchvision fails (operator torchvision::nms does not exist)",
            "install both in one command from one index: pip install --force-reinstall torch torchvision",
        )
    return ok("PyTorch", f"torch {torch}, torchvision {vision}")


def _build(release: str) -> str:
    """``CPUs`` or ``CUDA``, from the local part of a version: builds for CPUs alone are marked +cpu."""
    local = release.partition("+")[2]
    if local == "cpu":
        return "CPUs"
    return "ROCm" if local.startswith("rocm") else "CUDA"


def check_protobuf() -> Finding:
    """Our messages need 6.31 or newer, Triton's client one below 7."""
    found, triton = installed("protobuf"), installed("tritonclient")
    if found is None:
        return problem("protobuf", "not installed", "pip install 'protobuf>=6.31.1,<7'")
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
    if numbers < (6, 31, 1):
        return problem("protobuf", f"{found} is older than the committed messages", "pip install 'protobuf>=6.31.1,<7'")
    if numbers >= (7,) and triton:
        return problem(
            "protobuf",
            f"{found} beside tritonclient {triton}, which needs one below 7 and fails to import or to speak",
            "pip install 'protobuf>=6.31.1,<7'",
        )
    return ok("protobuf", found + (f" beside tritonclient {triton}" if triton else ""))


def check_imports(imported: Mapping[str, Imported]) -> list[Finding]:
    """A finding for each library that is installed and does not import; one for all that do."""
    broken = [
        problem(
            f"import {name}",
            f"it is installed and does not import: {result.error}",
            f"pip install --force-reinstall {DISTRIBUTIONS.get(name, (name,))[0]}; a missing lib*.so is a library of "
            "the system",
        )
        for name, result in imported.items()
        if result.error
    ]
    if whole := [name for name, result in imported.items() if not result.error]:
        broken.append(ok("imports", ", ".join(whole)))
    return broken


def check_providers(imported: Mapping[str, Imported], *, has_gpu: bool) -> Finding:
    """What ONNX Runtime can compute on, tried with a model of one node."""
    runtime = imported.get("onnxruntime")
    if runtime is None or runtime.error:
        return ok("providers", "no ONNX Runtime to ask" if runtime is None else "ONNX Runtime does not import")
    works, fails = runtime.providers, runtime.failing_providers
    listed = ", ".join(works) or "none"
    if has_gpu and "CUDAExecutionProvider" not in works:
        if "CUDAExecutionProvider" in fails:
            return problem(
                "providers",
                f"this machine has an NVIDIA GPU, and ONNX Runtime fails to use it: {fails['CUDAExecutionProvider']}",
                "pip install 'teacherfarm[gpu]' brings the CUDA and cuDNN that it was built for",
            )
        return warning(
            "providers",
            f"this machine has an NVIDIA GPU, and ONNX Runtime cannot use it ({listed})",
            "pip uninstall onnxruntime, then pip install 'teacherfarm[gpu]'; or let Triton run the teachers",
        )
    if not has_gpu and installed("onnxruntime-gpu"):
        return warning(
            "providers",
            f"onnxruntime-gpu on a machine without an NVIDIA GPU: it falls back to {listed}, with warnings",
            "pip uninstall onnxruntime-gpu, then pip install 'teacherfarm[server]'",
        )
    return ok("providers", listed)


def check_fork_handlers(environment: Mapping[str, str]) -> Finding:
    """grpc's fork handlers crash DataLoader workers that are forked beside an open stream."""
    setting = environment.get("GRPC_ENABLE_FORK_SUPPORT", "0")
    if setting.lower() not in ("0", "false", "no", "off"):
        return problem(
            "forks",
            f"GRPC_ENABLE_FORK_SUPPORT={setting}: forked DataLoader workers would crash, so grpc:// is refused",
            "unset GRPC_ENABLE_FORK_SUPPORT, or use zmq:// addresses",
        )
    return ok("forks", "grpc's fork handlers are off: DataLoader workers may be forked")


def check_allocator(environment: Mapping[str, str]) -> Finding:
    """Megabyte buffers that go back to the kernel cost page faults."""
    from teacherfarm.protos.allocator import keep_large_buffers

    if environment.get("TEACHERFARM_KEEP_MALLOC") == "1":
        return warning(
            "allocator",
            f"TEACHERFARM_KEEP_MALLOC=1 leaves malloc as it is: {PAGE_FAULTS}",
            "unset TEACHERFARM_KEEP_MALLOC, unless another allocator is loaded that keeps large blocks",
        )
    if not keep_large_buffers():
        return warning(
            "allocator",
            f"this C library does not take mallopt (not glibc): {PAGE_FAULTS}",
            "run on a glibc system, or preload an allocator that keeps large blocks (jemalloc, mimalloc)",
        )
    return ok("allocator", "keeps large buffers")
