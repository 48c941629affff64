"""Labels on disk: bounded in size and age, in the face of full disks, damaged files and a writer that is killed."""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from teacherfarm.label_store import lmdb_store as module
from teacherfarm.label_store.lmdb_segment import Segment, SegmentCutShort, new_path, segment_paths, started_s
from teacherfarm.label_store.lmdb_store import LmdbStore
from teacherfarm.protos.faults import LabelStoreFault
from tests.label_stores import SCOPE, lmdb_store, reached, written
from tests.on_loop import on_loop
from tests.small_disk import fill_up

WIDE = replace(SCOPE, record_bytes=2000)
ROOT = Path(__file__).resolve().parents[2]
MOMENTS = int(os.environ.get("TEACHERFARM_KILL_MOMENTS", "12"))
"""At how many random moments the writer is killed; 100 takes about a minute."""


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def record(number: int, size: int = 2000) -> bytes:
    return random.Random(number).randbytes(size)


async def put(store: LmdbStore, numbers: range) -> None:
    stats = store.stats()[0]
    due = stats.written + stats.dropped + len(numbers)
    store.put(WIDE, [key(n) for n in numbers], [record(n) for n in numbers])
    await written(store, due)


@on_loop
async def test_the_disk_is_bounded_and_the_oldest_segments_go_first(tmp_path):
    store = lmdb_store(tmp_path, most_bytes=16 << 20)
    await store.start()
    for first in range(0, 20_000, 50):
        await put(store, range(first, first + 50))
    on_disk = sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir())
    found = await store.get(WIDE, [key(n) for n in range(20_000)])
    kept = [n for n, one in enumerate(found) if one is not None]
    await store.close()
    # Not more than allowed, not much less, and of those that came last, each as it was.
    assert 10 << 20 < on_disk <= 16 << 20
    assert kept == list(range(kept[0], 20_000))
    assert all(found[n] == record(n) for n in kept[::50])
    assert store.stats()[0].kept_labels == len(kept)


@on_loop
async def test_segments_go_with_their_age(tmp_path, monkeypatch):
    clock = [1_800_000_000.0]
    monkeypatch.setattr(module.time, "time", lambda: clock[0])
    store = lmdb_store(tmp_path, most_age_s=16 * 3600)
    await store.start()
    for hour in range(40):
        clock[0] = 1_800_000_000.0 + 3600 * hour
        await put(store, range(10 * hour, 10 * hour + 10))
    await reached(lambda: len(segment_paths(tmp_path)) == 16)
    found = await store.get(WIDE, [key(n) for n in range(400)])
    await store.close()
    assert [n for n, one in enumerate(found) if one is not None] == list(range(240, 400))


@on_loop
async def test_all_is_there_after_a_restart(tmp_path):
    for first in (0, 10):
        store = lmdb_store(tmp_path)
        await store.start()
        await put(store, range(first, first + 10))
        await store.close()
    store = lmdb_store(tmp_path)
    assert store.stats()[0].kept_labels == 20
    assert await store.get(WIDE, [key(n) for n in range(20)]) == [record(n) for n in range(20)]
    assert len(segment_paths(tmp_path)) == 1
    await store.close()


@on_loop
async def test_a_full_queue_drops_and_says_so(tmp_path):
    store = lmdb_store(tmp_path, queue_bytes=10_000)
    for n in range(10):
        store.put(WIDE, [key(n)], [record(n)])
    assert store.stats()[0].dropped == 6
    await store.start()
    await written(store, 10)
    assert (store.stats()[0].written, store.stats()[0].dropped) == (4, 6)
    await store.close()


@on_loop
async def test_one_writer_at_a_time(tmp_path):
    store = lmdb_store(tmp_path)
    with pytest.raises(LabelStoreFault, match=r"another server keeps its labels in .*--store redis://"):
        lmdb_store(tmp_path)
    await store.close()
    await lmdb_store(tmp_path).close()


def test_a_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LabelStoreFault, match=r"cannot keep labels in .*file.*--store another folder"):
        lmdb_store(tmp_path / "file")
    (tmp_path / "recorded").mkdir()
    (tmp_path / "recorded" / "manifest.json").touch()
    with pytest.raises(LabelStoreFault, match=r"recorded holds recorded labels .*give --store another folder"):
        lmdb_store(tmp_path / "recorded")
    assert [file.name for file in (tmp_path / "recorded").iterdir()] == ["manifest.json"]
    with pytest.raises(ValueError, match="needs 16 MiB or more"):
        lmdb_store(tmp_path, most_bytes=1)


