import argparse
import errno
import logging
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.crops.cutting import cut
from teacherfarm.crops.mixing import Mix, mix_references
from teacherfarm.crops.sample_index import index_dataset
from teacherfarm.crops.view_schedule import ViewSchedule
from teacherfarm.label_store.recorded_labels import RecordedLabels
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.faults import BadReference, LabelsMismatch, LabelsMissing, ReplayRefused, SampleChanged
from teacherfarm.protos.references import CropReferences
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.crop_dataset import CropDataset, collate_crops
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.recipes.kept_labels import KeptLabels
from teacherfarm.student.recipes.ranks import Ranks
from teacherfarm.student.recipes.views_to_label import ImageViews, ViewsToLabel
from teacherfarm.student.recorded_teacher import RecordedTeacher, refuse_replay
from teacherfarm.student.recording_teacher import RecordingTeacher
from tests.unit.student.fake_teacher import FakeTeacher, make_card
from tests.unit.student.image_folders import write_images

SIZE = 8
VIEWS = 3
TEACHERS = Rendering(height=SIZE, width=SIZE)
IN_TURN = ViewSchedule(views=VIEWS, order="cycle", per_visit=1)

pytestmark = pytest.mark.filterwarnings("ignore:.*views per sample are replayed")


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images", ("ant", "bee"), 4)


def crops_of(images, *, rendering=TEACHERS, schedule=IN_TURN, **more):
    student = Rendering(height=4, width=4)
    return CropDataset(images, teacher_rendering=rendering, student_rendering=student, schedule=schedule, **more)


def loader_of(dataset, teacher, *, pixels=True, workers=0, batch=4):
    return LabelledLoader(
        DataLoader(dataset, batch_size=batch, collate_fn=collate_crops, num_workers=workers),
        teacher,
        (lambda batch: batch["crops"]) if pixels else None,
        keys=lambda batch: batch["keys"],
        samples=lambda batch: batch["samples"],
        views=lambda batch: batch["views"],
        weight_view=lambda batch: batch["weight"],
    )


def epochs(loader, count):
    """What each of the passes' batches had: student's pixels, label records, weights."""
    seen = []
    for epoch in range(count):
        loader.set_epoch(epoch)
        seen += [
            (b["images"].numpy().tobytes(), labels.records.tobytes(), labels.weight.tolist()) for b, labels in loader
        ]
    return seen


def record(images, folder, *, teacher=None, count=VIEWS, **more):
    dataset = crops_of(images, **more)
    with RecordingTeacher(teacher or FakeTeacher(), dataset, folder) as recording:
        return epochs(loader_of(dataset, recording), count)


