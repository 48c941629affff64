"""Recording, sealing and reading: what was committed is read back as it was, from journals, shards and both."""

import dataclasses
import errno
import gc
import logging
import os
import pickle

import numpy as np
import pytest

from teacherfarm.crops.sample_index import SampleIndex
from teacherfarm.label_store.recorded_labels import LabelRecorder, RecordedLabels
from teacherfarm.label_store.sealing import drop_damaged, seal
from teacherfarm.label_store.shard_space import ShardSpace
from teacherfarm.protos.faults import LabelsMismatch, RecordingStopped
from tests.recordings import boxes_of, everything, index_of, manifest_of, record, records_of

SAMPLES, VIEWS = 500, 7  # 3500 labels: three full blocks and one that ends early, across views


def check_all(labels, there=None):
    """Every label is what was recorded, and exactly those of ``there`` (all) are there."""
    rows, views = everything(SAMPLES, VIEWS)
    there = np.ones(len(rows), bool) if there is None else there
    for _ in range(2):  # blocks at their first touch, and later
        records, present = labels.read(rows, views)
        assert (present == there).all()
        assert (records[there] == records_of(labels.manifest, rows, views)[there]).all()
        assert not records[~there].view(np.uint8).any()


@pytest.mark.parametrize("seal", [False, True])
def test_what_was_recorded_is_read(tmp_path, seal):
    labels = record(tmp_path, SAMPLES, VIEWS, seal=seal)
    assert len(labels) == SAMPLES * VIEWS
    assert labels.num_sealed == (SAMPLES * VIEWS if seal else 0)
    check_all(labels)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("seal", [False, True])
def test_what_was_not_recorded_is_absent(tmp_path, seal, share):
    rows, views = everything(SAMPLES, VIEWS)
    there = np.random.default_rng(1).random(len(rows)) < share
    labels = record(tmp_path, SAMPLES, VIEWS, rows=rows[there], views=views[there], seal=seal)
    check_all(labels, there)
    assert labels.soft_labels(rows, views).weight.tolist() == there.astype(float).tolist()


def test_later_recordings_extend_sealed_labels(tmp_path):
    rows, views = everything(SAMPLES, VIEWS)
    there = np.zeros(len(rows), bool)
    for part in np.array_split(np.random.default_rng(2).permutation(len(rows)), 4):
        there[part] = True
        check_all(record(tmp_path, SAMPLES, VIEWS, rows=rows[part], views=views[part]), there)
    assert not list((tmp_path / "journals").iterdir())
    assert len(list((tmp_path / "shards").iterdir())) == 2, "the shards that were replaced are gone"


def test_sealed_and_unsealed_labels_are_read_together(tmp_path):
    rows, views = everything(SAMPLES, VIEWS)
    record(tmp_path, SAMPLES, VIEWS, rows=rows[:2000], views=views[:2000])
    labels = record(tmp_path, SAMPLES, VIEWS, rows=rows[2000:], views=views[2000:], seal=False)
    assert (labels.num_sealed, len(labels)) == (2000, 3500)
    # What is sealed and recorded once more counts once.
    assert len(record(tmp_path, SAMPLES, VIEWS, rows=rows[1900:2100], views=views[1900:2100], seal=False)) == 3500
    check_all(labels)


def test_a_sealed_label_stays_and_of_several_the_first_counts(tmp_path):
    index = index_of(SAMPLES)
    manifest = manifest_of(index, VIEWS)
    rows, views = everything(SAMPLES, VIEWS)
    sealed = np.arange(len(rows)) < 1000
    record(tmp_path, SAMPLES, VIEWS, rows=rows[sealed], views=views[sealed])
    for salt in (1, 2):
        recorder = LabelRecorder(str(tmp_path), manifest, index)
        recorder.add(rows, views, records_of(manifest, rows, views, salt=salt))
        recorder.add(rows, views, records_of(manifest, rows, views, salt=salt + 10))
        recorder.close(seal=False)
    before, _ = RecordedLabels.open(str(tmp_path)).read(rows, views)
    assert seal(tmp_path).new_labels == 2500
    after, _ = RecordedLabels.open(str(tmp_path)).read(rows, views)
    assert (before == after).all(), "sealing changes no label"
    assert (after[sealed] == records_of(manifest, rows, views)[sealed]).all()
    firsts = [records_of(manifest, rows, views, salt=salt)[~sealed] for salt in (1, 2)]
    assert any((after[~sealed] == first).all() for first in firsts), "one writer's first labels, whole"


