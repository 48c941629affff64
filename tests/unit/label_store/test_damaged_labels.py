"""Every flipped bit in a shard, a table, a journal or the manifest is found, and no label with one is ever used."""

import logging
import shutil
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacherfarm.label_store.label_directory import Content
from teacherfarm.label_store.recorded_labels import LabelRecorder, RecordedLabels
from teacherfarm.label_store.sealing import seal
from teacherfarm.protos.faults import BadRecording, DamagedLabels
from tests.recordings import everything, index_of, manifest_of, record, records_of

SAMPLES, VIEWS = 600, 4  # 2400 labels: two full blocks and a part, and with gaps partial ones
ROWS, PLACES_VIEWS = everything(SAMPLES, VIEWS)
GAPS = np.arange(len(ROWS)) % 1500 != 7


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Sealed labels, and the same in two journals."""
    sealed, journals = (tmp_path_factory.mktemp(name) for name in ("sealed", "journals"))
    record(sealed, SAMPLES, VIEWS, rows=ROWS[GAPS], views=PLACES_VIEWS[GAPS])
    for half in (0, 1):
        part = np.flatnonzero(GAPS)[half::2]
        for start in range(0, len(part), 400):
            some = part[start : start + 400]
            record(journals, SAMPLES, VIEWS, rows=ROWS[some], views=PLACES_VIEWS[some], seal=False)
    return {"sealed": sealed, "journals": journals}


def flip(path, place, bit):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def readable(folder):
    """Which labels are read; all of them must be right."""
    records, present = RecordedLabels.open(str(folder)).read(ROWS, PLACES_VIEWS)
    expected = records_of(RecordedLabels.open(str(folder)).manifest, ROWS, PLACES_VIEWS)
    assert (records[present] == expected[present]).all(), "a damaged label was used"
    assert not present[~GAPS].any(), "a label that was never recorded was used"
    return present


@pytest.mark.parametrize(
    ("kind", "pattern"), [("sealed", "*.labels"), ("sealed", "*.table"), ("journals", "*.journal")]
)
@settings(max_examples=60)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), which=st.integers(0, 9))
def test_a_flipped_bit_is_found_and_told(recordings, tmp_path_factory, kind, pattern, where, bit, which):
    folder = tmp_path_factory.mktemp("damaged") / "labels"
    shutil.copytree(recordings[kind], folder)
    paths = sorted(folder.rglob(pattern))
    path = paths[which % len(paths)]
    flip(path, int(where * path.stat().st_size), bit)
    told = Told()
    with told:
        present = readable(folder)
        assert present.sum() < GAPS.sum(), "no label is missing: the damage was not found"
        assert any(path.name in message for message in told.messages), told.messages
        told.messages.clear()
        # Sealing does not carry damage on either.
        seal(folder)
        assert (readable(folder) == present).all()
    shutil.rmtree(folder)


def test_every_flipped_bit_in_the_manifest_is_found(recordings):
    content = (recordings["sealed"] / "manifest.json").read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            with pytest.raises(DamagedLabels, match=r"manifest\.json is not what was written"):
                Content.from_bytes(bytes(flipped), "manifest.json")
    with pytest.raises(DamagedLabels):
        Content.from_bytes(content.replace(b'"views": ', b'"views":  '), "manifest.json")


@settings(max_examples=50)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_index_changes_no_sample_in_silence(recordings, tmp_path_factory, where, bit):
    folder = tmp_path_factory.mktemp("damaged") / "labels"
    shutil.copytree(recordings["sealed"], folder)
    before = RecordedLabels.open(str(folder)).index
    flip(folder / "samples.npz", int(where * (folder / "samples.npz").stat().st_size), bit)
    try:
        after = RecordedLabels.open(str(folder)).index
    except BadRecording as fault:
        assert "samples.npz" in str(fault)  # noqa: PT017 - some bits of a zip file mean nothing
    else:
        assert after.digest() == before.digest()
    shutil.rmtree(folder)


class Told(logging.Handler):
    """Warnings of the label store, while this is entered."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, log_record):
        self.messages.append(log_record.getMessage())

    def __enter__(self):
        logging.getLogger("teacherfarm.label_store").addHandler(self)
        return self

    def __exit__(self, *_):
        logging.getLogger("teacherfarm.label_store").removeHandler(self)


def test_a_damaged_block_is_named_and_the_others_are_used(recordings, tmp_path, caplog):
    shutil.copytree(recordings["sealed"], tmp_path / "labels")
    path = next(tmp_path.rglob("*.labels"))
    flip(path, 1030 * 40, 0)
    labels = RecordedLabels.open(str(tmp_path / "labels"))
    assert not caplog.text, "nothing is checked before it is touched"
    assert labels.read(ROWS[:1024], PLACES_VIEWS[:1024])[1].sum() == 1023
    assert not labels.damaged
    assert not labels.read(ROWS[1024:2048], PLACES_VIEWS[1024:2048])[1].any()
    assert not labels.read(ROWS[1024:2048], PLACES_VIEWS[1024:2048])[1].any()
    (damage,) = labels.damaged
    assert (damage.block, damage.num_labels) == (1, 1024)
    assert (damage.first, damage.last) == ((1, "c/0000424"), (3, "c/0000247"))
    assert caplog.text.count("damaged recorded labels") == 1
    assert f"{path.name}, block 1: 1024 labels, from view 1 of 'c/0000424'" in caplog.text