@pytest.mark.parametrize("spec", [LabelSpec(), LabelSpec(top_k=3, temperature=2.0)], ids=["dense", "top-3"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_replay_equals_the_recording_batch_for_batch_and_needs_no_teacher(images, tmp_path, spec, workers):
    first = record(images, tmp_path / "labels", teacher=FakeTeacher(spec=spec))
    labels = RecordedLabels.open(str(tmp_path / "labels"))
    assert len(labels) == labels.num_sealed == 8 * VIEWS
    dataset = crops_of(images, rendering=None)
    teacher = RecordedTeacher(labels, dataset)
    assert epochs(loader_of(dataset, teacher, pixels=False, workers=workers), VIEWS) == first
    assert (teacher.replayed, teacher.missing) == (8 * VIEWS, 0)


def test_views_of_several_crops_at_once_replay_too(images, tmp_path):
    drawn = ViewSchedule(views=VIEWS, order="permute", per_visit=2, seed=4)
    first = record(images, tmp_path / "labels", schedule=drawn, count=5)
    dataset = crops_of(images, schedule=drawn, rendering=None)
    teacher = RecordedTeacher(RecordedLabels.open(str(tmp_path / "labels")), dataset)
    assert epochs(loader_of(dataset, teacher, pixels=False), 5) == first


def test_only_what_is_missing_is_asked_and_recorded(images, tmp_path):
    folder = tmp_path / "labels"
    whole = record(images, tmp_path / "whole")
    record(images, folder, count=2)
    client, dataset = FakeTeacher(), crops_of(images)
    with RecordingTeacher(client, dataset, folder, again=True) as recording:
        teacher = RecordedTeacher(RecordedLabels.open(str(folder)), dataset, otherwise=recording)
        assert epochs(loader_of(dataset, teacher), VIEWS) == whole
        assert len(client.asked) == 8
        recording.commit()
        teacher.refresh()
        assert epochs(loader_of(dataset, teacher), VIEWS) == whole
        assert len(client.asked) == 8  # what it recorded itself is replayed now
    assert client.untaken == 0
    assert len(RecordedLabels.open(str(folder))) == 8 * VIEWS


def test_without_a_teacher_a_missing_label_is_named_or_skipped(images, tmp_path):
    record(images, tmp_path / "labels", count=2)
    labels = RecordedLabels.open(str(tmp_path / "labels"))
    dataset = crops_of(images, rendering=None)
    loader = loader_of(dataset, RecordedTeacher(labels, dataset), pixels=False)
    epochs(loader, 2)
    loader.set_epoch(2)
    with pytest.raises(LabelsMissing, match=r"view 2 of 'ant/0000' was not recorded.*16 of 24.*teacherfarm label"):
        list(loader)
    skipping = loader_of(dataset, RecordedTeacher(labels, dataset, on_missing="skip"), pixels=False)
    assert [weight for _, _, weight in epochs(skipping, VIEWS)] == [[1.0] * 4] * 4 + [[0.0] * 4] * 2
    with pytest.raises(ValueError, match="'raise' or 'skip', got 'ask'"):
        RecordedTeacher(labels, dataset, on_missing="ask")


def test_recording_alone_asks_for_everything_and_keeps_what_is_new(images, tmp_path):
    record(images, tmp_path / "labels", count=1)
    dataset, client = crops_of(images), FakeTeacher()
    with RecordingTeacher(client, dataset, tmp_path / "labels") as recording:
        epochs(loader_of(dataset, recording), 2)
    assert len(client.asked) == 16
    assert recording.recorded == 8


@pytest.mark.parametrize(
    ("more", "field", "values"),
    [
        ({"plan": CropPlan(seed=1)}, "plan.seed", ("0", "1")),
        ({"plan": CropPlan(scale=(0.2, 1.0))}, "plan.scale", ("0.08", "0.2")),
        (
            {"rendering": Rendering(height=SIZE, width=SIZE, interpolation="bicubic")},
            "rendering.interp",
            ("bil", "bic"),
        ),
    ],
)
def test_other_crops_than_recorded_are_refused(images, tmp_path, more, field, values):
    record(images, tmp_path / "labels")
    labels = RecordedLabels.open(str(tmp_path / "labels"))
    with pytest.raises(LabelsMismatch, match=f"{field}.*{values[0]}.*{values[1]}"):
        RecordedTeacher(labels, crops_of(images, **more))
    with pytest.raises(LabelsMismatch, match=field):
        RecordingTeacher(FakeTeacher(), crops_of(images, **more), tmp_path / "labels")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (FakeTeacher(make_card(size=SIZE, name="other")), r"teacher_digest 'digest-of-fake'.*'digest-of-other'"),
        (FakeTeacher(spec=LabelSpec(top_k=3)), r"spec.top_k 0, wanted is 3"),
    ],
)
def test_another_teacher_or_spec_is_refused(images, tmp_path, other, words):
    record(images, tmp_path / "labels")
    with pytest.raises(LabelsMismatch, match=words):
        RecordedTeacher(RecordedLabels.open(str(tmp_path / "labels")), crops_of(images), otherwise=other)
    with pytest.raises(LabelsMismatch, match=words):
        RecordingTeacher(other, crops_of(images), tmp_path / "labels")


def test_what_must_not_come_twice_is_refused(images, tmp_path):
    record(images, tmp_path / "labels")
    labels = RecordedLabels.open(str(tmp_path / "labels"))
    with pytest.raises(ReplayRefused, match=r"'fresh' never repeats.*views=3, order='permute'"):
        RecordedTeacher(labels, crops_of(images, schedule=ViewSchedule()))
    with pytest.raises(ReplayRefused, match=r"through 60 views.*holds 3"):
        RecordedTeacher(labels, crops_of(images, schedule=ViewSchedule(views=60, order="cycle")))
    with pytest.raises(ReplayRefused, match="FunMatch cannot learn from recorded labels: it mixes fresh crops"):
        refuse_replay(RecordedTeacher(labels, crops_of(images)), "FunMatch", "it mixes fresh crops")
    refuse_replay(FakeTeacher(), "FunMatch", "it mixes fresh crops")
    with pytest.raises(ValueError, match="give views="):
        RecordingTeacher(FakeTeacher(), crops_of(images, schedule=ViewSchedule()), tmp_path / "fresh")