def test_sealing_again_changes_nothing(tmp_path):
    record(tmp_path, SAMPLES, VIEWS)
    before = (tmp_path / "manifest.json").read_bytes()
    assert seal(tmp_path) == dataclasses.replace(seal(tmp_path), new_labels=0, journals=0, live=0)
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_journals_that_were_sealed_but_not_removed_cost_nothing(tmp_path):
    """As after kill -9 between the manifest and the removal of the journals."""
    labels = record(tmp_path, SAMPLES, VIEWS, seal=False)
    journals = {path: path.read_bytes() for path in labels.directory.journals()}
    seal(tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    for path, content in journals.items():
        path.write_bytes(content)
    check_all(RecordedLabels.open(str(tmp_path)))
    assert seal(tmp_path).new_labels == 0
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert not list((tmp_path / "journals").iterdir())


def test_a_living_writers_journal_is_left_alone(tmp_path):
    index = index_of(SAMPLES)
    manifest = manifest_of(index, VIEWS)
    rows, views = everything(SAMPLES, VIEWS)
    living = LabelRecorder(str(tmp_path), manifest, index)
    living.add(rows[:100], views[:100], records_of(manifest, rows[:100], views[:100]))
    record(tmp_path, SAMPLES, VIEWS, rows=rows[100:200], views=views[100:200])
    assert len(list((tmp_path / "journals").iterdir())) == 2, "the last writer seals for all"
    sealed = seal(tmp_path)
    assert (sealed.live, sealed.new_labels) == (1, 100)
    living.add(rows[200:], views[200:], records_of(manifest, rows[200:], views[200:]))
    living.close()
    assert not list((tmp_path / "journals").iterdir())
    check_all(RecordedLabels.open(str(tmp_path)))


def test_present_is_what_anybody_committed_or_this_writer_added(tmp_path):
    rows, views = everything(SAMPLES, VIEWS)
    record(tmp_path, SAMPLES, VIEWS, rows=rows[:300], views=views[:300])
    record(tmp_path, SAMPLES, VIEWS, rows=rows[300:400], views=views[300:400], seal=False)
    index = index_of(SAMPLES)
    manifest = manifest_of(index, VIEWS)
    with LabelRecorder(str(tmp_path), manifest, index) as recorder:
        assert np.flatnonzero(recorder.present(rows, views)).tolist() == list(range(400))
        recorder.add(rows[900:905], views[900:905], records_of(manifest, rows[900:905], views[900:905]))
        assert recorder.present(rows, views).sum() == 405
        assert not recorder.present(np.array([-1, 0]), np.array([0, VIEWS])).any()
        assert recorder.commit() == 5


@pytest.mark.parametrize("space", [True, False], ids=["in one space", "mapped one by one"])
@pytest.mark.parametrize("shard_labels", [1024, 2048])
def test_many_shards_read_as_one(tmp_path, monkeypatch, shard_labels, space):
    if not space:
        monkeypatch.setattr(ShardSpace, "reserve", lambda _: None)
    monkeypatch.setattr("teacherfarm.label_store.block_table._MOST_SHARD_BYTES", shard_labels * 40)
    rows, views = everything(SAMPLES, VIEWS)
    there = np.random.default_rng(3).random(len(rows)) < 0.7
    there[1024:2048] = False  # a shard, or half of one, that has no labels
    labels = record(tmp_path, SAMPLES, VIEWS, rows=rows[there], views=views[there])
    assert len(labels.content.shards) == (3 if shard_labels == 1024 else 2)
    check_all(labels, there)
    check_all(record(tmp_path, SAMPLES, VIEWS, rows=rows[~there], views=views[~there]))


@pytest.mark.parametrize("top_k", [5, 10, 0])
def test_boxes_come_back_with_their_labels(tmp_path, top_k):
    index = index_of(SAMPLES)
    manifest = manifest_of(index, VIEWS, has_boxes=True, top_k=top_k)
    rows, views = everything(SAMPLES, VIEWS)
    half = rows % 2 == 0
    with LabelRecorder(str(tmp_path), manifest, index) as recorder:
        recorder.add(
            rows[half], views[half], records_of(manifest, rows[half], views[half]), boxes_of(rows, views)[half]
        )
    labels = RecordedLabels.open(str(tmp_path))
    records, present = labels.read(rows, views)
    assert (present == half).all()
    assert (records[half] == records_of(manifest, rows, views)[half]).all()
    assert (labels.boxes(rows, views)[half] == boxes_of(rows, views)[half]).all()
    soft = labels.soft_labels(rows[half][:4], views[half][:4])
    assert soft.is_top_k == (top_k > 0)
    assert len(soft.top1) == 4


def test_boxes_come_exactly_with_labels_that_have_them(tmp_path):
    index = index_of(2)
    rows = views = np.array([0])
    for has_boxes, boxes in ((False, boxes_of(rows, views)), (True, None)):
        manifest = manifest_of(index, 1, has_boxes=has_boxes)
        with LabelRecorder(str(tmp_path / str(has_boxes)), manifest, index) as recorder:
            with pytest.raises(ValueError, match="if and only if"):
                recorder.add(rows, views, records_of(manifest, rows, views), boxes)
            assert (RecordedLabels.open(str(tmp_path / str(has_boxes))).boxes(rows, views) is None) != has_boxes


@pytest.mark.parametrize("k", [10, 5])
def test_bytes_per_label(tmp_path, k):
    """All but the index of samples: 4 k bytes, and at most a tenth of a byte for all the rest."""
    index = index_of(1000)
    manifest = manifest_of(index, 60, top_k=k)
    rows, views = everything(1000, 60)
    with LabelRecorder(str(tmp_path), manifest, index) as recorder:
        recorder.add(rows, views, records_of(manifest, rows, views))
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file() and file.name != "samples.npz")
    assert 4 * k < size / 60000 <= 4 * k + 0.1


