"""TinyViT's files: keys beside fixed-size records, read as its reader seeks them."""

import numpy as np
import pytest

from teacherfarm.label_store.tinyvit_files import (
    KeyPlaces,
    TinyVitLabels,
    find_epochs,
    read_epoch,
    record_dtype,
    write_rank,
)
from teacherfarm.protos.faults import BadLabelFile

NUM_CLASSES = 21841


def some_labels(num, k=10, seed=0, first=0, num_classes=NUM_CLASSES):
    generator = np.random.default_rng(seed)
    probabilities = -np.sort(-generator.dirichlet(np.ones(k + 1), num)[:, :k], axis=1)
    return TinyVitLabels(
        keys=[f"n00007846_{first + row}" for row in range(num)],
        seeds=generator.integers(0, 2**31, num).astype(np.int32),
        classes=np.stack([generator.permutation(num_classes)[:k] for _ in range(num)]).astype(np.uint16),
        probabilities=probabilities.astype(np.float16),
    )


def save_as_tinyvit(root, epoch, rank, labels):
    """The bytes that save_logits.py writes for each sample: seed, classes as int16, probabilities as float16."""
    folder = root / f"logits_top{labels.classes.shape[1]}_epoch{epoch}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"rank{rank}-keys.txt", "w") as keys, open(folder / f"rank{rank}-values.bin", "wb") as values:
        for row, key in enumerate(labels.keys):
            keys.write(key + "\n")
            values.write(
                np.int32(labels.seeds[row]).tobytes()
                + labels.classes[row].astype(np.int16).tobytes()
                + labels.probabilities[row].tobytes()
            )


def seek(folder, rank, key, k):
    """One sample's label as TinyViT's reader finds it."""
    row = (folder / f"rank{rank}-keys.txt").read_text().split("\n").index(key)
    with open(folder / f"rank{rank}-values.bin", "rb") as values:
        values.seek((4 + 4 * k) * row)
        record = values.read(4 + 4 * k)
    return np.frombuffer(record[:4], "<i4")[0], *np.frombuffer(record[4:], "<i2").reshape(2, k)


def assert_equal(one, other):
    assert one.keys == other.keys
    for name in ("seeds", "classes", "probabilities"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_epochs_and_ranks_are_read_in_order(tmp_path):
    saved = {
        (epoch, rank): some_labels(5, seed=epoch * 2 + rank, first=rank * 5) for epoch in (10, 2) for rank in (0, 1)
    }
    for (epoch, rank), labels in saved.items():
        save_as_tinyvit(tmp_path, epoch, rank, labels)
    epochs = find_epochs(tmp_path)
    assert [(epoch.epoch, epoch.top_k) for epoch in epochs] == [(2, 10), (10, 10)]
    for epoch in epochs:
        for rank, found in enumerate(read_epoch(epoch, num_classes=NUM_CLASSES)):
            assert_equal(found, saved[epoch.epoch, rank])
    parts = list(read_epoch(epochs[0], num_classes=NUM_CLASSES, at_once=2))
    assert [len(part) for part in parts] == [2, 2, 1, 2, 2, 1]
    assert find_epochs(epochs[1].path)[0] == epochs[1]


def test_what_is_written_is_found_by_seeking(tmp_path):
    labels = some_labels(7, k=100)
    folder = write_rank(tmp_path, 3, 1, labels)
    assert record_dtype(100).itemsize == 404
    for row, key in enumerate(labels.keys):
        seed, classes, probabilities = seek(folder, 1, key, 100)
        assert seed == labels.seeds[row]
        np.testing.assert_array_equal(classes.view(np.uint16), labels.classes[row])
        np.testing.assert_array_equal(probabilities.view(np.float16), labels.probabilities[row])
    (found,) = read_epoch(find_epochs(tmp_path)[0], num_classes=NUM_CLASSES)
    assert_equal(found, labels)


def test_classes_beyond_int16_come_out_right(tmp_path):
    labels = some_labels(3, num_classes=60_000)
    assert labels.classes.max() > 32767
    save_as_tinyvit(tmp_path, 0, 0, labels)
    (found,) = read_epoch(find_epochs(tmp_path)[0], num_classes=60_000)
    assert_equal(found, labels)


def test_damage_is_named(tmp_path):
    save_as_tinyvit(tmp_path, 0, 0, some_labels(4))
    epoch = find_epochs(tmp_path)[0]
    values = epoch.path / "rank0-values.bin"
    whole = values.read_bytes()
    values.write_bytes(whole[:-1])
    with pytest.raises(BadLabelFile, match=r"rank0-values\.bin has 175 bytes; 4 keys .* make 176"):
        list(read_epoch(epoch, num_classes=NUM_CLASSES))
    for broken in (b"\xff\xff", np.float16(2).tobytes()):
        place = 44 + 4 if broken == b"\xff\xff" else 44 + 24
        values.write_bytes(whole[:place] + broken + whole[place + 2 :])
        with pytest.raises(BadLabelFile, match=r"rank0-values\.bin, record 1"):
            list(read_epoch(epoch, num_classes=NUM_CLASSES))
    (epoch.path / "rank0-keys.txt").unlink()
    with pytest.raises(BadLabelFile, match="did not end"):
        list(read_epoch(epoch, num_classes=NUM_CLASSES))


def test_folders_that_hold_nothing_or_two_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no folder like logits_top10_epoch0"):
        find_epochs(tmp_path)
    write_rank(tmp_path, 0, 0, some_labels(1, k=5))
    write_rank(tmp_path, 0, 0, some_labels(1, k=10))
    with pytest.raises(ValueError, match="5 and 10 classes"):
        find_epochs(tmp_path)
    labels = some_labels(2)
    labels.keys[1] = labels.keys[0]
    with pytest.raises(ValueError, match="unique"):
        write_rank(tmp_path, 0, 0, labels)


def test_keys_are_names_their_last_part_or_numbers():
    names = ["n01/n01_1", "n01/n01_2", "n02/n02_1"]
    assert KeyPlaces(names).find(["n02/n02_1", "n01/n01_2", "other"]).tolist() == [2, 1, -1]
    assert KeyPlaces(names).find(["n02_1", "n01_1"]).tolist() == [2, 0]
    assert KeyPlaces(names).find(["2", "0", "7"]).tolist() == [2, 0, -1]
    assert KeyPlaces(["a/7", "b/8"]).find(["7", "8"]).tolist() == [0, 1]
    # One image name in two classes tells neither.
    assert KeyPlaces(["a/x", "b/x"]).find(["x", "a/x"]).tolist() == [-1, 0]