@on_loop
async def test_a_file_that_was_cut_short_ends_nothing_and_is_never_used(tmp_path):
    store = lmdb_store(tmp_path)
    await store.start()
    await put(store, range(1000))
    await store.close()
    [path] = segment_paths(tmp_path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(SegmentCutShort, match=r"has \d+ of \d+ bytes"):
        Segment(path, read_only=True)
    store = lmdb_store(tmp_path)
    await store.start()
    found = await store.get(WIDE, [key(n) for n in range(1000)])
    assert all(one in (None, record(n)) for n, one in enumerate(found))
    assert None in found
    # And it goes on keeping.
    await store.close()


@on_loop
async def test_a_file_damaged_under_its_writer_is_written_no_more(tmp_path, caplog):
    """Its pages are no pages any more: without a new file nothing was kept until its period ended."""
    store = lmdb_store(tmp_path)
    await store.start()
    await put(store, range(1000))
    [path] = segment_paths(tmp_path)
    with path.open("r+b") as file:
        for page in range(2, path.stat().st_size // 4096):
            file.seek(4096 * page + 10)
            file.write(b"\xff\xff")
    await put(store, range(2000, 2003))
    await put(store, range(2003, 2006))
    assert len(segment_paths(tmp_path)) == 2
    assert await store.get(WIDE, [key(n) for n in range(2000, 2006)]) == [record(n) for n in range(2000, 2006)]
    assert (store.stats()[0].dropped, store.stats()[0].why) == (0, "")
    assert f"{path} is damaged" in caplog.text
    await store.close()


@on_loop
async def test_a_file_that_is_none_of_ours_is_put_aside(tmp_path, caplog):
    path = new_path(tmp_path, time.time())
    path.write_bytes(b"no LMDB at all" * 1000)
    store = lmdb_store(tmp_path)
    await store.start()
    await put(store, range(3))
    assert await store.get(WIDE, [key(1)]) == [record(1)]
    await store.close()
    assert path.with_suffix(".damaged").exists()
    assert "put aside" in caplog.text


def test_names_of_segments_sort_by_their_beginning(tmp_path):
    first = new_path(tmp_path, 1_800_000_000.0)
    assert started_s(first) == 1_800_000_000.0
    first.touch()
    # Within the same second, and with a clock that was set back.
    second = new_path(tmp_path, 1_800_000_000.0)
    second.touch()
    third = new_path(tmp_path, 1_700_000_000.0)
    assert sorted([third, second, first]) == [first, second, third]
    (tmp_path / "other.labels").touch()
    assert segment_paths(tmp_path) == [first, second]


@on_loop
async def test_a_full_disk_stops_the_writing_and_not_the_reading(small_disk, caplog):
    store = lmdb_store(small_disk, most_bytes=256 << 20, try_again_s=0.2)
    await store.start()
    await put(store, range(500))
    assert store.stats()[0].why == ""
    filler = small_disk / "filler"
    fill_up(filler)
    for first in range(500, 3000, 500):
        await put(store, range(first, first + 500))
    stats = store.stats()[0]
    assert "not writing to" in stats.why
    assert "No space left" in stats.why
    assert stats.dropped > 0
    assert await store.get(WIDE, [key(n) for n in range(500)]) == [record(n) for n in range(500)]
    errors = [entry for entry in caplog.records if entry.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "answers go on without it" in errors[0].getMessage()
    filler.unlink()

    async def works() -> bool:
        store.put(WIDE, [key(7)], [record(8)])
        await reached(lambda: not len(store._queue))
        return (await store.get(WIDE, [key(7)])) == [record(8)]

    while not await works():
        pass
    # A reader sees a commit before the writer has said that it writes again.
    await reached(lambda: store.stats()[0].why == "")
    await store.close()


WRITER = """
import asyncio, random, sys
from tests.integration.test_lmdb_store import WIDE, key, record
from tests.label_stores import lmdb_store

async def main():
    store = lmdb_store(sys.argv[1], most_bytes=1 << 30, commit_every_s=0.002)
    await store.start()
    number = first = int(sys.argv[2])
    told = 0
    while True:
        rows = range(number, number + random.randint(1, 40))
        store.put(WIDE, [key(n) for n in rows], [record(n) for n in rows])
        number = rows.stop
        await asyncio.sleep(random.random() * 0.004)
        committed = store.stats()[0].written
        if committed > told:
            told = committed
            print(first + told, flush=True)

asyncio.run(main())
"""


@pytest.mark.timeout(60 + 3 * MOMENTS)
def test_killed_at_any_moment_no_committed_label_is_lost_and_none_is_torn(tmp_path):
    chance = random.Random(4)
    committed = []
    for moment in range(MOMENTS):
        first = moment * 1_000_000
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(first)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout:
            told = process.stdout.readline()
            time.sleep(chance.random() * 0.3)
            process.send_signal(signal.SIGKILL)
            told += process.stdout.read()
        process.wait()
        # Behind the last line's end stands what was not written whole.
        committed.append(range(first, int(told.rpartition("\n")[0].rpartition("\n")[2])))
    check_all(tmp_path, committed)


@on_loop
async def check_all(folder, committed):
    store = lmdb_store(folder, most_bytes=1 << 30)
    for numbers in committed:
        assert len(numbers)
        found = await store.get(WIDE, [key(n) for n in numbers])
        assert found == [record(n) for n in numbers]
    assert store.stats()[0].damaged == 0
    await store.close()
    # What was not told as committed is whole or not there.
    for path in segment_paths(folder):
        segment = Segment(path, read_only=True)
        for hold in segment.holds():
            assert all(whole for _, whole in segment.check(hold))
        segment.close()
