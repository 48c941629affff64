"""A classifier's file: read as safetensors writes it, and refused where it is not the card's."""

import dataclasses
import hashlib

import numpy as np
import pytest
from safetensors.numpy import save

from teacherfarm.protos.classifier_head import read_head, require_head
from teacherfarm.protos.crop import CropFormat, Rendering
from teacherfarm.protos.faults import DamagedArtifact, DigestMismatch, NoHead
from teacherfarm.protos.teacher_card import OutputCard, TeacherCard

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)
BIAS = np.array([0.5, -1, 2, 0], np.float32)


def card_of(content: bytes, **changes) -> TeacherCard:
    values = {
        "name": "t",
        "teacher_digest": "d" * 64,
        "artifact_digest": "a" * 64,
        "model_file": "1/model.onnx",
        "crop_format": CropFormat(height=4, width=4),
        "rendering": Rendering(height=4, width=4),
        "num_classes": 4,
        "activation": "softmax",
        "features": (OutputCard(name="embedding", shape=(3,)),),
        "has_head": True,
        "head_digest": hashlib.sha256(content).hexdigest(),
    }
    return TeacherCard(**(values | changes))


def headed(header: bytes) -> bytes:
    """A safetensors file with this for its description of arrays."""
    return len(header).to_bytes(8, "little") + header + bytes(48)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_both_arrays_come_back(metadata):
    content = save({"weight": WEIGHT, "bias": BIAS}, metadata=metadata)
    head = read_head(content, card_of(content))
    assert np.array_equal(head.weight, WEIGHT)
    assert np.array_equal(head.bias, BIAS)
    assert head.weight.dtype == head.bias.dtype == np.float32


def test_a_layer_without_a_bias_has_zeros():
    content = save({"weight": WEIGHT})
    assert read_head(content, card_of(content)).bias.tolist() == [0, 0, 0, 0]


def test_another_file_than_the_cards_is_refused():
    content = save({"weight": WEIGHT})
    with pytest.raises(DigestMismatch, match="its card says"):
        read_head(save({"weight": WEIGHT + 1}), card_of(content))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 40,
        save({"weight": WEIGHT})[:-4],
        save({"bias": BIAS}),
        save({"weight": WEIGHT.astype(np.float16)}),
        save({"weight": WEIGHT[:3]}),
        save({"weight": WEIGHT, "bias": BIAS[:3]}),
        save({"weight": WEIGHT.reshape(2, 6)}),
        save({"weight": WEIGHT.reshape(4, 3, 1)}),
        save({"weight": np.zeros((4, 5), np.float32)}),
        headed(b"[" * 100_000),
        headed(b'{"weight": {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 1e999]}}'),
    ],
)
def test_a_file_that_is_no_classifier_of_this_teacher_is_refused(content):
    with pytest.raises(DamagedArtifact, match="export it again"):
        read_head(content, card_of(content))


def test_a_card_without_one_says_why():
    card = card_of(b"")
    require_head(card)
    with pytest.raises(NoHead, match=r"'t' has no linear classifier to reuse: something follows"):
        require_head(dataclasses.replace(card, has_head=False, headless="something follows"))
    with pytest.raises(NoHead, match="exported before"):
        require_head(dataclasses.replace(card, head_digest=""))