def test_verify_finds_all_damage_and_tells_how_far_it_is(recordings, tmp_path):
    shutil.copytree(recordings["sealed"], tmp_path / "labels")
    assert RecordedLabels.open(str(tmp_path / "labels")).verify() == []
    path = next(tmp_path.rglob("*.labels"))
    for block in (0, 2):
        flip(path, block * 1024 * 40, 3)
    told = []
    damaged = RecordedLabels.open(str(tmp_path / "labels")).verify(progress=told.append)
    assert [damage.block for damage in damaged] == [0, 2]
    assert sum(told) >= 2400


def test_blocks_that_changed_places_are_found(recordings, tmp_path):
    """Each is whole, but not where it belongs."""
    shutil.copytree(recordings["journals"], tmp_path / "labels")
    seal(tmp_path / "labels")
    shutil.rmtree(tmp_path / "labels")
    folder = tmp_path / "full"
    record(folder, SAMPLES, VIEWS)
    path = next(folder.rglob("*.labels"))
    content = path.read_bytes()
    size = 1024 * 40
    path.write_bytes(content[size : 2 * size] + content[:size] + content[2 * size :])
    assert [damage.block for damage in RecordedLabels.open(str(folder)).verify()] == [0, 1]


@pytest.mark.parametrize("pattern", ["*.labels", "*.table"])
@pytest.mark.parametrize("how", ["missing", "short"])
def test_a_file_that_is_missing_or_short_is_named_and_absent(recordings, tmp_path, caplog, pattern, how):
    shutil.copytree(recordings["sealed"], tmp_path / "labels")
    path = next(tmp_path.rglob(pattern))
    path.unlink() if how == "missing" else path.write_bytes(path.read_bytes()[:-1])
    assert not readable(tmp_path / "labels").any()
    assert f"{path.name}, all of it: 2400 labels" in caplog.text


@pytest.mark.parametrize("where", ["head", "body"])
def test_of_a_damaged_journal_only_the_damaged_frame_is_lost(tmp_path, caplog, where):
    index = index_of(90)
    manifest = manifest_of(index, 1)
    with LabelRecorder(str(tmp_path), manifest, index) as recorder:
        for start in (0, 30, 60):
            rows, views = np.arange(start, start + 30), np.zeros(30, np.int64)
            recorder.add(rows, views, records_of(manifest, rows, views))
        recorder.commit()
        (path,) = (tmp_path / "journals").iterdir()
        frame_bytes = (path.stat().st_size - 32) // 3
        flip(path, 32 + frame_bytes + (10 if where == "head" else 500), 3)
    labels = RecordedLabels.open(str(tmp_path))
    assert np.flatnonzero(~labels.read(np.arange(90), np.zeros(90, np.int64))[1]).tolist() == list(range(30, 60))
    number = "some" if where == "head" else "30"
    assert f"{number} labels in bytes {32 + frame_bytes} to {32 + 2 * frame_bytes} are damaged" in caplog.text


def test_a_torn_frame_is_left_out_without_alarm_and_what_is_before_it_counts(tmp_path, caplog):
    """What kill -9 leaves in the middle of a write: at any length."""
    labels = record(tmp_path, 30, 1, rows=np.arange(30), views=np.zeros(30, np.int64), seal=False)
    (path,) = labels.directory.journals()
    whole = path.read_bytes()
    head, frame = whole[:32], whole[32:]
    for length in range(len(frame)):
        path.write_bytes(head + frame + frame[:length])
        assert len(RecordedLabels.open(str(tmp_path))) == 30
    assert not caplog.text


def test_a_journal_of_other_labels_is_not_merged(tmp_path, caplog):
    one = record(tmp_path / "one", 30, 1, seal=False)
    two = record(tmp_path / "two", 31, 1, seal=False)
    shutil.copy(*one.directory.journals(), tmp_path / "two" / "journals" / "stray.journal")
    assert len(RecordedLabels.open(str(tmp_path / "two"))) == 31
    assert "stray.journal: its head is damaged or it belongs to other labels" in caplog.text
    assert len(two) == 31
    assert seal(tmp_path / "two").new_labels == 31
    assert [path.name for path in (tmp_path / "two" / "journals").iterdir()] == ["stray.journal.unusable"]


def test_a_manifest_of_a_later_version_is_refused(recordings):
    content = (recordings["sealed"] / "manifest.json").read_bytes()
    changed = Content.from_bytes(content, "x")
    import teacherfarm.label_store.label_directory as module

    old = module.MANIFEST_VERSION
    module.MANIFEST_VERSION = 99
    try:
        later = changed.to_bytes()
    finally:
        module.MANIFEST_VERSION = old
    with pytest.raises(ValueError, match="version 99, this teacherfarm reads 1"):
        Content.from_bytes(later, "manifest.json")


def test_places_past_the_end_in_a_well_formed_frame_are_not_used(tmp_path):
    """A journal that lies about a place cannot write outside its shard."""
    import xxhash

    labels = record(tmp_path, 30, 1, seal=False)
    (path,) = labels.directory.journals()
    content = path.read_bytes()
    body = struct.pack("<Q", 2**40) + bytes(40)
    head = struct.pack("<8sIIQ", b"TFFRAME\n", 1, 0, xxhash.xxh3_64_intdigest(body))
    path.write_bytes(content + head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head)) + body)
    assert len(RecordedLabels.open(str(tmp_path))) == 30
    assert seal(tmp_path).new_labels == 30
