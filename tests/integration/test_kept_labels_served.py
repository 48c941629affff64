"""A real server that keeps labels: warm answers, kill -9 at random moments, a full disk, and a Redis that goes and
comes back.
"""

import os
import random
import threading
import time

import numpy as np
import pytest

from teacherfarm.label_store.lmdb_segment import Segment, segment_paths
from teacherfarm.protos.crop import pixel_keys
from teacherfarm.protos.soft_label import LABELS
from teacherfarm.student import TeacherClient
from tests.farm_process import wait_for
from tests.redis_server import RedisServer
from tests.scripted_farm import make_crops, right_classes
from tests.small_disk import fill_up

MOMENTS = int(os.environ.get("TEACHERFARM_KILL_MOMENTS", "6"))
"""At how many random moments the server is killed; 100 takes a few minutes."""
NUM_CLASSES = 10


def written(farm, layer):
    return int(farm.metric("teacherfarm_store_written_total", layer=layer))


class Student(threading.Thread):
    """Asks for labels of fresh crops without end, and looks at every answer."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.address, self.asked, self.wrong, self.error = address, [], 0, None
        self.stopping = threading.Event()

    def run(self):
        try:
            with TeacherClient(self.address) as teacher:
                for seed in range(1_000_000):
                    if self.stopping.is_set():
                        return
                    crops = make_crops(64, seed)
                    self.asked.append(crops)
                    self.wrong += int((teacher.label(crops).top1 != right_classes(crops, NUM_CLASSES)).sum())
        except BaseException as error:
            self.error = error


@pytest.mark.timeout(60 + 10 * MOMENTS)
def test_killed_at_any_moment_the_server_loses_no_committed_label_and_tears_none(start_scripted, tmp_path):
    farm = start_scripted("--store", f"lmdb:{tmp_path / 'labels'}", "--deaf")
    student = Student(farm.zmq)
    student.start()
    chance, committed = random.Random(7), 0
    for _ in range(MOMENTS):
        wait_for(lambda: written(farm, "lmdb"))
        until_s = time.monotonic() + chance.random()
        while time.monotonic() < until_s:
            told = written(farm, "lmdb")
        committed += told
        farm.restart()
    student.stopping.set()
    student.join(30)
    assert (student.error, student.wrong) == (None, 0)
    assert farm.terminate() == 0
    found = kept(tmp_path / "labels", np.concatenate(student.asked))
    assert found >= committed > 0


def kept(folder, crops):
    """How many of these crops have a label in the store; each is whole and the teacher's."""
    keys, right = pixel_keys(crops), right_classes(crops, NUM_CLASSES)
    keys = [keys[place : place + 16] for place in range(0, len(keys), 16)]
    found = 0
    for path in segment_paths(folder):
        segment = Segment(path, read_only=True)
        for hold in segment.holds():
            assert all(whole for _, whole in segment.check(hold))
            records = [None] * len(keys)
            assert segment.read(hold.scope, keys, records) == 0
            for record, best in zip(records, right, strict=True):
                if record is not None:
                    found += 1
                    assert np.frombuffer(record, np.float16).argmax() == best
        segment.close()
    return found


@pytest.mark.parametrize("store", ["memory", "lmdb", "redis"])
def test_an_epoch_that_comes_again_costs_the_teacher_nothing(start_scripted, tmp_path, store, wire):
    with RedisServer(tmp_path) as redis:
        place = {"memory": "memory", "lmdb": f"lmdb:{tmp_path / 'labels'}", "redis": redis.url}[store]
        farm = start_scripted("--store", place, "--store-timeout-s", "20")
        crops = make_crops(128, 1)
        for restarted in (False, True):
            if restarted and store != "memory":
                wait_for(lambda: written(farm, store) == 128)
                farm.restart()
            with TeacherClient(getattr(farm, wire)) as teacher:
                for _ in range(2):
                    labels = teacher.label(crops)
                    assert (labels.top1 == right_classes(crops, NUM_CLASSES)).all()
        assert labels.records[LABELS].dtype == np.float16
        computed = int(farm.metric("teacherfarm_batch_crops_sum"))
        # Memory was not restarted; the others' labels outlived the server.
        assert computed == (128 if store == "memory" else 0)
        status, text = farm.get("/store")
        assert (status, f'"layer": "{store}"' in text) == (200, True)


