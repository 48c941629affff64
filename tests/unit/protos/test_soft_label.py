"""Label specs and soft labels: what is packed comes back, at any temperature that is allowed and at no other."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacherfarm.protos.crop import CropFormat, Rendering
from teacherfarm.protos.faults import BadLabelSpec, TemperatureMismatch, UnknownOutput
from teacherfarm.protos.soft_label import LabelSpec, SoftLabels, complete, log_softmax, top_k
from teacherfarm.protos.teacher_card import EnsembleMember, OutputCard, TeacherCard


def card_of(num_classes: int = 10, activation: str = "softmax") -> TeacherCard:
    return TeacherCard(
        name="t",
        teacher_digest="d" * 64,
        artifact_digest="a" * 64,
        model_file="1/model.onnx",
        crop_format=CropFormat(height=8, width=8),
        rendering=Rendering(height=8, width=8),
        num_classes=num_classes,
        activation=activation,
        features=(
            OutputCard(name="embedding", shape=(5,)),
            OutputCard(name="stage3", shape=(4, 3, 2), layout="map"),
            OutputCard(name="tokens", shape=(7, 6), layout="tokens", num_prefix_tokens=1, grid=(2, 3)),
        ),
    )


def graph_outputs(num: int = 5, num_classes: int = 10, spread: float = 4.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(num + num_classes)
    logits = (rng.normal(size=(num, num_classes)) * spread).astype(np.float32)
    return {
        "log_probabilities": log_softmax(logits),
        "logits": logits,
        "embedding": rng.normal(size=(num, 5)).astype(np.float32),
        "stage3": rng.normal(size=(num, 4, 3, 2)).astype(np.float32),
        "tokens": rng.normal(size=(num, 7, 6)).astype(np.float32),
    }


def labels_of(spec: LabelSpec, outputs: dict[str, np.ndarray], card: TeacherCard) -> SoftLabels:
    """Through the bytes that the wire carries."""
    resolved = spec.resolve(card)
    sent = resolved.pack(outputs, card).tobytes()
    return SoftLabels.from_records(np.frombuffer(sent, resolved.record_dtype(card)), resolved, card)


def softmax64(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    return np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_dense_labels_can_be_used_at_any_temperature(temperature):
    # A confident teacher: float16 probabilities would lose most classes here.
    outputs = graph_outputs(16, 1000, spread=6.0)
    labels = labels_of(LabelSpec(), outputs, card_of(1000))
    got = labels.probabilities(temperature=temperature)
    true = softmax64(outputs["logits"], temperature)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-5)
    kl = (true * (np.log(true) - np.log(np.maximum(got.astype(np.float64), 1e-300)))).sum(axis=1)
    assert kl.max() < 1e-3
    assert np.array_equal(labels.top1, outputs["logits"].argmax(axis=1))


def test_float16_probabilities_would_not_do():
    """The reason for log-probabilities: the same teacher, sent as float16 probabilities, is far off at T = 4."""
    logits = graph_outputs(16, 1000, spread=6.0)["logits"]
    rounded = softmax64(logits, 1.0).astype(np.float16).astype(np.float64)
    assert (rounded == 0).mean() > 0.2


@pytest.mark.parametrize("num_classes", [1000, 70000])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_top_k_labels_hold_the_best_classes_at_their_temperature(num_classes, temperature):
    outputs = graph_outputs(6, num_classes)
    labels = labels_of(LabelSpec(top_k=7, temperature=temperature), outputs, card_of(num_classes))
    true = softmax64(outputs["logits"], temperature)
    best = np.argsort(-true, axis=1)[:, :7]
    assert np.array_equal(labels.classes, best)
    assert labels.classes.dtype == (np.uint16 if num_classes <= 65536 else np.uint32)
    np.testing.assert_allclose(
        np.exp(labels.log_probabilities.astype(float)), np.take_along_axis(true, best, 1), rtol=6e-3
    )
    assert np.array_equal(labels.top1, best[:, 0])


def test_marginal_smoothing_spreads_the_rest_and_re_norm_drops_it():
    outputs = graph_outputs(6, 50, spread=1.0)
    labels = labels_of(LabelSpec(top_k=5, temperature=2.0), outputs, card_of(50))
    true = softmax64(outputs["logits"], 2.0)
    kept = np.take_along_axis(true, labels.classes.astype(np.int64), 1)

    smooth = labels.probabilities()
    np.testing.assert_allclose(smooth.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(smooth, labels.classes.astype(np.int64), 1), kept, rtol=6e-3)
    others = np.sort(smooth, axis=1)[:, :45]
    np.testing.assert_allclose(others, np.repeat((1 - kept.sum(1, keepdims=True)) / 45, 45, axis=1), rtol=1e-2)

    renorm = labels.probabilities(2.0, completion="renorm")
    assert ((renorm > 0).sum(axis=1) == 5).all()
    np.testing.assert_allclose(renorm.sum(axis=1), 1, atol=1e-6)
    with pytest.raises(ValueError, match=r"smoothing.*renorm.*'none'"):
        labels.probabilities(completion="none")


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from([0.01, 1.0, 30.0]))
def test_completed_rows_sum_to_1_even_after_rounding(seed, k, spread):
    logits = (np.random.default_rng(seed).normal(size=(4, 9)) * spread).astype(np.float32)
    classes, values = top_k(log_softmax(logits), k, 1.0)
    for completion in ("smoothing", "renorm"):
        full = complete(classes, values.astype(np.float16), 9, completion)
        assert (full >= 0).all()
        np.testing.assert_allclose(full.sum(axis=1), 1, atol=2e-6)


@given(st.lists(st.lists(st.integers(0, 3), min_size=12, max_size=12), min_size=1, max_size=4), st.integers(1, 12))
def test_ties_go_to_the_lower_class(rows, k):
    logits = np.array(rows, np.float32)
    classes, values = top_k(logits, k, 1.0)
    assert np.array_equal(classes, np.argsort(-logits, axis=1, kind="stable")[:, :k])
    assert (np.diff(values, axis=1) <= 0).all()


def test_a_top_k_label_refuses_another_temperature():
    labels = labels_of(LabelSpec(top_k=3, temperature=4.0), graph_outputs(), card_of())
    assert np.array_equal(labels.probabilities(temperature=4.0), labels.probabilities())
    with pytest.raises(TemperatureMismatch, match=r"at temperature 4 .*used at 1.*top_k=3, temperature=1.*dense"):
        labels.probabilities(temperature=1.0)
    assert issubclass(TemperatureMismatch, ValueError)


@pytest.mark.parametrize(("feature_type", "tolerance"), [("float16", 2e-3), ("int8", 1 / 100)])
def test_features_come_back(feature_type, tolerance):
    outputs = graph_outputs(5)
    # Channels of very different size: one scale for all of them would lose the small ones.
    outputs["stage3"] *= np.array([1e-3, 1, 30, 0], np.float32).reshape(1, 4, 1, 1)
    outputs["tokens"] *= np.array([1e-3, 1, 30, 0, 2, 3], np.float32)
    spec = LabelSpec(outputs=("labels", "embedding", "stage3", "tokens"), feature_type=feature_type)
    labels = labels_of(spec, outputs, card_of())
    assert labels.probabilities().shape == (5, 10)
    for name, channel_axis in (("embedding", None), ("stage3", 1), ("tokens", 2)):
        got, true = labels.output(name), outputs[name]
        assert got.shape == true.shape
        others = tuple(axis for axis in range(1, true.ndim) if axis != channel_axis)
        largest = np.abs(true).max(axis=others, keepdims=True)
        assert (np.abs(got - true) <= tolerance * largest).all(), name


def test_int8_scales_are_per_crop():
    outputs = graph_outputs(2)
    outputs["stage3"][0] *= 1000
    labels = labels_of(LabelSpec(outputs=("stage3",), feature_type="int8"), outputs, card_of())
    assert np.abs(labels.output("stage3")[1] - outputs["stage3"][1]).max() < 0.02


def test_int8_maps_take_half_of_float16():
    card = card_of()
    small = LabelSpec(outputs=("stage3",), feature_type="int8").resolve(card).record_dtype(card)
    assert small.itemsize == 24 + 4 * 4
    vector = LabelSpec(outputs=("embedding",), feature_type="int8").resolve(card).record_dtype(card)
    assert vector.itemsize == 5 + 4
    assert LabelSpec(outputs=("stage3",)).resolve(card).record_dtype(card).itemsize == 48


def test_a_sigmoid_teacher_sends_logits():
    card, outputs = card_of(activation="sigmoid"), graph_outputs(spread=30.0)
    labels = labels_of(LabelSpec(), outputs, card)
    assert labels.spec.graph_outputs(card) == ("logits",)
    for temperature in (1.0, 3.0):
        # From what was sent: float16 logits.
        true = 1 / (1 + np.exp(-labels.logits.astype(np.float64) / temperature))
        np.testing.assert_allclose(labels.probabilities(temperature), true, atol=1e-6)
    np.testing.assert_allclose(labels.logits, outputs["logits"], rtol=1e-3)
    with pytest.raises(UnknownOutput, match="sigmoid"):
        _ = labels.log_probabilities
    with pytest.raises(BadLabelSpec, match="softmax"):
        LabelSpec(top_k=3).resolve(card)


def test_a_teacher_without_classes_answers_its_embedding():
    card = card_of(0, activation="none")
    labels = labels_of(LabelSpec(), graph_outputs(), card)
    assert labels.spec.outputs == ("embedding",)
    for ask in (labels.probabilities, lambda: labels.top1, lambda: labels.logits):
        with pytest.raises(UnknownOutput, match="not a distribution"):
            ask()
    with pytest.raises(UnknownOutput, match="no output 'labels'; it has embedding"):
        LabelSpec(outputs=("labels",)).resolve(card)


def test_taking_rows_keeps_weights_and_order():
    outputs = graph_outputs(6)
    spec = LabelSpec(outputs=("labels", "stage3"), feature_type="int8")
    labels = labels_of(spec, outputs, card_of())
    labels.weight[:] = np.arange(6) / 10
    for rows in ([4, 0, 4], np.array([True, False, True, False, False, True]), slice(1, 5, 2), []):
        part = labels.take(rows)
        index = np.arange(6)[rows] if len(np.arange(6)[rows] if isinstance(rows, slice) else rows) else []
        assert len(part) == len(index)
        np.testing.assert_array_equal(part.weight, labels.weight[list(index)])
        np.testing.assert_array_equal(part.probabilities(), labels.probabilities()[list(index)])
        np.testing.assert_array_equal(part.output("stage3"), labels.output("stage3")[list(index)])


def test_every_crop_counts_unless_told():
    labels = labels_of(LabelSpec(), graph_outputs(3), card_of())
    assert labels.weight.tolist() == [1, 1, 1]
    assert "0 without answer" in repr(labels)


def test_shapes_that_are_not_the_cards_are_refused():
    card, spec = card_of(), LabelSpec(outputs=("labels", "embedding"))
    for name, shape in (
        ("log_probabilities", (5, 1)),
        ("log_probabilities", (5, 11)),
        ("embedding", (5, 1)),
        ("embedding", (1, 5)),
        ("embedding", (4, 5)),
    ):
        outputs = graph_outputs() | {name: np.zeros(shape, np.float32)}
        with pytest.raises(ValueError, match=r"teacher 't' is \["):
            spec.pack(outputs, card)
    with pytest.raises(ValueError, match="due"):
        LabelSpec(top_k=3).resolve(card).pack({"log_probabilities": np.zeros((5, 11), np.float32)}, card)


def test_asking_labels_for_what_they_do_not_hold():
    labels = labels_of(LabelSpec(outputs=("embedding",)), graph_outputs(), card_of())
    with pytest.raises(UnknownOutput, match=r"'stage3' but with embedding.*LabelSpec\(outputs="):
        labels.output("stage3")
    dense, cut = (
        labels_of(LabelSpec(), graph_outputs(), card_of()),
        labels_of(LabelSpec(top_k=2), graph_outputs(), card_of()),
    )
    with pytest.raises(UnknownOutput, match="top1"):
        _ = dense.classes
    with pytest.raises(UnknownOutput, match="dense"):
        _ = cut.logits
    with pytest.raises(UnknownOutput):
        dense.output("labels")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"top_k": -1}, "-1"),
        ({"top_k": 5, "temperature": 0.0}, "positive"),
        ({"top_k": 5, "temperature": float("nan")}, "positive"),
        ({"top_k": 5, "temperature": float("inf")}, "positive"),
        ({"top_k": 5, "temperature": 1e-40}, "positive"),
        ({"temperature": 4.0}, r"probabilities\(temperature=4\)"),
        ({"outputs": ("labels", "labels")}, "once"),
        ({"feature_type": "float64"}, "float16"),
    ],
)
def test_bad_label_specs(arguments, words):
    with pytest.raises(BadLabelSpec, match=words):
        LabelSpec(**arguments)


def test_specs_that_a_teacher_cannot_answer():
    card = card_of()
    for spec, fault, words in (
        (LabelSpec(outputs=("stage9",)), UnknownOutput, "labels, embedding, stage3, tokens.*--tap stage9"),
        (LabelSpec(top_k=11), BadLabelSpec, "10 classes"),
        (LabelSpec(top_k=3, outputs=("embedding",)), BadLabelSpec, "needs the output 'labels'"),
    ):
        with pytest.raises(fault, match=words):
            spec.resolve(card)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), 1e-50])
def test_impossible_temperatures_of_dense_labels(temperature):
    labels = labels_of(LabelSpec(), graph_outputs(), card_of())
    with pytest.raises(ValueError, match="positive"):
        labels.probabilities(temperature)


def test_top_k_of_all_classes_is_the_dense_distribution():
    outputs = graph_outputs()
    cut = labels_of(LabelSpec(top_k=10), outputs, card_of())
    np.testing.assert_allclose(cut.probabilities(), softmax64(outputs["logits"], 1.0), atol=1e-3)
    np.testing.assert_allclose(cut.probabilities().sum(axis=1), 1, atol=1e-6)


def test_records_are_little_endian_and_packed():
    dtype = LabelSpec(top_k=10).resolve(card_of()).record_dtype(card_of())
    assert dtype.itemsize == 40
    assert [str(dtype[name].base) for name in ("classes", "log_probabilities")] == ["uint16", "float16"]


def ensemble_of(temperature: float) -> TeacherCard:
    members = tuple(EnsembleMember(name=name, source=f"timm:{name}", height=8, width=8) for name in "ab")
    return dataclasses.replace(
        card_of(),
        members=members,
        fixed_temperature=temperature,
        features=(OutputCard(name="mean_logits", shape=(10,)),),
    )


def test_an_ensembles_labels_hold_at_its_temperature_alone():
    outputs = graph_outputs()
    labels = labels_of(LabelSpec(), outputs, ensemble_of(4.0))
    averaged = np.exp(outputs["log_probabilities"])
    np.testing.assert_allclose(labels.probabilities(), averaged, atol=1e-3)
    np.testing.assert_allclose(labels.take([2, 1]).probabilities(4.0), averaged[[2, 1]], atol=1e-3)
    assert labels.divisor() == labels.divisor(4.0) == 1.0
    for use in (labels.probabilities, labels.divisor, labels.take([0]).probabilities):
        with pytest.raises(TemperatureMismatch, match=r"averaged at temperature 4, .*--ensemble-temperature 1"):
            use(1.0)


def test_an_ensembles_top_k_is_not_tempered_twice():
    outputs = graph_outputs()
    labels = labels_of(LabelSpec(top_k=3, temperature=4.0), outputs, ensemble_of(4.0))
    best = np.sort(np.exp(outputs["log_probabilities"]), axis=1)[:, :-4:-1]
    np.testing.assert_allclose(np.exp(labels.log_probabilities.astype(np.float32)), best, rtol=2e-3)
    with pytest.raises(TemperatureMismatch, match="members of 't' are averaged at temperature 4"):
        LabelSpec(top_k=3).resolve(ensemble_of(4.0))


def test_one_teachers_labels_are_divided_by_the_temperature():
    labels = labels_of(LabelSpec(), graph_outputs(), card_of())
    assert (labels.divisor(), labels.divisor(4.0)) == (1.0, 4.0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        labels.divisor(0.0)


@pytest.mark.parametrize(
    ("card", "output", "words"),
    [
        (card_of(), "stage3@2x2", r"--name t --tap stage3 --tap tokens --tap stage3@2x2 --force, or ask 'stage3' and"),
        (
            card_of(),
            "layer4",
            r"has labels, embedding, stage3, tokens. Taps are chosen at export.*--tap layer4 --force$",
        ),
        (dataclasses.replace(card_of(), features=()), "embedding", "ends in a linear layer"),
        (card_of(0, "none"), "labels", r"It has no classes: ask one of these by LabelSpec\(outputs="),
        (ensemble_of(1.0), "layer4", "an ensemble has no taps"),
    ],
)
def test_what_a_teacher_lacks_is_named_with_what_adds_it(card, output, words):
    with pytest.raises(UnknownOutput, match=words):
        LabelSpec(outputs=(output,)).resolve(card)
