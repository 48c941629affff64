"""TensorRT as far as it can be tried without a GPU: what is missing, and how trtexec is called."""

import json
import sys

import numpy as np
import pytest

from teacherfarm.export import export_teacher, to_tensorrt

FAKE_TRTEXEC = """#!{python}
import json, pathlib, sys
arguments = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
pathlib.Path({log!r}).write_text(json.dumps(arguments))
if "broken" in pathlib.Path(arguments.get("onnx", {log!r})).read_text():
    sys.exit("[E] Error[4]: node of type Broken is not supported")
if "saveEngine" in arguments:
    pathlib.Path(arguments["saveEngine"]).write_bytes(b"engine")
if "exportOutput" in arguments:
    answer = {{"name": "logits", "dimensions": "2x3", "values": [0, 1, 2, 3, 4, 5]}}
    pathlib.Path(arguments["exportOutput"]).write_text(json.dumps([answer]))
"""


@pytest.fixture
def trtexec(tmp_path, monkeypatch):
    """A program of that name on PATH that notes its arguments; returns what reads them."""
    log = tmp_path / "arguments.json"
    program = tmp_path / "bin" / "trtexec"
    program.parent.mkdir()
    program.write_text(FAKE_TRTEXEC.format(python=sys.executable, log=str(log)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setattr(to_tensorrt, "_has_package", lambda: False)
    return lambda: json.loads(log.read_text())


def test_what_is_missing_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(to_tensorrt, "_has_package", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"an NVIDIA GPU.*pip install tensorrt.*nvcr.io/nvidia/tensorrt"):
        export_teacher("tests.tiny_teacher:make", tmp_path / "models", tensorrt=True)
    assert not (tmp_path / "models").exists()


def test_nothing_is_missing_where_both_are_there(trtexec, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    to_tensorrt.require_tensorrt()


def test_the_engine_takes_a_range_of_batches(trtexec):
    engine = to_tensorrt.build_engine(b"onnx", precision="fp16", max_batch=64, input_shape=(224, 224, 3))
    assert engine == b"engine"
    called = trtexec()
    assert called["minShapes"] == "crops:1x224x224x3"
    assert called["optShapes"] == "crops:32x224x224x3"
    assert called["maxShapes"] == "crops:64x224x224x3"
    assert called.keys() >= {"stronglyTyped", "noTF32"}


def test_trtexec_refusal_is_reported_in_its_words(trtexec):
    with pytest.raises(ValueError, match=r"trtexec failed: \[E\] Error\[4\]: node of type Broken"):
        to_tensorrt.build_engine(b"broken", precision="fp32", max_batch=8, input_shape=(8, 8, 3))


def test_the_engine_is_asked_through_files(trtexec):
    run = to_tensorrt.engine_runner(b"engine")
    answers = run(np.zeros((2, 8, 8, 3), np.uint8))
    assert np.array_equal(answers["logits"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert trtexec()["shapes"] == "crops:2x8x8x3"


def test_tensorrt_and_the_python_backend_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="drop --triton-backend python"):
        export_teacher("tests.tiny_teacher:make", tmp_path, tensorrt=True, triton_backend="python")
