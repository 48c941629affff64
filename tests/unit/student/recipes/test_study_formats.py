import numpy as np
import pytest

from teacherfarm.protos.soft_label import SoftLabels, log_softmax
from teacherfarm.student.recipes.study_drift import drift, tempered
from teacherfarm.student.recipes.study_formats import LabelFormat, formats
from tests.unit.student.fake_teacher import make_card

CLASSES = 1000


@pytest.fixture(scope="module")
def answers():
    """Log-probabilities of a confident teacher [64, 1000]."""
    return log_softmax(np.random.default_rng(0).normal(0, 4, (64, CLASSES)))


@pytest.mark.parametrize("completion", ["smoothing", "renorm"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("top_k", [0, 1, 10])
def test_what_a_spec_asks_for_is_read_back_as_a_student_reads_it(answers, top_k, temperature, completion):
    card = make_card(num_classes=CLASSES)
    kind = LabelFormat(top_k=top_k, completion=completion)
    spec = kind.spec(temperature).resolve(card)
    records = spec.pack({"log_probabilities": answers.astype(np.float16)}, card)
    labels = SoftLabels.from_records(records, spec, card)
    ours = kind.read_back(answers, temperature)
    assert np.array_equal(ours, labels.probabilities(temperature, completion=completion))
    assert kind.label_bytes(CLASSES) == records.itemsize
    assert kind.spec_known


@pytest.mark.parametrize(
    ("kind", "num_classes", "expected"),
    [
        (LabelFormat(top_k=10), 1000, 40),
        (LabelFormat(top_k=5), 1000, 20),
        (LabelFormat(top_k=5), 100_000, 30),
        (LabelFormat(top_k=5, number_type="f32-logp"), 1000, 30),
        (LabelFormat(top_k=5, number_type="u8-logp"), 1000, 17),
        (LabelFormat(top_k=0), 1000, 2000),
        (LabelFormat(top_k=0, number_type="u8-logp"), 1000, 1002),
    ],
)
def test_bytes_of_a_record(kind, num_classes, expected):
    assert kind.label_bytes(num_classes) == expected


def test_every_format_is_a_distribution(answers):
    for kind in formats([1, 5, CLASSES, 5], CLASSES):
        for temperature in (1.0, 4.0):
            read = kind.read_back(answers, temperature)
            assert read.shape == answers.shape
            assert np.abs(read.sum(axis=1) - 1).max() < 0.01, kind
    assert len(list(formats([1, 5, CLASSES, 5], CLASSES))) == 2 * 4 * 2 + 4


def test_known_order_of_the_formats(answers):
    full = tempered(answers, 4.0)

    def cost(**fields):
        return drift(LabelFormat(**fields).read_back(answers, 4.0), full).kl_mean

    assert cost(top_k=0, number_type="f32-logp") < 1e-9
    assert 1e-10 < cost(top_k=0) < 1e-5
    assert cost(top_k=0, number_type="u8-logp") < 1e-2
    # Probabilities that float16 rounds to nothing cannot be warmed up again.
    assert cost(top_k=0, number_type="f16-prob") > 0.02
    assert cost(top_k=50) < cost(top_k=10) < cost(top_k=1)
    assert cost(top_k=10) < cost(top_k=10, completion="renorm")
