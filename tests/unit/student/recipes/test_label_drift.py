"""How far recorded and live labels are apart: by probability, whatever places near-equal classes changed."""

import numpy as np
import pytest

from teacherfarm.protos.soft_label import LabelSpec, SoftLabels
from teacherfarm.student.recipes.label_drift import drift


def top_k(classes, probabilities):
    k = len(classes)
    records = np.zeros(1, [("classes", "<u2", (k,)), ("log_probabilities", "<f2", (k,))])
    records["classes"], records["log_probabilities"] = classes, np.log(probabilities)
    return labels(records, LabelSpec(outputs=("labels",), top_k=k))


def labels(records, spec, axes=None):
    return SoftLabels(
        records=records,
        spec=spec,
        num_classes=4,
        activation="softmax",
        weight=np.ones(len(records), np.float32),
        channel_axes=axes or {},
    )


RECORDED = top_k([1, 2, 3], [0.6, 0.2, 0.1])


@pytest.mark.parametrize(
    ("live", "apart"),
    [
        (RECORDED, 0.0),
        (top_k([2, 1, 3], [0.6, 0.2, 0.1]), 0.4),  # two classes changed roles
        (top_k([1, 2, 3], [0.55, 0.2, 0.1]), 0.05),
        (top_k([1, 2, 7], [0.6, 0.2, 0.1]), 0.0),  # the last ones are equal: either may be the kth
        (top_k([1, 2, 7], [0.6, 0.2, 0.12]), 0.02),  # 7 has at least 0.02 more than it could have had
        (top_k([5, 6, 7], [0.6, 0.2, 0.1]), 0.5),
    ],
)
def test_of_top_k_labels(live, apart):
    assert drift(RECORDED, live)[0] == pytest.approx(apart, abs=1e-3)
    assert drift(live, RECORDED)[0] == pytest.approx(apart, abs=1e-3)


def test_of_dense_labels():
    spec = LabelSpec(outputs=("labels",))
    probabilities = np.array([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
    ones, others = (np.zeros(2, [("labels", "<f2", (4,))]) for _ in range(2))
    ones["labels"] = np.log(probabilities)
    probabilities[1] = [0.3, 0.2, 0.25, 0.25]
    others["labels"] = np.log(probabilities)
    assert drift(labels(ones, spec), labels(others, spec)) == pytest.approx([0.0, 0.05], abs=1e-3)


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_of_features_relative_to_their_largest(kind):
    spec = LabelSpec(outputs=("embedding",), feature_type=kind)
    fields = (
        [("embedding", "<f2", (2,))]
        if kind == "float16"
        else [("embedding.scale", "<f4", (2,)), ("embedding", "i1", (2,))]
    )
    ones, others = (np.zeros(1, fields) for _ in range(2))
    if kind == "int8":
        ones["embedding.scale"] = others["embedding.scale"] = 1.0
    ones["embedding"], others["embedding"] = [[100, 50]], [[100, 40]]
    found = drift(labels(ones, spec, {"embedding": 0}), labels(others, spec, {"embedding": 0}))
    assert found == pytest.approx([0.1])
