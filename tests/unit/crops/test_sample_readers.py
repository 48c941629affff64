"""The same images have the same names, hashes, sizes and classes in every container; what cannot be used is named."""

import io
import json
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from teacherfarm.crops.sample_index import SampleIndex, index_dataset
from teacherfarm.crops.sample_readers import expand, open_samples
from teacherfarm.protos.faults import BadDataSet, SampleMismatch, UnknownSample, UnreadableImage

NAMES = ("cat/10.png", "cat/2.JPEG", "dog/b.jpg", "dog/deep/a.webp")


def picture(number, image_format="JPEG"):
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


FORMATS = {"png": "PNG", "webp": "WEBP"}
FILES = {name: picture(n, FORMATS.get(name.rpartition(".")[2], "JPEG")) for n, name in enumerate(NAMES)}


def write_folder(root, files=FILES):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def write_parquet(path, rows, metadata=None, **options):
    table = pyarrow.Table.from_pylist(rows)
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": metadata}})})
    pyarrow.parquet.write_table(table, path, **options)
    return path


def write_arrow(path, rows, *, rows_at_once=2, open_writer=pyarrow.ipc.new_stream):
    """As Hugging Face's save_to_disk: a stream of a few rows at a time."""
    path.parent.mkdir(exist_ok=True)
    table = pyarrow.Table.from_pylist(rows)
    with open_writer(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_at_once)
    return path


def rows_of(files=FILES):
    classes = sorted({name.split("/")[0] for name in files})
    return [
        {"image": {"bytes": data, "path": name}, "label": classes.index(name.split("/")[0])}
        for name, data in files.items()
    ]


CONTAINERS = {
    "a folder": lambda root: write_folder(root / "data"),
    "a tar of it": lambda root: write_tar(root / "x.tar", {"./" + name: data for name, data in FILES.items()}),
    "a tar with a folder around it": lambda root: write_tar(
        root / "x.tar", {f"some/where/{name}": data for name, data in FILES.items()}
    ),
    "Parquet": lambda root: write_parquet(root / "x.parquet", rows_of(), row_group_size=3),
    "a folder of Parquet files, as on the hub": lambda root: (
        (root / "data").mkdir(),
        write_parquet(root / "data" / "train-00000-of-00002.parquet", rows_of()[:1]),
        write_parquet(root / "data" / "train-00001-of-00002.parquet", rows_of()[1:], row_group_size=1),
        root,
    )[-1],
    "Arrow with a table of contents": lambda root: write_arrow(
        root / "x.arrow", rows_of(), open_writer=pyarrow.ipc.new_file
    ),
    "a folder that save_to_disk wrote": lambda root: (
        write_arrow(root / "saved" / "data-00000-of-00002.arrow", rows_of()[:3]),
        write_arrow(root / "saved" / "data-00001-of-00002.arrow", rows_of()[3:]),
        (root / "saved" / "cache-1234.arrow").write_bytes(b"computed"),
        root / "saved",
    )[-1],
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_same_images_are_the_same_samples_everywhere(tmp_path, container):
    samples = open_samples(CONTAINERS[container](tmp_path))
    expected = open_samples(write_folder(tmp_path / "expected"))
    assert [samples.name(row) for row in range(len(samples))] == [name.rpartition(".")[0] for name in NAMES]
    assert [samples.target(row) for row in range(len(samples))] == [0, 0, 1, 1]
    for row, name in enumerate(NAMES):
        assert samples.read(row) == expected.read(row) == FILES[name]
    index = index_dataset(samples)
    assert index.digest() == index_dataset(expected).digest()
    assert index.heights.tolist() == [20, 21, 22, 23]
    assert index.widths.tolist() == [30] * 4


@pytest.mark.parametrize("container", CONTAINERS)
def test_readers_are_safe_in_threads_and_pickle(tmp_path, container):
    samples = open_samples(CONTAINERS[container](tmp_path))
    again = pickle.loads(pickle.dumps(samples))
    rows = list(range(len(samples))) * 50
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(samples.read, rows))
    assert read == [again.read(row) for row in rows] == list(FILES.values()) * 50


def test_another_process_maps_arrow_files_itself(tmp_path):
    samples = open_samples(write_arrow(tmp_path / "x.arrow", rows_of()))
    assert not any(data in pickle.dumps(samples) for data in FILES.values())


def test_webdataset_targets_come_from_cls_or_json_and_keys_from_the_first_dot(tmp_path):
    files = {
        "a/x.jpg": FILES["dog/b.jpg"],
        "a/x.cls": b"7\n",
        "a/x.txt": b"a caption",
        "y.seg.png": FILES["cat/10.png"],
        "y.json": b'{"label": 3, "caption": "no"}',
        "y.jpg": FILES["dog/b.jpg"],
        "z.png": FILES["cat/10.png"],
    }
    samples = open_samples(write_tar(tmp_path / "a.tar", files))
    assert [samples.name(row) for row in range(3)] == ["a/x", "y", "z"]
    assert samples.targets.tolist() == [7, 3, -1]
    assert samples.read(1) == FILES["dog/b.jpg"]
    assert samples.classes == ()