def test_fresh_crops_are_recorded_and_replayed_in_turn(images, tmp_path):
    dataset = crops_of(images, schedule=ViewSchedule())
    with RecordingTeacher(FakeTeacher(), dataset, tmp_path / "labels", views=VIEWS) as recording:
        first = epochs(loader_of(dataset, recording), VIEWS)
    again = crops_of(images, rendering=None)
    teacher = RecordedTeacher(RecordedLabels.open(str(tmp_path / "labels")), again)
    assert epochs(loader_of(again, teacher, pixels=False), VIEWS) == first


def test_a_changed_image_gets_no_other_images_label(images, tmp_path, caplog):
    first = record(images, tmp_path / "labels")
    shutil.copy(images / "bee" / "0001.png", images / "ant" / "0002.png")
    labels = RecordedLabels.open(str(tmp_path / "labels"))
    dataset = crops_of(images, rendering=None)
    with pytest.raises(SampleChanged, match=r"ant/0002 changed since its labels were recorded"):
        epochs(loader_of(dataset, RecordedTeacher(labels, dataset), pixels=False), 1)
    dataset = crops_of(images, rendering=None, on_unreadable="skip")
    seen = epochs(loader_of(dataset, RecordedTeacher(labels, dataset), pixels=False), 1)
    assert [weight for _, _, weight in seen] == [[1, 1, 0, 1], [1, 1, 1, 1]]
    assert seen[1] == first[1]
    assert "ant/0002 changed" in caplog.text


def test_images_go_by_name_in_any_order_and_by_content_where_renamed(images, tmp_path, caplog):
    record(images, tmp_path / "labels")
    labels = RecordedLabels.open(str(tmp_path / "labels"))
    (images / "ant" / "0000.png").rename(images / "bee" / "new.png")
    dataset = crops_of(images, rendering=None)
    teacher = RecordedTeacher(labels, dataset)
    names = [dataset.source.name(place) for place in range(len(dataset))]
    assert [labels.index.name(row) for row in teacher.rows] == [n.replace("bee/new", "ant/0000") for n in names]
    (images / "bee" / "unknown.png").write_bytes((images / "bee" / "new.png").read_bytes() + b"more")
    dataset = crops_of(images, rendering=None)
    assert RecordedTeacher(labels, dataset).rows.tolist().count(-1) == 1
    assert "1 of 9 images were never recorded, under any name: 'bee/unknown'" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_renamed_image_is_cut_as_under_the_name_that_it_was_recorded_with(images, tmp_path, workers):
    record(images, tmp_path / "labels")
    (images / "ant" / "0000.png").rename(images / "bee" / "new.png")
    (images / "bee" / "0001.png").rename(images / "bee" / "other.png")
    dataset = crops_of(images)
    teacher = RecordedTeacher(RecordedLabels.open(str(tmp_path / "labels")), dataset)
    loader, said = loader_of(dataset, teacher, workers=workers), FakeTeacher()
    for epoch in range(VIEWS):
        loader.set_epoch(epoch)
        for batch, labels in loader:
            assert labels.weight.all()
            assert labels.records.tobytes() == said.answer(batch["crops"].numpy()).records.tobytes()


def test_a_renamed_images_labels_are_recorded_as_those_of_its_recorded_name(images, tmp_path):
    plain = record(images, tmp_path / "plain")
    with RecordingTeacher(FakeTeacher(), crops_of(images), tmp_path / "labels"):
        pass
    (images / "ant" / "0000.png").rename(images / "ant" / "9999.png")
    record(images, tmp_path / "labels")
    (images / "ant" / "9999.png").rename(images / "ant" / "0000.png")
    dataset = crops_of(images, rendering=None)
    replayed = RecordedTeacher(RecordedLabels.open(str(tmp_path / "labels")), dataset)
    assert epochs(loader_of(dataset, replayed, pixels=False), VIEWS) == plain