def test_other_labels_are_refused(tmp_path):
    labels = record(tmp_path, SAMPLES, VIEWS)
    other = dataclasses.replace(
        labels.manifest, teacher=dataclasses.replace(labels.manifest.teacher, teacher_digest="zz")
    )
    for refuse in (labels.check, lambda other: LabelRecorder(str(tmp_path), other, labels.index)):
        with pytest.raises(LabelsMismatch, match=r"teacher\.teacher_digest 'aa', wanted is 'zz'"):
            refuse(other)
    with pytest.raises(LabelsMismatch, match="views 7, wanted is 8"):
        labels.check(dataclasses.replace(labels.manifest, views=8))
    labels.check(dataclasses.replace(labels.manifest, views=3, samples=""))
    with pytest.raises(LabelsMismatch, match="views 7, wanted is 3"):
        LabelRecorder(str(tmp_path), dataclasses.replace(labels.manifest, views=3), labels.index)
    with pytest.raises(ValueError, match="the index is"):
        LabelRecorder(str(tmp_path), labels.manifest, index_of(SAMPLES + 1))


def test_a_reader_is_not_disturbed_by_sealing(tmp_path):
    """It goes on reading the shards that were replaced, and the journals that are gone."""
    rows, views = everything(SAMPLES, VIEWS)
    record(tmp_path, SAMPLES, VIEWS, rows=rows[:2000], views=views[:2000])
    reader = record(tmp_path, SAMPLES, VIEWS, rows=rows[2000:], views=views[2000:], seal=False)
    seal(tmp_path)
    check_all(reader)


def test_labels_that_a_failing_disk_took_back_are_absent(tmp_path):
    """A reader may have seen what was never committed."""
    labels = record(tmp_path, SAMPLES, VIEWS, seal=False)
    (path,) = labels.directory.journals()
    os.truncate(path, path.stat().st_size - 10 * 40)
    rows, views = everything(SAMPLES, VIEWS)
    assert np.flatnonzero(~labels.read(rows, views)[1]).tolist() == list(range(len(rows) - 10, len(rows)))


