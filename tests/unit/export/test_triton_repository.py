"""The entry's files, and the Python backend's model.py with Triton's part played by a stand-in."""

import dataclasses
import importlib.util
import json
import re
import sys
import types

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from teacherfarm.export import export_teacher
from teacherfarm.export.triton_repository import atomic_entry, check_name, config_pbtxt
from teacherfarm.protos.teacher_card import OutputCard, TeacherCard


@pytest.fixture
def card(tiny_models):
    return TeacherCard.from_json((tiny_models / "tiny" / "card.json").read_bytes())


def test_config_names_what_triton_serves(card):
    tap = OutputCard(name="block.0", shape=(16, 8, 8), layout="map")
    text = config_pbtxt(dataclasses.replace(card, features=(*card.features, tap)), "onnxruntime", 48)
    assert 'backend: "onnxruntime"' in text
    assert "max_batch_size: 48" in text
    assert '{ name: "crops" data_type: TYPE_UINT8 dims: [ 32, 32, 3 ] }' in text
    assert '{ name: "log_probabilities" data_type: TYPE_FP16 dims: [ 10 ] }' in text
    assert '{ name: "block.0" data_type: TYPE_FP32 dims: [ 16, 8, 8 ] }' in text
    assert "max_queue_delay_microseconds: 0" in text
    assert "version_policy { specific { versions: [ 1 ] } }" in text
    assert f'key: "teacher_digest" value {{ string_value: "{card.teacher_digest}" }}' in text
    assert f'key: "artifact_digest" value {{ string_value: "{card.artifact_digest}" }}' in text
    assert all(text.count(opening) == text.count(closing) for opening, closing in ("{}", "[]"))


def test_config_carries_the_card_whatever_its_classes_are_called(card):
    classes = ('a "quoted" \\ name', "naïve 日本 \U0001f60a", "a\nline", "\x01", *card.classes[4:])
    card = dataclasses.replace(card, classes=classes)
    [line] = [line for line in config_pbtxt(card, "python", 8).splitlines() if 'key: "card"' in line]
    config = text_format.Parse(line, model_config_pb2.ModelConfig())
    assert TeacherCard.from_json(config.parameters["card"].string_value) == card


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "white space", "a" * 129])
def test_names_that_are_no_folder(name):
    with pytest.raises(ValueError, match="a teacher's name"):
        check_name(name)


def test_an_error_leaves_the_old_entry_and_nothing_else(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "card.json").write_text("old")

    def build():
        with atomic_entry(tmp_path, "tiny", force=True) as folder:
            (folder / "card.json").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert (tmp_path / "tiny" / "card.json").read_text() == "old"


def test_nothing_is_visible_until_it_is_whole(tmp_path):
    with atomic_entry(tmp_path, "tiny", force=False) as folder:
        (folder / "card.json").write_text("{}")
        assert not (tmp_path / "tiny").exists()
        assert folder.name.startswith(".")
    assert (tmp_path / "tiny" / "card.json").read_text() == "{}"


def test_an_entry_that_appeared_meanwhile_stays(tmp_path):
    with pytest.raises(FileExistsError, match="--force"):
        with atomic_entry(tmp_path, "tiny", force=False):
            (tmp_path / "tiny").mkdir()
    assert list((tmp_path / "tiny").iterdir()) == []


class Tensor:
    def __init__(self, name, values):
        self.name, self.values = name, values

    def as_numpy(self):
        return self.values


class Request:
    def __init__(self, crops, names):
        self.crops, self.names = crops, names

    def requested_output_names(self):
        return self.names


class Response:
    def __init__(self, output_tensors=(), error=None):
        self.tensors, self.error = {tensor.name: tensor.values for tensor in output_tensors}, error


@pytest.fixture
def python_model(tmp_path, monkeypatch):
    """The instance that Triton would make of an entry for its Python backend."""
    card = export_teacher("tests.tiny_teacher:make", tmp_path, triton_backend="python")
    entry = tmp_path / "tiny"
    config = (entry / "config.pbtxt").read_text()
    assert 'backend: "python"' in config
    assert card.model_file == "1/model.onnx"
    triton = types.ModuleType("triton_python_backend_utils")
    triton.Tensor, triton.InferenceResponse, triton.TritonError = Tensor, Response, str
    triton.get_input_tensor_by_name = lambda request, name: Tensor(name, request.crops)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    spec = importlib.util.spec_from_file_location("model", entry / "1" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    parameters = {"intra_op_threads": {"string_value": "1"}}
    arguments = {"model_config": json.dumps({"parameters": parameters}), "model_instance_kind": "CPU"}
    model.initialize(arguments | {"model_repository": str(entry), "model_version": "1"})
    with np.load(entry / "golden.npz") as golden:
        return model, golden["crops"], golden["logits"]


def test_model_py_stands_alone(python_model, tmp_path):
    text = (tmp_path / "tiny" / "1" / "model.py").read_text()
    assert "teacherfarm" not in re.sub(r'""".*?"""', "", text, flags=re.DOTALL)


def test_python_backend_answers_each_request_what_it_asked(python_model):
    model, crops, logits = python_model
    first, second = model.execute(
        [Request(crops[:3], ["logits"]), Request(crops[3:8], ["embedding", "log_probabilities", "logits"])]
    )
    assert list(first.tensors) == ["logits"]
    assert np.abs(first.tensors["logits"] - logits[:3]).max() < 1e-3
    assert list(second.tensors) == ["embedding", "log_probabilities", "logits"]
    assert np.abs(second.tensors["logits"] - logits[3:8]).max() < 1e-3


def test_one_bad_request_does_not_fail_its_neighbours(python_model):
    model, crops, logits = python_model
    good, bad = model.execute([Request(crops[:2], ["logits"]), Request(crops[:2, :7], ["logits"])])
    assert good.error is None
    assert np.abs(good.tensors["logits"] - logits[:2]).max() < 1e-3
    assert "InvalidArgument" in bad.error or "Fail" in bad.error
