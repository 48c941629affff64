"""A disk that is really full (a small tmpfs): recording stops once, with a clear fault; what was committed stays."""

from __future__ import annotations

import contextlib
import subprocess

import numpy as np
import pytest

from teacherfarm.label_store.label_recorder import LabelRecorder
from teacherfarm.label_store.recorded_labels import RecordedLabels
from teacherfarm.label_store.sealing import seal
from teacherfarm.protos.faults import RecordingStopped
from tests.real_parts import absent
from tests.recordings import everything, index_of, manifest_of, records_of

SAMPLES, VIEWS = 4000, 20  # 3.2 MB of labels
ROWS, PLACES_VIEWS = everything(SAMPLES, VIEWS)


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of so many bytes."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size, *, again=False):
        options = f"size={size}" + (",remount" if again else "")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "teacherfarm-test", str(disk)], capture_output=True, text=True
        )
        if done.returncode:
            absent(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        return disk

    yield mount
    subprocess.run(["umount", "--lazy", str(disk)], check=False, capture_output=True)


def record_all(recorder):
    """Add labels in steps, as a training loop; what was raised, and what was added before."""
    raised = []
    for start in range(0, len(ROWS), 500):
        part = slice(start, start + 500)
        try:
            recorder.add(ROWS[part], PLACES_VIEWS[part], records_of(recorder.manifest, ROWS[part], PLACES_VIEWS[part]))
        except RecordingStopped as fault:
            raised.append(str(fault))
    return raised


def readable(folder):
    labels = RecordedLabels.open(str(folder))
    records, present = labels.read(ROWS, PLACES_VIEWS)
    assert (records[present] == records_of(labels.manifest, ROWS, PLACES_VIEWS)[present]).all()
    return present


@pytest.mark.parametrize("commit_every_s", [0.0, 60.0])
def test_recording_stops_once_and_what_was_committed_stays(small_disk, commit_every_s):
    disk = small_disk("1m")
    index = index_of(SAMPLES)
    folder = disk / "labels"
    recorder = LabelRecorder(str(folder), manifest_of(index, VIEWS), index, commit_every_s=commit_every_s)
    raised = record_all(recorder)
    assert len(raised) == 1, "once, and then training goes on undisturbed"
    committed = recorder.commit()
    assert 2000 < committed < len(ROWS)
    assert "No space left on device" in raised[0]
    assert f"{committed} committed labels stay readable" in raised[0]
    assert recorder.dropped > 0
    # Sealing needs room, too: it says so and harms nothing.
    with pytest.raises(RecordingStopped, match=r"cannot be sealed: No space left.*labels seal"):
        recorder.close()
    assert not list(folder.rglob("*.part"))
    assert readable(folder).sum() == committed
    fill(disk)
    with pytest.raises(RecordingStopped, match=r"no labels can be recorded in .*No space left"):
        LabelRecorder(str(folder), recorder.manifest, index)
    # With room again, recording goes on where it stopped.
    (disk / "filled").unlink()
    small_disk("20m", again=True)
    with LabelRecorder(str(folder), recorder.manifest, index) as again:
        assert again.present(ROWS, PLACES_VIEWS).sum() == committed
        assert not record_all(again)
    assert readable(folder).all()


def fill(disk):
    with contextlib.suppress(OSError), open(disk / "filled", "wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


def test_sealing_on_a_disk_that_fills_up_leaves_the_journals(small_disk):
    disk = small_disk("5m")
    index = index_of(SAMPLES)
    recorder = LabelRecorder(str(disk / "labels"), manifest_of(index, VIEWS), index)
    assert not record_all(recorder)
    recorder.close(seal=False)
    with pytest.raises(RecordingStopped, match="cannot be sealed"):
        seal(disk / "labels")
    assert readable(disk / "labels").all()
    small_disk("10m", again=True)
    assert seal(disk / "labels").new_labels == len(ROWS)
    assert readable(disk / "labels").all()
    assert np.all(RecordedLabels.open(str(disk / "labels")).num_sealed == len(ROWS))
