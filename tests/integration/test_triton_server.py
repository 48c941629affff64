"""The harness around the real Triton server, and that what Triton answers is what ONNX Runtime answers."""

from __future__ import annotations

import json
import os
import socket
import urllib.request

import numpy as np
import psutil
import pytest

from teacherfarm.protos.teacher_card import TeacherCard
from tests.triton_server import SHARED_MEMORY, TritonServer


def ask(server, crops):
    """One inference by Triton's HTTP protocol in plain JSON: nothing of ours between."""
    body = {
        "inputs": [
            {"name": "crops", "datatype": "UINT8", "shape": list(crops.shape), "data": crops.reshape(-1).tolist()}
        ],
        "outputs": [{"name": "logits"}],
    }
    request = urllib.request.Request(f"{server.http}/v2/models/tiny/infer", data=json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=20) as answer:
        [output] = json.load(answer)["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def test_triton_answers_what_onnx_runtime_answers(triton, triton_repository, tiny_crops):
    import onnxruntime

    card = TeacherCard.from_json((triton_repository / "tiny" / "card.json").read_bytes())
    session = onnxruntime.InferenceSession(
        str(triton_repository / "tiny" / card.model_file), providers=["CPUExecutionProvider"]
    )
    [right] = session.run(["logits"], {"crops": tiny_crops[:8]})
    assert np.abs(ask(triton, tiny_crops[:8]) - right).max() < 1e-5


def test_killed_and_restarted_it_is_there_again_on_the_same_ports(start_triton, tiny_crops):
    server = start_triton()
    before, place, pid = ask(server, tiny_crops[:2]), server.grpc, server.pid
    models = psutil.Process(pid).children()
    assert models, "the model has no process of its own"
    server.kill()
    assert not any(process.is_running() for process in models)
    assert not server.ready()
    server.start()
    assert (server.grpc, server.pid == pid) == (place, False)
    assert np.array_equal(ask(server, tiny_crops[:2]), before)


def test_paused_it_answers_nobody_until_it_goes_on(start_triton, tiny_crops):
    server = start_triton()
    server.pause()
    with pytest.raises(TimeoutError):
        urllib.request.urlopen(f"{server.http}/v2/health/live", timeout=0.3)
    server.resume()
    assert len(ask(server, tiny_crops[:2])) == 2


def test_what_kill_leaves_behind_is_removed(start_triton):
    server = start_triton()
    own = {path.name for path in SHARED_MEMORY.glob(f"{server._name}*")}
    assert own, "its shared memory has another name than we look for"
    server.kill()
    assert not own & set(os.listdir(SHARED_MEMORY))


def test_taken_ports_are_given_up_for_others(triton_repository, tmp_path, monkeypatch):
    from tests import triton_server

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        offered = iter([(taken.getsockname()[1], *triton_server.free_ports("127.0.0.1")[1:])])
        choose = triton_server.free_ports
        monkeypatch.setattr(triton_server, "free_ports", lambda host: next(offered, None) or choose(host))
        with TritonServer(triton_repository, tmp_path) as server:
            assert server.ready()
            assert server.grpc != f"127.0.0.1:{taken.getsockname()[1]}"
            assert "already in use" in server.log()


def test_a_repository_that_cannot_be_served_fails_with_triton_s_words(triton_repository, tmp_path):
    (tmp_path / "models" / "broken").mkdir(parents=True)
    (tmp_path / "models" / "broken" / "config.pbtxt").write_text('name: "broken" backend: "nothing"')
    server = TritonServer(tmp_path / "models", tmp_path)
    with pytest.raises(AssertionError, match=r"(?s)ended with 1 .*broken"):
        server.start()
    assert server.process is None
