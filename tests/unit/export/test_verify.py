"""Comparisons and their table."""

import numpy as np
import pytest
import torch

from teacherfarm.export.teachers import Teacher
from teacherfarm.export.verify import compare, reference_pixels, run_in_batches, table
from tests import tiny_teacher

LOGITS = np.array([[2.0, 0.0, -1.0], [0.5, 0.4, 0.0]], np.float32)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_equal_answers_pass_at_both_temperatures():
    comparison = compare({"logits": LOGITS}, {"logits": LOGITS}, "softmax", "fp32")
    assert comparison.passed
    assert comparison.max_dp == {1.0: 0.0, 4.0: 0.0}
    assert comparison.top1_agreement == 1.0


def test_probabilities_come_from_what_a_student_gets():
    answers = {"logits": LOGITS, "log_probabilities": log_softmax(LOGITS[::-1]).astype(np.float16)}
    comparison = compare(answers, {"logits": LOGITS}, "softmax", "fp32")
    assert not comparison.passed
    expected = np.abs(np.exp(log_softmax(LOGITS / 4)) - np.exp(log_softmax(LOGITS[::-1] / 4))).max()
    assert comparison.max_dp[4.0] == pytest.approx(expected, abs=1e-3)


def test_another_top1_is_counted():
    wrong = LOGITS.copy()
    wrong[1] = wrong[1, ::-1]
    assert compare({"logits": wrong}, {"logits": LOGITS}, "softmax", "fp32").top1_agreement == 0.5


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_an_answer_that_is_no_number_fails(activation):
    broken = LOGITS.copy()
    broken[0, 0] = np.nan
    assert not compare({"logits": broken}, {"logits": LOGITS}, activation, "fp16").passed


def test_features_count_relative_to_their_largest_value():
    features = {"embedding": np.array([[100.0, 1.0]], np.float32)}
    off = {"embedding": features["embedding"] + np.float32(0.2)}
    comparison = compare(off, features, "none", "fp32")
    assert comparison.max_value_difference == pytest.approx(2e-3, rel=1e-3)
    assert not comparison.passed
    assert compare(off, features, "none", "fp16").passed


def test_the_table_names_the_verdict():
    good = compare({"logits": LOGITS}, {"logits": LOGITS}, "softmax", "fp32")
    bad = compare({"logits": LOGITS + np.eye(3, dtype=np.float32)[:2]}, {"logits": LOGITS}, "softmax", "fp16")
    head, first, second = table([good, bad]).splitlines()
    assert head.split()[:2] == ["precision", "crops"]
    assert "equal (within 0.001, 0.001)" in first
    assert "DIFFERENT (allowed 0.02, 0.05)" in second


def test_all_crops_are_asked_in_several_batch_sizes():
    sizes = []

    def run(crops):
        sizes.append(len(crops))
        return {"logits": crops[:, 0, 0, :].astype(np.float32)}

    crops = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    answers = run_in_batches(run, crops)
    assert sizes == [1, 2, 5, 8, 1, 2, 1]
    assert np.array_equal(answers["logits"][:, 0], np.arange(20))


def test_answers_of_a_fixed_batch_are_refused():
    with pytest.raises(ValueError, match="the batch size is not free"):
        run_in_batches(lambda crops: {"logits": np.zeros((8, 3))}, np.zeros((3, 2, 2, 3), np.uint8))


@pytest.mark.parametrize(("number_type", "top"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_reference_pixels_by_hand(number_type, top):
    teacher = Teacher(module=tiny_teacher.tiny_net(), height=2, width=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    pixels = reference_pixels(teacher, np.full((1, 2, 2, 3), top, number_type), number_type)
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor([1.8, 3.2, 3.5]))
