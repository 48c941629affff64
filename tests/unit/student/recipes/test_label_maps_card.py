import argparse

import pytest

from teacherfarm.student.recipes.class_names import match_classes
from teacherfarm.student.recipes.imagenet_synsets import WORDNET_IDS
from teacherfarm.student.recipes.kept_labels import label_maps_card
from tests.unit.student.image_folders import write_images


@pytest.mark.parametrize(
    ("classes", "num_classes", "numbers"),
    [
        (("ape", "bee"), 2, (0, 1)),
        ((WORDNET_IDS[3], WORDNET_IDS[7]), 1000, (3, 7)),
    ],
)
def test_maps_are_of_the_folders_classes_or_of_imagenets(tmp_path, classes, num_classes, numbers):
    write_images(tmp_path / "train", classes, 1)
    card = label_maps_card(argparse.Namespace(data=tmp_path, train_folder="train", student_size=None))
    assert card.num_classes == num_classes
    assert match_classes(sorted(classes), card).numbers == numbers
