import dataclasses

import numpy as np
import pytest
import torch

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.methods.method import MethodMismatch
from teacherfarm.student.methods.teacher_values import crop_weights, feature, log_probabilities, weighted_mean
from tests.methods import make_answers, make_outputs, make_setup, make_step

N, SEED = 5, 3
SETUP = make_setup()
CARD = SETUP.card
SPEC = LabelSpec(outputs=("labels", "layer2", "embedding"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_feature_is_what_the_teacher_said_in_a_wide_number_type(dtype):
    step = make_step(N, CARD, SPEC, SEED)
    values = feature(step, "layer2", make_outputs(SETUP, N, dtype=dtype).logits)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_array_equal(values, make_answers(N, CARD, SEED)["layer2"].astype(np.float16))


def test_int8_features_are_restored():
    step = make_step(N, CARD, LabelSpec(outputs=("layer2",), feature_type="int8"), SEED)
    values = feature(step, "layer2", make_outputs(SETUP, N).logits)
    np.testing.assert_allclose(values, make_answers(N, CARD, SEED)["layer2"], atol=0.02)


def test_dense_labels_are_log_probabilities():
    values = log_probabilities(make_step(N, CARD, SPEC, SEED), make_outputs(SETUP, N).logits)
    np.testing.assert_array_equal(values, make_answers(N, CARD, SEED)["log_probabilities"])


def test_top_k_labels_are_too_coarse():
    step = make_step(N, CARD, LabelSpec(top_k=5))
    with pytest.raises(MethodMismatch, match=r"top 5 classes: stream or record dense ones \(teacherfarm label --dense"):
        log_probabilities(step, make_outputs(SETUP, N).logits)


def test_other_classes_and_other_batches_are_refused():
    step = make_step(N, CARD, SPEC)
    with pytest.raises(MethodMismatch, match=r"logits are \[5, 9\] for 5 labels of 10 classes"):
        log_probabilities(step, torch.zeros(5, 9))
    with pytest.raises(MethodMismatch, match=r"logits are \[4, 10\] for 5 labels"):
        log_probabilities(step, torch.zeros(4, 10))


def test_a_mean_counts_crops_by_their_weight():
    step = make_step(3, CARD, SPEC, weight=[1, 0, 0.5])
    like = torch.zeros(3, 2, requires_grad=True)
    assert weighted_mean(torch.tensor([1.0, 7.0, 4.0]), step, like) == 2.0
    assert not feature(step, "layer2", like)[1].any()


def test_without_a_teacher_every_crop_counts():
    step = make_step(3, CARD, None)
    np.testing.assert_array_equal(crop_weights(step, torch.zeros(3, dtype=torch.float64)), np.ones(3))
    assert weighted_mean(torch.tensor([1.0, 7.0, 4.0]), step, torch.zeros(3)) == 4.0


def test_an_ensembles_distribution_comes_back_at_its_temperature():
    step = make_step(N, CARD, SPEC, SEED)
    probabilities = step.labels.probabilities()
    step = dataclasses.replace(step, labels=dataclasses.replace(step.labels, fixed_temperature=4.0))
    values = log_probabilities(step, make_outputs(SETUP, N).logits)
    np.testing.assert_allclose(torch.softmax(values / 4, dim=1), probabilities, atol=1e-6)