def test_redis_may_go_and_come_back_and_students_notice_nothing(start_scripted, tmp_path):
    with RedisServer(tmp_path) as redis:
        farm = start_scripted("--store", redis.url, "--store-memory-mb", "1", "--store-timeout-s", "2")
        student = Student(farm.zmq)
        student.start()
        wait_for(lambda: written(farm, "redis") > 100)
        for end in (redis.kill, redis.freeze):
            end()
            wait_for(lambda: farm.metric("teacherfarm_store_up", layer="redis") == 0)
            status, text = farm.get("/readyz")
            assert status == 200
            assert text.startswith("ready, but without kept labels in redis: ")
            asked = len(student.asked)
            wait_for(lambda before=asked: len(student.asked) > before + 5)
            if redis.process is None:
                redis.start()
            else:
                redis.thaw()
            wait_for(lambda: farm.metric("teacherfarm_store_up", layer="redis") == 1)
            before = written(farm, "redis")
            wait_for(lambda before=before: written(farm, "redis") > before + 100)
        assert farm.get("/readyz") == (200, "ready\n")
        student.stopping.set()
        student.join(30)
        assert (student.error, student.wrong) == (None, 0)
        assert (farm.log().count("is gone"), farm.log().count("is back")) == (2, 2), farm.log()
        assert farm.metric("teacherfarm_faults_total") == 0


def test_a_server_starts_without_its_redis(start_scripted, tmp_path):
    farm = start_scripted("--store", "redis://:secret-word@127.0.0.1:1/0")
    crops = make_crops(8, 1)
    with TeacherClient(farm.zmq) as teacher:
        assert (teacher.label(crops).top1 == right_classes(crops, NUM_CLASSES)).all()
    assert "redis://127.0.0.1:1/0 is gone" in farm.log()
    assert "secret-word" not in farm.log() + farm.get("/store")[1] + farm.get("/readyz")[1]


def test_on_a_full_disk_answers_go_on_and_the_fault_is_seen(start_scripted, small_disk):
    farm = start_scripted("--store", f"lmdb:{small_disk / 'labels'}", "--deaf")
    student = Student(farm.zmq)
    student.start()
    wait_for(lambda: written(farm, "lmdb") > 100)
    fill_up(small_disk / "filler")
    wait_for(lambda: farm.metric("teacherfarm_store_up", layer="lmdb") == 0)
    before = len(student.asked)
    wait_for(lambda: len(student.asked) > before + 10)
    student.stopping.set()
    student.join(30)
    assert (student.error, student.wrong) == (None, 0)
    assert "stopped, answers go on without it" in farm.log()
    assert "No space left on device" in farm.get("/readyz")[1]
    assert farm.metric("teacherfarm_store_dropped_total", layer="lmdb") > 0


def test_two_servers_do_not_write_one_folder(start_scripted, tmp_path):
    place = f"lmdb:{tmp_path / 'labels'}"
    start_scripted("--store", place)
    with pytest.raises(AssertionError, match="another server keeps its labels in"):
        start_scripted("--store", place)


def test_without_a_store_nothing_is_kept_and_no_key_is_wanted(start_scripted):
    farm = start_scripted()
    crops = make_crops(32, 1)
    with TeacherClient(farm.zmq) as teacher:
        for _ in range(2):
            teacher.label(crops)
    assert int(farm.metric("teacherfarm_batch_crops_sum")) == 64
    assert farm.get("/store") == (200, "[]")
    assert farm.metric("teacherfarm_store_misses_total") == 0