def test_readers_that_are_gone_leave_nothing_mapped(tmp_path):
    record(tmp_path, SAMPLES, VIEWS)

    def mapped():
        check_all(RecordedLabels.open(str(tmp_path)))
        gc.collect()
        with open("/proc/self/maps") as file:
            return sum(str(tmp_path) in line for line in file)

    assert mapped() == 0
    labels = RecordedLabels.open(str(tmp_path))
    assert mapped() == 1
    check_all(labels)


def test_a_reader_goes_to_other_processes_by_its_place(tmp_path):
    labels = record(tmp_path, SAMPLES, VIEWS)
    content = pickle.dumps(labels)
    assert len(content) < 1000
    check_all(pickle.loads(content))


def test_a_commit_is_on_disk_before_it_is_reported(tmp_path, monkeypatch):
    """And so are the shards before the manifest names them, and the manifest before the journals go."""
    index = index_of(4)
    manifest = manifest_of(index, 2)
    rows, views = everything(4, 2)
    recorder = LabelRecorder(str(tmp_path), manifest, index, commit_every_s=60.0)
    done = []
    for name, do in (("fsync", os.fsync), ("replace", os.replace), ("unlink", os.unlink)):

        def watched(what, *more, name=name, do=do):
            path = os.readlink(f"/proc/self/fd/{what}") if name == "fsync" else os.fspath(what)
            done.append((name, os.path.basename(path).rpartition(".")[2]))
            return do(what, *more)

        monkeypatch.setattr(os, name, watched)
    recorder.add(rows, views, records_of(manifest, rows, views))
    assert not done
    assert recorder.commit() == 8
    assert done == [("fsync", "journal")]
    done.clear()
    recorder.close()
    # Beside, table and labels, each: content, name, folder. Then the manifest; then the journal goes.
    written = [("fsync", "part"), ("replace", "part"), ("fsync", "shards")]
    root = tmp_path.name.rpartition(".")[2]
    done = [step for step in done if step != ("unlink", "part")]
    assert done[:9] == [*written, *written, ("fsync", "part"), ("replace", "part"), ("fsync", root)]
    assert done[9] == ("unlink", "journal")


@pytest.mark.parametrize("failures", [1, 100])
def test_a_disk_that_cannot_keep_what_was_written_loses_no_committed_label(tmp_path, monkeypatch, failures):
    """Some file systems find out at fsync that they have no room; asked again, Linux says that all is well."""
    index = index_of(SAMPLES)
    manifest = manifest_of(index, VIEWS)
    rows, views = everything(SAMPLES, VIEWS)
    records = records_of(manifest, rows, views)
    recorder = LabelRecorder(str(tmp_path), manifest, index, commit_every_s=60.0)
    recorder.add(rows[:50], views[:50], records[:50])
    assert recorder.commit() == 50
    recorder.add(rows[50:80], views[50:80], records[50:80])

    fsync, failed = os.fsync, []

    def full(file):
        if len(failed) == failures:
            return fsync(file)
        failed.append(file)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RecordingStopped, match=r"50 committed labels stay readable, 30 others are lost"):
            recorder.commit()
    assert recorder.commit() == 50
    recorder.add(rows[80:], views[80:], records[80:])
    assert recorder.dropped == len(rows) - 80
    recorder.close()
    check_all(RecordedLabels.open(str(tmp_path)), np.arange(len(rows)) < 50)


def test_where_nothing_is_recorded(tmp_path):
    with pytest.raises(ValueError, match=r"no recorded labels in .*teacherfarm label"):
        RecordedLabels.open(str(tmp_path))


def test_rows_and_views_that_cannot_be(tmp_path):
    labels = record(tmp_path, SAMPLES, VIEWS)
    for rows, views in (([-2], [0]), ([SAMPLES], [0]), ([0], [-1])):
        with pytest.raises(ValueError, match="rows lie in"):
            labels.read(np.array(rows), np.array(views))
    with pytest.raises(ValueError, match="equally long"):
        labels.read(np.array([1, 2]), np.array([0]))
    _, present = labels.read(np.array([-1, 3, 3]), np.array([0, VIEWS, 0]))
    assert present.tolist() == [False, False, True]
    assert len(labels.read(np.zeros(0, np.int64), np.zeros(0, np.int64))[0]) == 0


