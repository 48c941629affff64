"""``bench replay``: every contestant reads the very labels that were recorded, else the race means nothing."""

import asyncio

import numpy as np
import pytest

from bench import replay
from bench.replay_reference import FkdFiles, TinyVitFiles

SAMPLES, VIEWS, K = 40, 6, 5


@pytest.fixture(scope="module")
def labels():
    return replay.some_labels(SAMPLES, VIEWS, K)


def test_ours(labels, tmp_path):
    classes, log_probabilities = labels
    recorded = replay.record(tmp_path / "ours", replay.some_index(SAMPLES), classes, log_probabilities)
    rows, views = np.array([3, 39, 0, 3]), np.array([5, 0, 0, 4])
    found = recorded.soft_labels(rows, views)
    assert (found.classes == classes[rows, views]).all()
    assert (found.log_probabilities == log_probabilities[rows, views]).all()
    assert replay.bytes_per_label(recorded) > 4 * K


def test_fkds_files(labels, tmp_path):
    classes, log_probabilities = labels
    probabilities = np.exp(log_probabilities.astype(np.float32))
    FkdFiles.write(tmp_path, classes, probabilities)
    files = FkdFiles(tmp_path, SAMPLES, 4)
    order = np.array([5, 1, 0, 3, 2, 4])
    found_classes, found = files.read([7, 20], permutation=order)
    rows, views = np.tile([7, 20], 4), np.repeat(order[:4], 2)  # crop by crop
    assert (found_classes == classes[rows, views]).all()
    assert (found == probabilities[rows, views]).all()
    drawn = {tuple(files.read([7])[0][:, 0]) for _ in range(10)}
    assert len(drawn) > 1, "other crops at each visit"


@pytest.mark.parametrize("buffered", [True, False])
def test_tinyvits_files(labels, tmp_path, buffered):
    classes, log_probabilities = labels
    probabilities = np.exp(log_probabilities)
    names = [f"n{row}" for row in range(SAMPLES)]
    TinyVitFiles.write(tmp_path, names, classes, probabilities)
    assert (tmp_path / "values-0.bin").stat().st_size == SAMPLES * (4 + 4 * K)
    files = TinyVitFiles(tmp_path, VIEWS, K, buffered=buffered)
    rows, views = np.array([3, 39, 0, 3]), np.array([5, 0, 0, 4])
    for read in (files.read, files.read_at_once):
        found_classes, found = read([names[row] for row in rows], views.tolist())
        assert (found_classes == classes[rows, views]).all()
        assert (found == probabilities[rows, views]).all()
    files.close()


def test_a_contestant_that_returns_something_else_is_no_contestant():
    run_slice = replay.contestant(lambda: (np.zeros((2, 2)), np.zeros((2, 2))), [()])
    with pytest.raises(RuntimeError, match="a batch came as"):
        asyncio.run(run_slice(0.01))
