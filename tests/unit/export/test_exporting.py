"""One export from end to end, with the tiny teacher."""

import numpy as np
import onnxruntime

from teacherfarm.protos.teacher_card import TeacherCard


def test_entry_of_the_tiny_teacher_is_whole(tiny_models):
    entry = tiny_models / "tiny"
    files = sorted(str(path.relative_to(entry)) for path in entry.rglob("*") if path.is_file())
    assert files == ["1/model.onnx", "card.json", "config.pbtxt", "golden.npz", "head.safetensors"]
    card = TeacherCard.from_json((entry / "card.json").read_bytes())
    session = onnxruntime.InferenceSession(entry / card.model_file, providers=["CPUExecutionProvider"])
    assert tuple(output.name for output in session.get_outputs()) == card.graph_outputs
    golden = np.load(entry / "golden.npz")
    for size in (1, 2, 5, 8):
        logs, logits, embedding = session.run(None, {"crops": golden["crops"][:size]})
        assert (logs.dtype, logits.dtype, embedding.dtype) == (np.float16, np.float32, np.float32)
        assert np.abs(np.exp(logs.astype(np.float32)) - golden["probabilities"][:size]).max() < 1e-3
        assert np.abs(embedding - golden["embedding"][:size]).max() < 1e-4
