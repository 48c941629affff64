"""CIFAR's Python archives are read as they are published, and nothing that a pickle names is run."""

import os
import pickle

import numpy as np
import pytest

from teacherfarm.crops.cifar_samples import cifar_location
from teacherfarm.crops.cutting import decode, image_size
from teacherfarm.crops.sample_index import index_dataset
from teacherfarm.crops.sample_readers import open_samples
from teacherfarm.protos.faults import BadDataSet
from tests.cifar_archives import CIFAR10_CLASSES, python2_pickle, write_cifar10, write_cifar100

PIXELS = np.random.default_rng(3).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
LABELS = [0, 9, 3, 3, 5, 1, 2, 7, 4, 4, 8, 6]


@pytest.fixture
def cifar10(tmp_path):
    return write_cifar10(tmp_path, PIXELS, LABELS, per_batch=2)


def test_what_the_tests_pickle_is_what_python_reads(cifar10):
    content = pickle.loads((cifar10 / "data_batch_2").read_bytes(), encoding="latin1")
    assert content["labels"] == LABELS[2:4]
    assert np.array_equal(content["data"].reshape(2, 3, 32, 32).transpose(0, 2, 3, 1), PIXELS[2:4])


def test_training_images_lie_in_five_batches(cifar10):
    samples = open_samples(cifar10)
    assert len(samples) == 10
    assert samples.classes == tuple(CIFAR10_CLASSES)
    assert samples.targets.tolist() == LABELS[:10]
    assert samples.name(3) == "cat/cat_s_000003"
    for row in range(10):
        assert np.array_equal(decode(samples.read(row)), PIXELS[row])
        assert image_size(samples.read(row)) == (32, 32)
    assert samples.stamp(0) != samples.stamp(1) != samples.stamp(2)


@pytest.mark.parametrize("data", [".", "cifar-10-batches-py"])
@pytest.mark.parametrize("split", ["val", "validation", "test"])
def test_the_test_batch_is_the_validation_split(cifar10, data, split):
    samples = open_samples(cifar_location(cifar10.parent / data, split))
    assert samples.targets.tolist() == LABELS[10:]
    assert np.array_equal(decode(samples.read(1)), PIXELS[11])


def test_cifar_100_has_its_hundred_classes(tmp_path):
    folder = write_cifar100(tmp_path, PIXELS, [n * 8 for n in range(12)], num_test=3)
    samples = open_samples(folder)
    assert samples.classes[88] == "kind 88"
    assert samples.targets.tolist() == [n * 8 for n in range(9)]
    assert [samples.name(row) for row in (0, 1)] == ["kind 0/train-0", "kind 8/train-1"]
    assert open_samples(cifar_location(tmp_path, "val")).name(0) == "kind 72/test-0"


def test_another_process_reads_the_pixels_itself(cifar10):
    samples = open_samples(cifar10)
    pickled = pickle.dumps(samples)
    assert len(pickled) < 10 * 3072, "without the pixels"
    assert pickle.loads(pickled).read(7) == samples.read(7)
    assert index_dataset(samples).heights.tolist() == [32] * 10


def test_no_other_folder_is_taken_for_cifar(tmp_path):
    (tmp_path / "train").mkdir()
    assert cifar_location(tmp_path, "train") is None
    write_cifar100(tmp_path / "x", PIXELS, [0] * 12, num_test=1)
    assert cifar_location(tmp_path / "x", "extra") is None


def test_a_batch_that_would_run_code_is_refused(cifar10, tmp_path):
    (cifar10 / "data_batch_1").write_bytes(b"\x80\x02cposix\nsystem\n(U\x0atouch hello\x85R.")
    with pytest.raises(BadDataSet, match=r"data_batch_1 .*asks for posix\.system"):
        open_samples(cifar10)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list, not a dict"),
        ({"data": PIXELS[:2].reshape(2, -1)}, "not one class number for each of its 2 images"),
        ({"data": PIXELS[:2].reshape(2, -1), "labels": [1]}, "not one class number for each of its 2 images"),
        ({"data": PIXELS[:2].reshape(2, -1), "labels": [1, 10]}, "class numbers beyond the 10 names"),
        ({"data": PIXELS[:2].reshape(2, -1), "labels": [1, 1 << 70]}, "class numbers beyond the 10 names"),
        ({"data": PIXELS[:2].reshape(2, -1), "labels": [1, -1]}, "class numbers beyond the 10 names"),
        ({"data": PIXELS[:2], "labels": [1, 2]}, r"not uint8 \[N, 3072\]"),
        ({"labels": [1, 2]}, r"not uint8 \[N, 3072\]"),
    ],
)
def test_what_is_no_batch_is_named(cifar10, content, words):
    (cifar10 / "data_batch_1").write_bytes(python2_pickle(content))
    with pytest.raises(BadDataSet, match=f"data_batch_1 .*{words}"):
        open_samples(cifar10)


def test_a_damaged_or_missing_file_is_named(cifar10):
    whole = (cifar10 / "data_batch_1").read_bytes()
    (cifar10 / "data_batch_1").write_bytes(whole[:3000])
    with pytest.raises(BadDataSet, match=r"data_batch_1 .*damaged"):
        open_samples(cifar10)
    os.remove(cifar10 / "data_batch_1")
    with pytest.raises(BadDataSet, match=r"no data set at .*data_batch_1"):
        open_samples(cifar10)
    (cifar10 / "batches.meta").rename(cifar10 / "elsewhere")
    with pytest.raises(BadDataSet, match=r"no batches\.meta or meta beside it"):
        open_samples(cifar10 / "test_batch")
