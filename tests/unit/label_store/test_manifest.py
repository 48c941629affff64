"""The manifest: read back as it was, strict, and a mismatch names the field and both values."""

import dataclasses
import json

import numpy as np
import pytest

from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.label_store.manifest import Manifest, TeacherIdentity
from teacherfarm.label_store.recorded_card import read_card
from teacherfarm.protos.crop import CropFormat, Rendering
from teacherfarm.protos.faults import LabelsMismatch, UnknownOutput
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.protos.teacher_card import OutputCard, TeacherCard, classes_hash
from tests.recordings import index_of, manifest_of

MANIFEST = manifest_of(index_of(3), 50)
CARD = TeacherCard(
    name="lite",
    teacher_digest="t",
    artifact_digest="a",
    model_file="m",
    crop_format=CropFormat(height=8, width=8),
    rendering=Rendering(height=8, width=8),
    num_classes=4,
    activation="softmax",
    features=(OutputCard(name="map", shape=(5, 2, 2), layout="map"),),
    classes=("a", "b", "c", "d"),
)


@pytest.mark.parametrize("manifest", [MANIFEST, manifest_of(index_of(3), 1, top_k=0, has_boxes=True)])
def test_it_is_read_back_from_json_as_it_was(manifest):
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest


def test_it_is_made_of_a_card_and_resolves_the_spec():
    manifest = Manifest.of(
        CARD,
        LabelSpec(outputs=("labels", "map"), top_k=2, feature_type="int8"),
        plan=CropPlan(),
        rendering=CARD.rendering,
        views=2,
        samples="s",
    )
    assert manifest.teacher.classes_hash == classes_hash(CARD.classes)
    assert manifest.teacher.channel_axes == {"map": 0}
    assert manifest.record_dtype.itemsize == 2 * 4 + 5 * 4 + 20
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    with pytest.raises(UnknownOutput):
        Manifest.of(CARD, LabelSpec(outputs=("embedding",)), plan=None, rendering=CARD.rendering, views=1, samples="")


TEACHER = MANIFEST.teacher
OTHERS = {
    "teacher.teacher_digest": {"teacher": dataclasses.replace(TEACHER, teacher_digest="zz")},
    "teacher.artifact_digest": {"teacher": dataclasses.replace(TEACHER, artifact_digest="zz")},
    "teacher.classes_hash": {"teacher": dataclasses.replace(TEACHER, classes_hash="zz")},
    "plan.seed": {"plan": CropPlan(seed=77)},
    "plan.scale": {"plan": CropPlan(seed=3, scale=(0.77, 1.0))},
    "plan": {"plan": None, "has_boxes": True},
    "rendering.interpolation": {"rendering": Rendering(height=224, width=224, interpolation="bicubic")},
    "rendering.width": {"rendering": Rendering(height=224, width=77)},
    "spec.temperature": {"spec": LabelSpec(outputs=("labels",), top_k=10, temperature=77.0)},
    "spec.top_k": {"spec": LabelSpec(outputs=("labels",), top_k=5)},
    "views": {"views": 77},
    "record_dtype": {"record_dtype": np.dtype([("classes", "<u4", (10,)), ("log_probabilities", "<f2", (10,))])},
    "samples": {"samples": "zz"},
    "mixing": {"mixing": "zz"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_mismatch_names_the_field_and_both_values(name):
    other = dataclasses.replace(MANIFEST, **OTHERS[name])
    found, ours, theirs = MANIFEST.mismatch(other)
    assert (found, ours != theirs) == (name, True)
    with pytest.raises(LabelsMismatch) as fault:
        MANIFEST.refuse_other(other, "SOMEWHERE")
    for part in (name, repr(ours), repr(theirs), "SOMEWHERE"):
        assert part in str(fault.value)


def test_the_teachers_name_and_open_samples_do_not_count():
    renamed = dataclasses.replace(MANIFEST, teacher=dataclasses.replace(TEACHER, name="other"), samples="")
    assert MANIFEST.mismatch(renamed) is None
    assert renamed.mismatch(MANIFEST) is None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"views": "50"}, "views must be int"),
        ({"views": 0}, "views lies in"),
        ({"extra": 1}, "extra"),
        ({"teacher": {"name": "x"}}, "manifest.teacher"),
        ({"teacher": 1}, "manifest.teacher must be an object"),
        ({"plan": 5}, "plan is an object"),
        ({"plan": {"kind": "x"}}, "crop plan has the fields"),
        ({"plan": None}, "has_boxes"),
        ({"record_dtype": [["a", "O", []]]}, "numbers only"),
        ({"record_dtype": [["a", "zz", []]]}, "record_dtype is no list"),
        ({"record_dtype": []}, "record_dtype"),
        ({"spec": {"top_k": -1}}, "manifest.spec"),
    ],
)
def test_what_is_no_manifest_is_refused_by_name(change, match):
    with pytest.raises(ValueError, match=match):
        Manifest.from_dict(MANIFEST.to_dict() | change)


def test_a_missing_field_is_refused():
    with pytest.raises(ValueError, match="manifest has the fields"):
        Manifest.from_dict({name: value for name, value in MANIFEST.to_dict().items() if name != "mixing"})


def test_the_identity_is_the_cards():
    assert TeacherIdentity.of(CARD).teacher_digest == "t"


@pytest.mark.parametrize("feature_type", ["float16", "int8"])
def test_a_card_made_of_it_is_the_same_teachers_and_holds_at_the_temperature_of_the_ensemble(tmp_path, feature_type):
    unrecorded = OutputCard(name="mean_logits", shape=(4,))
    teacher = dataclasses.replace(CARD, features=(*CARD.features, unrecorded), fixed_temperature=2.0)
    spec = LabelSpec(outputs=("labels", "map"), feature_type=feature_type)
    options = {"plan": CropPlan(), "rendering": CARD.rendering, "views": 1, "samples": "s"}
    manifest = Manifest.of(teacher, spec, **options)
    card = read_card(str(tmp_path), manifest)
    assert card.fixed_temperature == 2.0
    assert card.features == CARD.features
    assert manifest.mismatch(Manifest.of(card, spec, **options)) is None


def test_the_axes_of_recorded_outputs_count():
    spec = LabelSpec(outputs=("map",))
    manifest = Manifest.of(CARD, spec, plan=CropPlan(), rendering=CARD.rendering, views=1, samples="s")
    turned = dataclasses.replace(manifest, teacher=dataclasses.replace(manifest.teacher, channel_axes={"map": 2}))
    assert manifest.mismatch(turned) == ("teacher.channel_axes", {"map": 0}, {"map": 2})
