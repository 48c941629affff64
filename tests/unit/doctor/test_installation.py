"""Each trap of an installation, set for real where that can be, and named by the doctor."""

import importlib

import pytest

from teacherfarm.doctor import installation
from teacherfarm.doctor.finding import worst
from teacherfarm.doctor.imports import Imported, try_imports


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """``distribution("torch", "2.15.0+cpu")`` installs its metadata in front of everything else."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name, version, *requires):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        (folder / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {text}" for text in requires)]) + "\n")
        importlib.invalidate_caches()

    return install


@pytest.fixture
def only(monkeypatch):
    """``only(torch="2.15.0")``: nothing else is installed."""

    def install(**versions):
        monkeypatch.setattr(installation, "installed", lambda name: versions.get(name.replace("-", "_")))

    return install


def test_this_very_environment_is_well(tmp_path, monkeypatch):
    # The tests' environment is for CPUs, whatever the machine has.
    monkeypatch.setattr(installation, "NVIDIA", tmp_path / "no driver")
    findings = installation.check_installation({})
    assert worst(findings) == "ok", findings
    checks = [finding.check for finding in findings]
    first = ["Python", "teacherfarm", "ONNX Runtime", "PyTorch", "protobuf", "imports", "providers"]
    assert checks == [*first, "forks", "allocator"]
    imports = findings[5].found
    assert all(name in imports for name in ("grpc", "zmq", "onnxruntime", "torchvision"))
    assert "CPUExecutionProvider" in findings[6].found


def test_an_old_python():
    assert installation.check_python((3, 9, 2)).level == "problem"
    assert installation.check_python((3, 11, 0)).level == installation.check_python((3, 14, 0)).level == "ok"


def test_both_distributions_of_onnxruntime(distribution):
    assert installation.check_onnxruntime_twins().level == "ok"
    distribution("onnxruntime-gpu", "1.31.0")
    finding = installation.check_onnxruntime_twins()
    assert finding.level == "problem"
    assert "overwrite each other's files" in finding.found
    assert "pip uninstall onnxruntime onnxruntime-gpu" in finding.do


def test_a_torch_for_cpus_beside_a_torchvision_for_cuda(distribution):
    assert installation.check_torch_builds().level == "ok"
    distribution("torch", "2.15.0+cpu")
    finding = installation.check_torch_builds()
    assert finding.level == "problem"
    assert "torchvision::nms" in finding.found
    assert "one index" in finding.do


@pytest.mark.parametrize(
    ("torch", "torchvision", "level"),
    [
        ("2.15.0+cpu", "0.29.2+cpu", "ok"),
        ("2.15.0", "0.29.2", "ok"),
        ("2.15.0+cu130", "0.29.2", "ok"),
        ("2.15.0", "0.29.2+cpu", "problem"),
        ("2.15.0+cpu", "0.29.2+cu130", "problem"),
        ("2.15.0", None, "ok"),
        (None, None, "ok"),
    ],
)
def test_builds_of_torch(only, torch, torchvision, level):
    only(torch=torch, torchvision=torchvision)
    assert installation.check_torch_builds().level == level


def test_a_protobuf_that_tritons_client_cannot_use(distribution):
    assert installation.check_protobuf().level == "ok"
    distribution("protobuf", "7.36.0")
    finding = installation.check_protobuf()
    assert finding.level == "problem"
    assert "tritonclient" in finding.found
    assert "protobuf>=6.31.1,<7" in finding.do


@pytest.mark.parametrize(
    ("versions", "level"),
    [
        ({"protobuf": "6.31.1"}, "ok"),
        ({"protobuf": "6.30.2"}, "problem"),
        ({"protobuf": "7.35.0"}, "ok"),  # nothing of Triton's beside it
        ({}, "problem"),
    ],
)
def test_versions_of_protobuf(only, versions, level):
    only(**versions)
    assert installation.check_protobuf().level == level


def test_extras_that_are_not_whole(distribution):
    assert "server, student, export" in installation.check_extras().found
    distribution(
        "teacherfarm",
        "0.1.0",
        "numpy",
        'teacherfarm[serving]; extra == "server"',
        'absent-runtime; extra == "server"',
        'absent-wire>=1; extra == "serving"',
        'absent-torch; extra == "student"',
        'absent-a; extra == "gpu"',
        'absent-b; extra == "export"',
    )
    missing = installation.missing_of_extras()
    assert missing == {
        "server": ["absent-runtime", "absent-wire"],
        "student": ["absent-torch"],
        "gpu": ["absent-a"],
        "export": ["absent-b"],
    }
    assert installation.check_extras().level == "warning"


def test_libraries_that_do_not_import_are_named_and_a_crash_ends_only_the_probe(tmp_path, monkeypatch):
    (tmp_path / "whole_library.py").write_text("print('noise')\n")
    (tmp_path / "broken_library.py").write_text("raise ImportError('libsomething.so.3: cannot open')\n")
    (tmp_path / "crashing_library.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tried = try_imports(["whole_library", "broken_library", "crashing_library", "never_tried"])
    assert list(tried) == ["whole_library", "broken_library", "crashing_library"]
    broken, crashed, whole = installation.check_imports(tried)
    assert (broken.level, crashed.level, whole.level) == ("problem", "problem", "ok")
    assert "libsomething.so.3" in broken.found
    assert "crashed" in crashed.found
    assert whole.found == "whole_library"


FAKE_RUNTIME = """
def set_default_logger_severity(level): pass
def get_available_providers(): return ["CUDAExecutionProvider", "CPUExecutionProvider"]
class InferenceSession:
    def __init__(self, model, providers): pass
    def get_providers(self): return ["CPUExecutionProvider"]
"""


def test_a_gpu_that_onnxruntime_lists_and_cannot_use(tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text(FAKE_RUNTIME)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tried = try_imports(["onnxruntime"])
    finding = installation.check_providers(tried, has_gpu=True)
    assert finding.level == "problem"
    assert "fails to use it" in finding.found
    assert "teacherfarm[gpu]" in finding.do


def test_providers_that_do_not_fit_the_machine(only):
    cpu_alone = {"onnxruntime": Imported(providers=("CPUExecutionProvider",))}
    cuda = {"onnxruntime": Imported(providers=("CUDAExecutionProvider", "CPUExecutionProvider"))}
    only(onnxruntime="1.31")
    assert installation.check_providers(cpu_alone, has_gpu=True).level == "warning"
    assert installation.check_providers(cpu_alone, has_gpu=False).level == "ok"
    assert installation.check_providers({}, has_gpu=True).level == "ok"
    only(onnxruntime_gpu="1.31")
    assert installation.check_providers(cuda, has_gpu=True).level == "ok"
    finding = installation.check_providers(cpu_alone, has_gpu=False)
    assert finding.level == "warning"
    assert "falls back" in finding.found


def test_settings_of_the_environment():
    assert installation.check_fork_handlers({}).level == "ok"
    assert installation.check_fork_handlers({"GRPC_ENABLE_FORK_SUPPORT": "false"}).level == "ok"
    assert installation.check_fork_handlers({"GRPC_ENABLE_FORK_SUPPORT": "1"}).level == "problem"
    assert installation.check_allocator({}).level == "ok"
    assert installation.check_allocator({"TEACHERFARM_KEEP_MALLOC": "1"}).level == "warning"


def test_a_c_library_without_mallopt(monkeypatch):
    monkeypatch.setattr("teacherfarm.protos.allocator.keep_large_buffers", lambda: False)
    finding = installation.check_allocator({})
    assert finding.level == "warning"
    assert "glibc" in finding.do