def test_labels_of_another_name_than_is_recorded_now_are_asked_again(images, tmp_path):
    """Its crop cannot be that of both names; the others are replayed."""
    record(images, tmp_path / "old")
    (images / "ant" / "0000.png").rename(images / "ant" / "9999.png")
    dataset, client = crops_of(images), FakeTeacher()
    with RecordingTeacher(client, dataset, tmp_path / "new") as recording:
        teacher = RecordedTeacher(RecordedLabels.open(str(tmp_path / "old")), dataset, otherwise=recording)
        seen = epochs(loader_of(dataset, teacher), VIEWS)
    assert (teacher.replayed, teacher.missing, recording.recorded) == (7 * VIEWS, VIEWS, VIEWS)
    fresh = crops_of(images)
    assert epochs(loader_of(fresh, FakeTeacher()), VIEWS) == seen


def test_whoever_else_cuts_a_renamed_image_goes_by_its_recorded_name_too(images):
    dataset, numbers = crops_of(images, by_reference="images"), index_dataset(images).numbers()
    views, unknown = np.arange(VIEWS), np.zeros(len(dataset), "V16")
    own_name = ViewsToLabel(dataset.source, plan=dataset.plan, teacher_rendering=TEACHERS, views=VIEWS)
    own_name.expect(unknown, {2: int(numbers[5])})
    labelled = own_name.__getitems__([ImageViews(sample=2, views=views)])[0]["crops"].numpy()
    image = dataset.source.load(2).pixels("image")
    np.testing.assert_array_equal(
        labelled, cut(image, dataset.plan.boxes(numbers[5], views, *image.shape[:2]), TEACHERS)
    )
    references = dataset.references(on_refused="send")
    dataset.expect(unknown, {2: int(numbers[5]), 5: int(numbers[2])})
    assert references.own_pixels is not None
    sent = references.own_pixels(CropReferences.of_views([numbers[5]] * VIEWS, [1] * VIEWS, views))
    np.testing.assert_array_equal(sent, labelled)


def test_every_data_set_of_a_recording_run_goes_by_recorded_names(images, tmp_path):
    """The last passes of FKD's training have a data set of their own."""
    with RecordingTeacher(FakeTeacher(), crops_of(images), tmp_path / "labels"):
        pass
    (images / "ant" / "0000.png").rename(images / "ant" / "9999.png")
    options = argparse.Namespace(
        labels=None,
        label_maps=None,
        record=str(tmp_path / "labels"),
        teacher_address="zmq://127.0.0.1:1",
        order="cycle",
        views=VIEWS,
    )
    kept, client = KeptLabels(options), FakeTeacher()
    seen = []
    for dataset in (crops_of(images), crops_of(images)):
        kept.source(dataset, client, Ranks(rank=0, num_ranks=1, device=torch.device("cpu")))
        seen.append(collate_crops(dataset.__getitems__(range(8)))["crops"].numpy())
    kept.close(seal=True)
    np.testing.assert_array_equal(*seen)
    assert (seen[0] != collate_crops(crops_of(images).__getitems__(range(8)))["crops"].numpy()).any()


def test_an_image_that_could_not_be_read_when_it_was_indexed_is_never_recorded(images, tmp_path):
    """Nobody could tell later which image its labels are of."""
    image = images / "ant" / "0001.png"
    image.rename(tmp_path / "mounted later.png")
    image.symlink_to(tmp_path / "not mounted.png")
    record(images, tmp_path / "labels", on_unreadable="skip")
    (tmp_path / "mounted later.png").replace(image)
    record(images, tmp_path / "labels", on_unreadable="skip")
    assert len(RecordedLabels.open(str(tmp_path / "labels"))) == 7 * VIEWS


def test_unreadable_images_are_neither_recorded_nor_missed(images, tmp_path):
    (images / "ant" / "0001.png").write_bytes(b"no image")
    first = record(images, tmp_path / "labels", on_unreadable="skip")
    labels = RecordedLabels.open(str(tmp_path / "labels"))
    assert len(labels) == 7 * VIEWS
    dataset = crops_of(images, rendering=None, on_unreadable="skip")
    seen = epochs(loader_of(dataset, RecordedTeacher(labels, dataset), pixels=False), VIEWS)
    assert (
        [weight for _, _, weight in seen] == [weight for _, _, weight in first] == [[1, 0, 1, 1], [1, 1, 1, 1]] * VIEWS
    )