def test_long_names_and_many_tars(tmp_path):
    long = "n01/" + "x" * 180
    write_tar(tmp_path / "t-000.tar", {f"{long}.jpg": FILES["dog/b.jpg"]})
    write_tar(tmp_path / "t-001.tar", {"n02/猫.jpg": FILES["dog/b.jpg"]})
    for path in (tmp_path / "t-{000..001}.tar", tmp_path / "t-*.tar", tmp_path / "t-{000,001}.tar", tmp_path):
        samples = open_samples(path)
        assert [samples.name(row) for row in range(2)] == [long, "n02/猫"]
        assert samples.targets.tolist() == [0, 1]


def test_the_hubs_features_name_the_columns(tmp_path):
    rows = [{"photo": {"bytes": FILES["dog/b.jpg"], "path": None}, "kind": 1, "image": b"no", "label": 9}] * 2
    features = {"photo": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": ["ant", "bee"]}}
    samples = open_samples(write_parquet(tmp_path / "x.parquet", rows, features))
    assert samples.read(1) == FILES["dog/b.jpg"]
    assert samples.targets.tolist() == [1, 1]
    assert samples.classes == ("ant", "bee")
    assert [samples.name(row) for row in range(2)] == ["0", "1"], "rows where images have no path"
    plain = open_samples(write_parquet(tmp_path / "y.parquet", [{"img": FILES["dog/b.jpg"]}]))
    assert plain.read(0) == FILES["dog/b.jpg"]
    assert plain.targets.tolist() == [-1]


@pytest.mark.parametrize(("number", "names"), [(2, ["ant", "bee"]), (1 << 40, None)])
@pytest.mark.parametrize("container", ["arrow", "parquet"])
def test_class_numbers_that_nothing_stands_for_are_refused(tmp_path, container, number, names):
    table = pyarrow.table({"img": [b"?"] * 2, "label": [0, number]})
    features = {"label": {"_type": "ClassLabel", "names": names}} if names else {"label": ["no feature of ours"]}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path = tmp_path / f"x.{container}"
    if container == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(BadDataSet, match=f"x.{container} has class number {number} and names (2|no) classes"):
        open_samples(path)


def test_arrow_files_that_point_beyond_themselves_are_refused(tmp_path):
    path = write_arrow(tmp_path / "x.arrow", [{"img": b"?" * 50}] * 3, rows_at_once=3)
    content = path.read_bytes()
    offsets = np.array([0, 50, 100, 150], "<i4").tobytes()
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, np.array([0, 1 << 30, 100, 150], "<i4").tobytes()))
    with pytest.raises(BadDataSet, match=r"x\.arrow is damaged"):
        open_samples(path)


@pytest.mark.parametrize(
    ("files", "path", "words"),
    [
        ({}, "missing", "no data set at .*missing"),
        ({}, "", "no images in .*CLASS"),
        ({"x.tar": b""}, "x.tar", "cannot be read as an uncompressed tar"),
        ({"x.tar": b"no tar at all" * 100}, "x.tar", "cannot be read as an uncompressed tar"),
        ({"x.tar.gz": b"?"}, "x.tar.gz", "is compressed.*unpack"),
        ({"x.parquet": b"PAR1"}, "x.parquet", "cannot be read as a Parquet file"),
        ({"x.arrow": b"?"}, "x.arrow", "cannot be read as an Arrow file"),
        ({"x.zip": b"?"}, "x.zip", r"end in \.tar, \.parquet or \.arrow, .*got \.zip"),
        ({}, "t-*.tar", "no file matches"),
        ({"train-0-of-1.parquet": b"", "test-0-of-1.parquet": b""}, "", r"several splits \(test, train\)"),
    ],
)
def test_what_is_no_data_set_is_named(tmp_path, files, path, words):
    write_folder(tmp_path, files)
    with pytest.raises(BadDataSet, match=words):
        open_samples(tmp_path / path if path else tmp_path)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"x.txt": b"?"}, "no images in"),
        ({"x.jpg": b"?", "x.png": b"?"}, r"sample 'x' has two images, \.jpg and \.png"),
        ({"x.a.png": b"?", "x.b.png": b"?"}, "two images"),
        ({"x.jpg": b"?", "x.cls": b"cat"}, r"x\.cls holds a class number, got b'cat'"),
        ({"x.jpg": b"?", "x.json": b"{"}, r"x\.json is no JSON"),
    ],
)
def test_what_is_wrong_in_a_tar_is_named(tmp_path, files, words):
    with pytest.raises(BadDataSet, match=words):
        open_samples(write_tar(tmp_path / "x.tar", files))


def test_names_that_stand_for_two_samples_are_refused(tmp_path):
    both = {"cat/1.jpg": FILES["dog/b.jpg"], "cat/1.png": FILES["cat/10.png"]}
    with pytest.raises(BadDataSet, match="two samples, for example 'cat/1'"):
        index_dataset(write_folder(tmp_path / "f", both))
    write_tar(tmp_path / "1.tar", {"x.jpg": b"?"})
    write_tar(tmp_path / "2.tar", {"x.jpg": b"?"})
    with pytest.raises(BadDataSet, match=r"2\.tar: key 'x' is in an earlier tar"):
        open_samples(tmp_path / "{1,2}.tar")


