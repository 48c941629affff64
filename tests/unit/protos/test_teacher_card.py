"""Teacher cards: JSON there and back, and every way in which a field can be damaged."""

import dataclasses
import json

import pytest

from teacherfarm.protos.crop import CropFormat, Rendering
from teacherfarm.protos.teacher_card import EnsembleMember, OutputCard, TeacherCard, classes_hash

FULL = TeacherCard(
    name="tiny",
    teacher_digest="d" * 64,
    artifact_digest="a" * 64,
    model_file="1/model.onnx",
    crop_format=CropFormat(height=32, width=24, number_type="uint16"),
    rendering=Rendering(height=32, width=24, interpolation="bicubic", antialias=False),
    num_classes=3,
    activation="softmax",
    features=(
        OutputCard(name="embedding", shape=(16,)),
        OutputCard(name="blocks.3", shape=(9, 4), layout="tokens", num_prefix_tokens=1, grid=(2, 4), module="blocks.3"),
        OutputCard(name="stem@attention", shape=(16,), module="stem", reduction="attention", of="stem"),
    ),
    channel_order="BGR",
    crop_scale=(0.25, 1.0),
    mean=(0.5, 0.25, 0.125),
    std=(1.0, 2.0, 3.0),
    classes=("Katze", "猫", 'a"b\n'),
    classes_hash="0123",
    precision="fp16",
    verification={"largest difference": 1e-4, "crops": 8.0},
    has_head=True,
    head_digest="e" * 64,
    headless="",
    members=(EnsembleMember(name="a", source="timm:a", height=32, width=24),),
    fixed_temperature=4.0,
)
MINIMAL = TeacherCard(
    name="m",
    teacher_digest="d",
    artifact_digest="a",
    model_file="model.onnx",
    crop_format=CropFormat(height=1, width=1),
    rendering=Rendering(height=1, width=1),
    num_classes=0,
    activation="none",
    features=(),
)


@pytest.mark.parametrize("card", [FULL, MINIMAL])
def test_a_card_comes_back_equal(card):
    again = TeacherCard.from_json(card.to_json())
    assert again == card
    assert TeacherCard.from_json(card.to_json().encode()) == card
    assert isinstance(again.features, tuple)
    assert again.to_json() == card.to_json()


def test_a_whole_number_is_a_float_where_one_is_due():
    values = json.loads(FULL.to_json())
    values["center_crop_fraction"], values["crop_scale"] = 1, [0, 1]
    card = TeacherCard.from_json(json.dumps(values))
    assert (card.center_crop_fraction, card.crop_scale) == (1.0, (0.0, 1.0))
    assert isinstance(card.crop_scale[0], float)


REQUIRED = [f.name for f in dataclasses.fields(TeacherCard) if f.default is f.default_factory is dataclasses.MISSING]


def test_some_fields_are_required():
    assert {"name", "teacher_digest", "crop_format", "num_classes", "features"} <= set(REQUIRED)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_named(name):
    values = json.loads(FULL.to_json())
    del values[name]
    with pytest.raises(ValueError, match=name):
        TeacherCard.from_json(json.dumps(values))


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(TeacherCard) if f.name != "card_version"])
@pytest.mark.parametrize("wrong", [None, {"x": []}, [[]], 1.5, True])
def test_a_field_of_another_type_is_named(name, wrong):
    values = json.loads(FULL.to_json())
    if type(wrong) is type(values[name]):
        wrong = "wrong"
    values[name] = wrong
    with pytest.raises(ValueError, match=name):
        TeacherCard.from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("path", "wrong", "words"),
    [
        (("crop_format", "height"), 0, "card.crop_format.*positive"),
        (("crop_format", "height"), True, r"card\.crop_format\.height must be int"),
        (("crop_format", "number_type"), "int64", r"card\.crop_format\.number_type must be one of"),
        (("crop_format", "colour"), 1, r"card\.crop_format has unknown fields \['colour'\]"),
        (("rendering", "interpolation"), "lanczos", r"card\.rendering\.interpolation"),
        (("rendering", "width"), -3, r"card\.rendering.*positive size"),
        (("features", 1, "shape"), ["9", 4], r"card\.features\[1\]\.shape\[0\] must be int"),
        (("features", 0, "layout"), "cube", r"card\.features\[0\]\.layout"),
        (("features", 0), "embedding", r"card\.features\[0\] must be an object"),
        (("crop_scale",), [0.1], "card.crop_scale must have 2 entries"),
        (("mean",), [0.1, "x"], r"card\.mean\[1\] must be float"),
        (("verification", "crops"), "many", r"card\.verification\.crops"),
        (("center_crop_fraction",), 10**400, "center_crop_fraction is too large"),
        (("activation",), "relu", "activation must be one of"),
        (("precision",), "fp8", "precision must be one of"),
        (("classes",), ["one"], "names 1 classes of 3"),
        (("num_classes",), 0, "0 classes"),
        (("surprise",), 1, r"card has unknown fields \['surprise'\]"),
    ],
)
def test_a_damaged_field_is_named(path, wrong, words):
    values = json.loads(FULL.to_json())
    place = values
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = wrong
    with pytest.raises(ValueError, match=words):
        TeacherCard.from_json(json.dumps(values))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "5", '"card"', "[" * 100_000, b"\xff\xfe{}", FULL.to_json()[:-9]]
)
def test_what_is_no_card_at_all(text):
    with pytest.raises(ValueError, match="card"):
        TeacherCard.from_json(text)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_card_of_another_version_asks_for_a_new_export(version):
    values = json.loads(FULL.to_json()) | {"card_version": version}
    with pytest.raises(ValueError, match=r"card version .*reads 1: export the teacher again"):
        TeacherCard.from_json(json.dumps(values))


def test_outputs_of_the_graph_by_activation():
    assert FULL.graph_outputs == ("log_probabilities", "logits", "embedding", "blocks.3", "stem@attention")
    assert FULL.label_output == "log_probabilities"
    sigmoid = dataclasses.replace(FULL, activation="sigmoid")
    assert (sigmoid.label_output, sigmoid.graph_outputs[:1]) == ("logits", ("logits",))
    assert MINIMAL.graph_outputs == ()


def test_channels_by_layout():
    assert OutputCard(name="v", shape=(5,)).num_channels == 5
    assert OutputCard(name="m", shape=(8, 3, 2), layout="map").num_channels == 8
    assert OutputCard(name="t", shape=(9, 6), layout="tokens").num_channels == 6


def test_class_names_hash_depends_on_order_and_borders():
    assert classes_hash(()) == ""
    assert len({classes_hash(names) for names in (("a", "b"), ("b", "a"), ("ab",), ("a", "b", ""))}) == 4


def test_the_command_that_exports_it_again_keeps_its_taps():
    alone = dataclasses.replace(FULL, members=(), source="timm:tiny")
    command = alone.export_command("stem@4x4", "blocks.3")
    assert "teacherfarm export timm:tiny --name tiny --tap blocks.3 --tap stem@attention --tap stem@4x4" in command
    assert "no taps" in FULL.export_command("stem")
