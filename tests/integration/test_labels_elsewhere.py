"""Recorded labels in other places: a real HTTP server that only reads, and fsspec's memory:// and file://."""

from __future__ import annotations

import functools
import http.server
import multiprocessing
import shutil
import threading
import uuid
from pathlib import Path

import numpy as np
import pytest

from teacherfarm.label_store.near_copy import bytes_to_copy, publish
from teacherfarm.label_store.recorded_labels import RecordedLabels
from teacherfarm.protos.faults import BadRecording, DamagedLabels
from tests.recordings import everything, record, records_of

SAMPLES, VIEWS = 2000, 3
ROWS, PLACES_VIEWS = everything(SAMPLES, VIEWS)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("teacherfarm.label_store.block_table._MOST_SHARD_BYTES", 2048 * 40)


def check_all(labels):
    records, present = labels.read(ROWS, PLACES_VIEWS)
    assert present.all()
    assert (records == records_of(labels.manifest, ROWS, PLACES_VIEWS)).all()


class Requests(http.server.SimpleHTTPRequestHandler):
    """Serves files, and tells which were asked; knows no ranges, as few static servers do."""

    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


class RangeRequests(Requests):
    """... and this one knows ranges."""

    def do_GET(self):
        wanted = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if wanted is None or not path.is_file():
            super().do_GET()
            return
        self.asked.append(f"{self.path} {wanted}")
        content = path.read_bytes()
        first, last = wanted.removeprefix("bytes=").split("-")
        part = content[int(first) : int(last or len(content) - 1) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def served(tmp_path, request):
    """(folder with labels, their URL, what was asked so far)."""
    folder = tmp_path / "served"
    record(folder, SAMPLES, VIEWS)
    handler = type("Handler", (getattr(request, "param", Requests),), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_labels_are_read_from_a_web_server_and_copied_once(served, tmp_path):
    _, url, asked = served
    copied = []
    check_all(RecordedLabels.open(url, near=str(tmp_path / "near"), progress=copied.append))
    assert sum(copied) == bytes_to_copy(url) == SAMPLES * VIEWS * 40
    asked.clear()
    check_all(RecordedLabels.open(f"{url}/", near=str(tmp_path / "near")))
    assert set(asked) == {"/manifest.json"}


def test_by_default_the_copy_lies_in_the_users_cache(served, tmp_path, monkeypatch):
    _, url, _ = served
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    labels = RecordedLabels.open(url)
    assert (tmp_path / "cache" / "teacherfarm" / "labels") in labels.directory.root.parents
    check_all(labels)


def open_in_process(url, near):
    check_all(RecordedLabels.open(url, near=near))


def test_several_ranks_share_one_copy(served, tmp_path):
    _, url, asked = served
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=open_in_process, args=(url, str(tmp_path / "near"))) for _ in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    labels_asked = [path for path in asked if path.endswith(".labels")]
    assert len(labels_asked) == len(set(labels_asked)) == 3


@pytest.mark.parametrize(("served", "ranges"), [(Requests, False), (RangeRequests, True)], indirect=["served"])
def test_a_copy_that_was_interrupted_goes_on(served, ranges, tmp_path):
    folder, url, asked = served
    near = tmp_path / "near"
    RecordedLabels.open(url, near=str(near))
    name = sorted(path.name for path in (near / "shards").glob("*.labels"))[1]
    (near / "shards" / name).unlink()
    half = (folder / "shards" / name).read_bytes()[:30000]
    (near / "shards" / f"{name}.part").write_bytes(half)
    asked.clear()
    check_all(RecordedLabels.open(url, near=str(near)))
    assert any("bytes=30000-" in path for path in asked) == ranges
    assert {path.split()[0] for path in asked} == {"/manifest.json", f"/shards/{name}"}


def test_a_part_that_was_damaged_on_its_way_is_fetched_again(served, tmp_path, caplog):
    _, url, _ = served
    near = tmp_path / "near"
    RecordedLabels.open(url, near=str(near))
    name = min(path.name for path in (near / "shards").glob("*.labels"))
    content = bytearray((near / "shards" / name).read_bytes())
    (near / "shards" / name).unlink()
    content[77] ^= 1
    (near / "shards" / f"{name}.part").write_bytes(content)
    check_all(RecordedLabels.open(url, near=str(near)))
    assert "1 blocks arrived damaged, at the first try" in caplog.text


def test_what_is_damaged_at_its_source_reads_as_absent(served, tmp_path, caplog):
    folder, url, _ = served
    path = min((folder / "shards").glob("*.labels"))
    content = bytearray(path.read_bytes())
    content[77] ^= 1
    path.write_bytes(content)
    labels = RecordedLabels.open(url, near=str(tmp_path / "near"))
    assert labels.read(ROWS, PLACES_VIEWS)[1].sum() == SAMPLES * VIEWS - 1024
    assert "at the second try" in caplog.text
    assert f"{path.name}, block 0" in caplog.text


def test_what_cannot_be_reached_says_so(served, tmp_path):
    folder, url, _ = served
    with pytest.raises(ValueError, match=rf"no recorded labels at {url}/nowhere: expected"):
        RecordedLabels.open(f"{url}/nowhere", near=str(tmp_path / "near"))
    with pytest.raises(BadRecording, match=r"cannot be fetched"):
        RecordedLabels.open("http://127.0.0.1:9/labels", near=str(tmp_path / "near"))
    with pytest.raises(BadRecording, match=r"nosuch://x cannot be reached"):
        RecordedLabels.open("nosuch://x", near=str(tmp_path / "near"))
    (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes().replace(b"some", b"none"))
    with pytest.raises(DamagedLabels, match=rf"{url}/manifest\.json is not what was written"):
        RecordedLabels.open(url, near=str(tmp_path / "near2"))
    with pytest.raises(BadRecording, match="cannot be written"):
        publish(record(tmp_path / "own", 10, 1).directory.root, url)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_labels_are_published_and_read_back(tmp_path, kind):
    root = tmp_path / "labels"
    url = f"memory://{uuid.uuid4().hex}/labels" if kind == "memory" else f"file://{tmp_path}/published"
    half = np.arange(len(ROWS)) < 3000
    record(root, SAMPLES, VIEWS, rows=ROWS[half], views=PLACES_VIEWS[half])
    sent = []
    publish(root, url, progress=sent.append)
    labels = RecordedLabels.open(url, near=str(tmp_path / "near"))
    assert (labels.read(ROWS, PLACES_VIEWS)[1] == half).all()
    # What came later is published by its shards alone, and the near copy catches up.
    record(root, SAMPLES, VIEWS, rows=ROWS[~half], views=PLACES_VIEWS[~half])
    first_shard = next((root / "shards").glob("00000-*.labels")).stat().st_size
    again = []
    publish(root, url, progress=again.append)
    assert sum(again) < sum(sent) + 2 * first_shard
    check_all(RecordedLabels.open(url, near=str(tmp_path / "near")))


def test_a_killed_publication_is_finished_by_the_next(tmp_path):
    """The manifest comes last: half of the files are nothing yet."""
    root = tmp_path / "labels"
    record(root, SAMPLES, VIEWS)
    url = f"file://{tmp_path}/published"
    publish(root, url)
    published = tmp_path / "published"
    (published / "manifest.json").unlink()
    name = next((published / "shards").glob("00001-*.labels"))
    name.write_bytes(name.read_bytes()[:1000])
    with pytest.raises(ValueError, match="no recorded labels"):
        RecordedLabels.open(url)
    publish(root, url)
    check_all(RecordedLabels.open(url))
    shutil.rmtree(published)