def test_what_went_away_or_changed_is_an_unreadable_image(tmp_path):
    folder = open_samples(write_folder(tmp_path / "f"))
    (tmp_path / "f" / "dog" / "b.jpg").unlink()
    with pytest.raises(UnreadableImage, match=r"cannot read dog/b: No such file"):
        folder.read(2)
    tar = open_samples(write_tar(tmp_path / "x.tar", FILES))
    os.truncate(tmp_path / "x.tar", 1000)
    with pytest.raises(UnreadableImage, match="ends in the middle"):
        tar.read(3)
    (tmp_path / "x.tar").unlink()
    with pytest.raises(UnreadableImage, match=r"x\.tar"):
        tar.read(0)
    parquet = open_samples(write_parquet(tmp_path / "x.parquet", rows_of()))
    (tmp_path / "x.parquet").write_bytes(b"gone")
    with pytest.raises(UnreadableImage, match=r"cannot read cat/10.*x\.parquet"):
        parquet.read(0)
    empty = open_samples(write_parquet(tmp_path / "y.parquet", [{"image": {"bytes": None, "path": "a.jpg"}}]))
    with pytest.raises(UnreadableImage, match="holds no image bytes"):
        empty.read(0)


def test_braces_and_wildcards_stand_for_files(tmp_path):
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{a,b}-{0..1}.tar") == ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]
    assert expand(["x.tar", "y.tar"]) == ["x.tar", "y.tar"]
    (tmp_path / "odd{1..2}[3].tar").touch()
    assert expand(tmp_path / "odd{1..2}[3].tar") == [str(tmp_path / "odd{1..2}[3].tar")], "a file's own name"


def test_an_index_is_kept_and_read_again(tmp_path):
    index = index_dataset(write_folder(tmp_path / "f"))
    index.save(tmp_path / "i.npz")
    again = SampleIndex.load(tmp_path / "i.npz")
    assert again.digest() == index.digest()
    assert again.hashes.tobytes() == index.hashes.tobytes()
    assert sorted(os.listdir(tmp_path)) == ["f", "i.npz"], "nothing half written is left"
    (tmp_path / "i.npz").write_bytes(b"no index")
    with pytest.raises(BadDataSet, match="is no sample index"):
        SampleIndex.load(tmp_path / "i.npz")


def test_an_earlier_index_spares_reading_what_did_not_change(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "f")
    known = index_dataset(root)
    (root / "cat" / "2.JPEG").write_bytes(picture(9))
    os.utime(root / "cat" / "2.JPEG", ns=(1, 1))
    (root / "cat" / "3.jpg").write_bytes(picture(8))
    samples, read = open_samples(root), []
    real = type(samples).read
    monkeypatch.setattr(type(samples), "read", lambda self, row: read.append(row) or real(self, row))
    told = []
    index = index_dataset(samples, known=known, progress=told.append)
    assert [samples.name(row) for row in read] == ["cat/2", "cat/3"]
    assert sum(told) == 5
    monkeypatch.undo()
    assert index.digest() == index_dataset(root).digest() != known.digest()


def test_unreadable_images_stay_in_the_index_without_a_size(tmp_path, caplog):
    root = write_folder(tmp_path / "f")
    (root / "cat" / "2.JPEG").write_bytes(b"no image")
    index = index_dataset(root)
    assert index.unreadable().tolist() == [1]
    assert index.heights.tolist() == [20, 0, 22, 23]
    assert "cannot read cat/2" in caplog.text
    index.save(tmp_path / "i.npz")
    again = index_dataset(root, known=SampleIndex.load(tmp_path / "i.npz"))
    assert again.digest() == index.digest()


def test_samples_are_found_by_name_and_renamed_ones_by_hash(tmp_path):
    ours = index_dataset(write_folder(tmp_path / "ours"))
    renamed = {f"{name.split('/')[0]}/renamed_{n}.jpg": data for n, (name, data) in enumerate(FILES.items())}
    theirs = index_dataset(write_folder(tmp_path / "theirs", {**renamed, "cat/2.JPEG": FILES["cat/2.JPEG"]}))
    rows = ours.find(theirs.names, theirs.hashes)
    assert [ours.hashes[row].tobytes() for row in rows] == [own.tobytes() for own in theirs.hashes]
    assert ours.find(ours.names[::-1], ours.hashes[::-1]).tolist() == [3, 2, 1, 0]
    assert ours.find(ours.names[:0], ours.hashes[:0]).tolist() == []
    other = ours.hashes.copy()
    other[1:3] = ours.hashes[0]
    with pytest.raises(SampleMismatch, match=r"'cat/2' is another image here.*1 more"):
        ours.find(ours.names, other)
    with pytest.raises(UnknownSample, match="no sample 'x'"):
        ours.find([b"x"], np.zeros(1, "V16"))