def test_arrays_that_do_not_fit_are_refused_at_add(tmp_path):
    index = index_of(4)
    manifest = manifest_of(index, 2)
    rows = views = np.array([0, 1])
    records = records_of(manifest, rows, views)
    with LabelRecorder(str(tmp_path), manifest, index) as recorder:
        for arrays, match in (
            ((rows, views, records.view("V40")), "records are"),
            ((rows[:1], views, records), "equally long"),
            ((rows, views + 1, records), "views in 0..1"),
            ((rows + 3, views, records), "rows lie in 0..3"),
        ):
            with pytest.raises(ValueError, match=match):
                recorder.add(*arrays)
        assert recorder.commit() == 0


@pytest.mark.parametrize("top_k", [10, 0])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_broken_teachers_labels_are_refused_by_name(tmp_path, caplog, top_k, value):
    index = index_of(4)
    manifest = manifest_of(index, 2, top_k=top_k)
    rows, views = everything(4, 2)
    records = records_of(manifest, rows, views)
    name = "log_probabilities" if top_k else "labels"
    # Minus infinity is a probability of zero: fine, but not for the best class.
    records[name][5, 0 if top_k else slice(None)] = value
    records[name][2, -1] = -np.inf
    with LabelRecorder(str(tmp_path), manifest, index) as recorder:
        recorder.add(rows, views, records)
        assert recorder.refused == 1
    assert "view 1 of 'c/0000001'" in caplog.text
    _, present = RecordedLabels.open(str(tmp_path)).read(rows, views)
    assert np.flatnonzero(~present).tolist() == [5]


def test_samples_are_matched_by_name_and_hash(tmp_path, caplog):
    labels = record(tmp_path, 6, 1)
    index = labels.index
    order = np.array([4, 2, 0, 1, 5])
    names, hashes = index.names[order].copy(), index.hashes[order].copy()
    names[1] = b"renamed"
    hashes.view(np.uint8).reshape(-1, 16)[3, 0] ^= 1  # sample 1 changed
    names[4], hashes.view(np.uint8).reshape(-1, 16)[4, 0] = b"new", 77
    other = SampleIndex(
        names=names,
        hashes=hashes,
        heights=index.heights[order],
        widths=index.widths[order],
        targets=index.targets[order],
    )
    with caplog.at_level(logging.WARNING):
        assert labels.rows_of(other).tolist() == [4, 2, 0, -1, -1]
    assert "'c/0000001' are other images" in caplog.text
    assert "'new' were never recorded" in caplog.text
    assert labels.rows_of(index).tolist() == list(range(6))


def test_damaged_blocks_can_be_dropped_and_recorded_again(tmp_path):
    labels = record(tmp_path, SAMPLES, VIEWS)
    path = next((tmp_path / "shards").glob("*.labels"))
    content = bytearray(path.read_bytes())
    content[40 * 1500] ^= 4  # in the second block
    path.write_bytes(content)
    assert drop_damaged(tmp_path) == 1024
    assert drop_damaged(tmp_path) == 0
    there = np.ones(SAMPLES * VIEWS, bool)
    there[1024:2048] = False
    check_all(RecordedLabels.open(str(tmp_path)), there)
    rows, views = everything(SAMPLES, VIEWS)
    with LabelRecorder(str(tmp_path), labels.manifest, labels.index) as recorder:
        assert (recorder.present(rows, views) == there).all()
    check_all(record(tmp_path, SAMPLES, VIEWS, rows=rows[~there], views=views[~there]))


def test_labels_recorded_again_take_the_place_of_damaged_ones(tmp_path, caplog):
    record(tmp_path, SAMPLES, VIEWS)
    path = next((tmp_path / "shards").glob("*.labels"))
    content = bytearray(path.read_bytes())
    content[40 * 1500] ^= 4
    path.write_bytes(content)
    rows, views = everything(SAMPLES, VIEWS)
    again = slice(1024, 2048)
    check_all(record(tmp_path, SAMPLES, VIEWS, rows=rows[again], views=views[again], seal=False))
    seal(tmp_path)
    assert "block 1 is damaged" in caplog.text
    check_all(RecordedLabels.open(str(tmp_path)))