def test_starved_crops_are_not_recorded(images, tmp_path):
    client = FakeTeacher()
    client.starve = set(range(0, 256, 2))
    first = record(images, tmp_path / "labels", teacher=client)
    answered = sum(sum(weight) for _, _, weight in first)
    assert 0 < answered < 8 * VIEWS
    labels, dataset = RecordedLabels.open(str(tmp_path / "labels")), crops_of(images, rendering=None)
    assert len(labels) == answered
    replayed = loader_of(dataset, RecordedTeacher(labels, dataset, on_missing="skip"), pixels=False)
    assert epochs(replayed, VIEWS) == first


def test_a_full_disk_stops_the_recording_and_not_the_training(images, tmp_path, caplog, monkeypatch):
    whole = record(images, tmp_path / "whole")
    dataset = crops_of(images)
    with RecordingTeacher(FakeTeacher(), dataset, tmp_path / "labels") as recording:
        loader = loader_of(dataset, recording)
        seen = epochs(loader, 1)
        recording.commit()

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(recording.recorder._writer, "append", full)
        for epoch in (1, 2):
            loader.set_epoch(epoch)
            seen += [(b["images"].numpy().tobytes(), y.records.tobytes(), y.weight.tolist()) for b, y in loader]
    assert seen == whole
    assert "No space left" in str(recording.stopped)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"recording stopped, training goes on: {recording.stopped}"
    ]
    assert len(RecordedLabels.open(str(tmp_path / "labels"))) == 8


def test_mixed_crops_are_neither_recorded_nor_replayed(images, tmp_path):
    record(images, tmp_path / "labels")
    plain = CropReferences.of_views([1, 2], [3, 4], [0, 0])
    mixed = mix_references(plain, Mix(kind="mixup", partner=(1, 0), own_share=200))
    places = {"samples": np.array([0, 1]), "views": np.array([0, 0])}
    dataset = crops_of(images)
    with (
        RecordingTeacher(FakeTeacher(), dataset, tmp_path / "labels") as recording,
        pytest.raises(BadReference, match="no single sample"),
    ):
        recording.submit(mixed, **places)
    with pytest.raises(BadReference, match="no single sample"):
        RecordedTeacher(RecordedLabels.open(tmp_path / "labels"), dataset).submit(mixed, **places)


def test_a_loader_says_what_it_lacks(images, tmp_path):
    record(images, tmp_path / "labels")
    dataset = crops_of(images)
    teacher = RecordedTeacher(RecordedLabels.open(str(tmp_path / "labels")), dataset)
    batches = DataLoader(dataset, collate_fn=collate_crops)
    with pytest.raises(ValueError, match="RecordedTeacher goes by sample and view"):
        LabelledLoader(batches, teacher, lambda batch: batch["crops"])
    with pytest.raises(ValueError, match="teacher_view says where"):
        LabelledLoader(batches, FakeTeacher())
    short = LabelledLoader(
        batches, teacher, samples=lambda batch: batch["samples"], views=lambda batch: torch.zeros(7, dtype=torch.int64)
    )
    with pytest.raises(ValueError, match=r"views= must give one number for each of 1 crops, got \[7\]"):
        list(short)
    # A client needs neither, and is not given them.
    assert np.isfinite([y.records["labels"].sum() for _, y in loader_of(dataset, FakeTeacher())]).all()


def test_damaged_labels_are_asked_again_and_recorded_anew(images, tmp_path, caplog):
    folder = tmp_path / "labels"
    whole = record(images, folder)
    (shard,) = (folder / "shards").glob("*.labels")
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    client, dataset = FakeTeacher(), crops_of(images)
    with RecordingTeacher(client, dataset, folder, again=True) as recording:
        teacher = RecordedTeacher(RecordedLabels.open(str(folder)), dataset, otherwise=recording)
        assert epochs(loader_of(dataset, teacher), VIEWS) == whole
    assert len(client.asked) == 8 * VIEWS  # all of them lie in one block
    assert "damaged recorded labels are not used, and will be asked again" in caplog.text
    dataset = crops_of(images, rendering=None)
    teacher = RecordedTeacher(RecordedLabels.open(str(folder)), dataset)
    assert epochs(loader_of(dataset, teacher, pixels=False), VIEWS) == whole
