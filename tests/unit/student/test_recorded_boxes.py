"""Boxes that were recorded serve as a crop plan: the crops of a data set are those that were labelled."""

import pickle

import numpy as np
import pytest

from teacherfarm.crops.crop_plan import BOX, CropPlan
from teacherfarm.crops.sample_index import index_dataset
from teacherfarm.crops.view_schedule import ViewSchedule
from teacherfarm.label_store.manifest import Manifest
from teacherfarm.label_store.recorded_labels import LabelRecorder, RecordedLabels
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.crop_dataset import CropDataset
from teacherfarm.student.image_sources import image_source
from teacherfarm.student.recorded_boxes import RecordedBoxes
from teacherfarm.student.recorded_teacher import RecordedTeacher
from tests.unit.student.image_folders import write_images
from tests.unit.student.pattern_teacher import CLASSES, PatternTeacher

SIZE = 40


@pytest.fixture
def recorded(tmp_path):
    """Labels of two views of each image, but for the second of image 1; every box is at a place of its own."""
    index = index_dataset(write_images(tmp_path / "data", CLASSES, 1, size=SIZE))
    card = PatternTeacher().card
    manifest = Manifest.of(
        card,
        LabelSpec(top_k=1),
        plan=None,
        rendering=card.rendering,
        views=2,
        samples=index.digest(),
        has_boxes=True,
    )
    rows, views = np.repeat(np.arange(len(index)), 2), np.tile(np.arange(2), len(index))
    wanted = (rows != 1) | (views != 1)
    boxes = np.zeros(len(rows), BOX)
    boxes["top"], boxes["left"] = rows, views + 3
    boxes["height"], boxes["width"], boxes["flip"] = 5 + rows, 7, views == 1
    with LabelRecorder(str(tmp_path / "labels"), manifest, index) as recorder:
        recorder.add(rows[wanted], views[wanted], np.zeros(wanted.sum(), manifest.record_dtype), boxes[wanted])
    return tmp_path, RecordedLabels.open(str(tmp_path / "labels")), boxes.reshape(-1, 2)


def test_boxes_are_those_recorded_and_a_plans_where_none_was(recorded):
    folder, labels, boxes = recorded
    source = image_source(folder / "data")
    numbers = labels.index.numbers()[::-1]
    plan = RecordedBoxes.of(labels, source, seed=5)
    for same in (plan, pickle.loads(pickle.dumps(plan))):
        found = same.boxes(numbers[:, None], [[0, 1]], SIZE, SIZE)[::-1]
        absent = CropPlan(seed=5).box(int(labels.index.numbers()[1]), 1, SIZE, SIZE)
        assert found[1, 1].tolist() == (absent.top, absent.left, absent.height, absent.width, absent.flip)
        found[1, 1] = boxes[1, 1]
        np.testing.assert_array_equal(found, boxes)
    unknown = np.array([12345], np.uint64)
    np.testing.assert_array_equal(
        plan.boxes(unknown, [0], SIZE, SIZE), CropPlan(seed=5).boxes(unknown, [0], SIZE, SIZE)
    )


@pytest.mark.filterwarnings("ignore:.*views per sample are replayed")
def test_a_renamed_image_keeps_its_boxes(recorded):
    folder, labels, boxes = recorded
    renamed = folder / "data" / CLASSES[2] / "renamed.png"
    (folder / "data" / CLASSES[2] / "0000.png").rename(renamed)
    source = image_source(folder / "data")
    dataset = CropDataset(
        source,
        teacher_rendering=None,
        student_rendering=Rendering(height=8, width=8),
        plan=RecordedBoxes.of(labels, source),
        schedule=ViewSchedule(views=2, order="cycle"),
    )
    place = [source.name(number) for number in range(len(source))].index(f"{CLASSES[2]}/renamed")
    row = [labels.index.name(number) for number in range(len(labels.index))].index(f"{CLASSES[2]}/0000")
    from teacherfarm.crops.crop_plan import sample_number
    from teacherfarm.crops.cutting import decode_and_cut

    number = sample_number(source.name(place))
    np.testing.assert_array_equal(dataset.plan.boxes([number], [0], SIZE, SIZE)[0], boxes[row, 0])
    assert RecordedTeacher(labels, dataset, on_missing="skip").rows[place] == row
    cut = dataset[place]["images"]
    due = decode_and_cut(renamed.read_bytes(), boxes[row, :1], Rendering(height=8, width=8))
    np.testing.assert_array_equal(np.asarray(cut), due)


def test_labels_with_a_plan_have_no_boxes_and_boxes_are_no_plan(recorded):
    folder, labels, _ = recorded
    source = image_source(folder / "data")
    plan = RecordedBoxes.of(labels, source)
    arguments = {"rendering": labels.manifest.rendering, "views": 2, "samples": ""}
    with pytest.raises(ValueError, match="boxes that were recorded are no crop plan"):
        Manifest.of(PatternTeacher().card, LabelSpec(), plan=plan, **arguments)
