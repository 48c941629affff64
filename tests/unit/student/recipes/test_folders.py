"""Which images a command takes when it is pointed at a folder."""

import argparse

import numpy as np
import pytest

from teacherfarm.student.recipes import dataset_command
from teacherfarm.student.recipes.folders import find_samples, training_images
from tests.cifar_archives import write_cifar10
from tests.unit.student.image_folders import write_images


def test_a_folder_that_holds_train_means_its_training_images(tmp_path):
    write_images(tmp_path / "train", ["cat", "dog"], 1)
    write_images(tmp_path / "val", ["cat", "dog"], 1)
    assert training_images(str(tmp_path)) == str(tmp_path / "train")
    assert training_images(str(tmp_path), "val") == str(tmp_path / "val")
    assert training_images(str(tmp_path / "train")) == str(tmp_path / "train")


@pytest.mark.parametrize("data", [".", "cifar-10-batches-py"])
def test_cifars_archive_has_training_and_validation_images(tmp_path, data):
    write_cifar10(tmp_path, np.zeros((6, 32, 32, 3), np.uint8), [0, 1, 2, 3, 4, 5], per_batch=1)
    assert len(find_samples(tmp_path / data, "train", "--train-folder")) == 5
    assert find_samples(tmp_path / data, "val", "--val-folder").name(0) == "dog/dog_s_000005"
    assert training_images(str(tmp_path / data)).endswith("data_batch_{1..5}")


def test_a_class_may_be_called_train(tmp_path):
    write_images(tmp_path, ["bus", "train"], 1)
    assert training_images(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("inside", [False, True])
def test_an_index_says_when_train_and_val_became_classes(tmp_path, capsys, inside):
    write_images(tmp_path / "train", ["cat", "dog"], 1)
    write_images(tmp_path / "val", ["cat", "dog"], 1)
    parser = argparse.ArgumentParser()
    dataset_command.add_arguments(parser)
    options = parser.parse_args(["index", str(tmp_path / "train" if inside else tmp_path)])
    assert dataset_command.main(options) == 0
    said = capsys.readouterr().out
    assert (f"the images to train on: {tmp_path / 'train'}" in said) is not inside
