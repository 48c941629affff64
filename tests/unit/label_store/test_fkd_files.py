"""FKD's label files: what is read, written and replayed is what FKD's own loader and decoder make of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from teacherfarm.crops.crop_plan import BOX, CropPlan
from teacherfarm.crops.cutting import cut
from teacherfarm.label_store.fkd_files import (
    FKD_FORMS,
    KEPT,
    box_fractions,
    fkd_labels,
    label_path,
    label_paths,
    read_fkd,
    replayed_boxes,
    write_fkd,
)
from teacherfarm.label_store.torch_files import dump_arrays
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.faults import BadLabelFile
from tests import fkd

NUM_CLASSES = 1000
SIZE = (375, 500)


def distributions(num, num_classes=NUM_CLASSES, seed=0):
    logits = torch.randn(num, num_classes, generator=torch.Generator().manual_seed(seed)) * 3
    return torch.softmax(logits, 1)


def some_boxes(num, height=SIZE[0], width=SIZE[1], seed=0):
    return CropPlan(seed=seed).boxes([7], np.arange(num), [height], [width])


def plain(boxes):
    return [row[:4] for row in boxes.tolist()]


@pytest.mark.parametrize("number_type", [np.float32, np.float16])
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", FKD_FORMS)
def test_a_file_of_the_generator_is_read_as_it_was_meant(tmp_path, form, options, number_type):
    teacher, boxes = distributions(12), some_boxes(12)
    path = tmp_path / "train/n01440764/n01440764_18.tar"
    kept = fkd.quantise(teacher, form)
    fkd.save(path, plain(boxes), boxes["flip"], kept, SIZE, number_type, **options)
    found = read_fkd(path, num_classes=NUM_CLASSES, form=form)
    assert found.num_kept == KEPT[form]
    np.testing.assert_array_equal(found.boxes(*SIZE), boxes)
    np.testing.assert_array_equal(found.labels, kept if form == "hard" else kept.astype(number_type))
    if form != "full":
        classes, probabilities = found.top_k()
        values, order = teacher.sort(descending=True)
        np.testing.assert_array_equal(classes, order[:, : KEPT[form]])
        due = values[:, : KEPT[form]].numpy().astype(number_type)
        np.testing.assert_array_equal(probabilities, np.ones((12, 1)) if form == "hard" else due)


@pytest.mark.parametrize("number_type", ["float32", "float16"])
@pytest.mark.parametrize("form", FKD_FORMS)
def test_fkds_loader_and_decoder_read_what_we_write(tmp_path, form, number_type):
    teacher, boxes = distributions(12), some_boxes(12)
    (tmp_path / "train/n01440764").mkdir(parents=True)
    name = "n01440764/n01440764_18"
    written = fkd_labels(None, teacher.numpy(), boxes, SIZE, form, number_type=number_type)
    write_fkd(tmp_path / "train" / label_path(name), written)
    coords, flips, kept = loaded = fkd.load(tmp_path, "train", f"/data/train/{name}.JPEG")
    assert [type(part) for part in loaded] == [np.ndarray] * 3
    assert flips.dtype == bool
    assert coords.dtype == number_type
    assert kept.dtype == (np.int64 if form == "hard" else number_type)
    generated = fkd.quantise(teacher, form)
    np.testing.assert_array_equal(kept, generated if form == "hard" else generated.astype(number_type))
    tolerance = 1e-6 if number_type == "float32" else 2e-3
    decoded = fkd.decode(kept, form, NUM_CLASSES)
    torch.testing.assert_close(decoded.sum(1), torch.ones(12), atol=tolerance, rtol=0)
    torch.testing.assert_close(decoded, fkd.decode(generated, form, NUM_CLASSES), atol=tolerance, rtol=0)
    assert torch.equal(decoded.argmax(1), teacher.argmax(1))


@pytest.mark.parametrize("number_type", ["float32", "float16"])
def test_fkds_replay_cuts_the_pixels_that_we_cut(number_type):
    generator = np.random.default_rng(1)
    for height, width in [SIZE, (500, 333), (64, 64), (1, 40), (97, 1031)]:
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        boxes = some_boxes(20, height, width)
        ours = cut(pixels, boxes, Rendering(height=32, width=32))
        coords = box_fractions(boxes, height, width, number_type=number_type)
        for row, (fraction, flip) in enumerate(zip(coords, boxes["flip"], strict=True)):
            theirs = fkd.replay(Image.fromarray(pixels), fraction, flip, (32, 32))
            np.testing.assert_array_equal(ours[row], np.asarray(theirs))


def test_fractions_of_any_origin_are_rounded_as_pillow_rounds_them():
    generator = np.random.default_rng(2)
    pixels = generator.integers(0, 256, (90, 70, 3), np.uint8)
    starts = generator.uniform(0, 0.5, (80, 2))
    coords = np.concatenate([starts, generator.uniform(0.1, 0.5, (80, 2))], axis=1).astype(np.float32)
    boxes, inside = replayed_boxes(coords, 90, 70)
    assert inside.all()
    ours = cut(pixels, boxes, Rendering(height=16, width=16))
    for row, fraction in enumerate(coords):
        theirs = fkd.replay(Image.fromarray(pixels), fraction, False, (16, 16))
        np.testing.assert_array_equal(ours[row], np.asarray(theirs))


SIDES = st.integers(1, 65535) | st.integers(1, 700) | st.sampled_from([1, 2, 3, 1365, 2047, 2048, 2049, 4096, 65535])


@settings(max_examples=300, deadline=None)
@given(height=SIDES, width=SIDES, seed=st.integers(0, 2**32 - 1))
def test_our_boxes_come_back_exactly_from_their_fractions_for_every_image_size(height, width, seed):
    boxes = random_boxes(height, width, seed)
    for number_type in ("float32", "float16"):
        coords = box_fractions(boxes, height, width, number_type=number_type)
        back, inside = replayed_boxes(coords, height, width)
        assert inside.all()
        np.testing.assert_array_equal(back, boxes)
        if max(height, width) <= 2048:
            assert coords.dtype == number_type


def random_boxes(height, width, seed, num=60):
    generator = np.random.default_rng(seed)
    boxes = np.zeros(num, BOX)
    for start, extent, side in (("top", "height", height), ("left", "width", width)):
        ends = np.sort(generator.integers(0, side + 1, (num, 2)), axis=1)
        ends[ends[:, 0] == ends[:, 1]] = (0, side)
        boxes[start], boxes[extent] = ends[:, 0], ends[:, 1] - ends[:, 0]
    return boxes


def test_every_edge_of_every_image_up_to_2048_pixels_survives_both_number_types():
    for side in range(1, 2049):
        boxes = np.zeros(side, BOX)
        boxes["top"], boxes["left"] = np.arange(side), 0
        boxes["height"], boxes["width"] = side - np.arange(side), np.arange(side) + 1
        coords = box_fractions(boxes, side, side, number_type="float16")
        assert coords.dtype == np.float16
        np.testing.assert_array_equal(replayed_boxes(coords, side, side)[0], boxes)


def test_where_float16_cannot_say_a_box_the_image_gets_float32():
    boxes = random_boxes(5000, 5000, 0)
    assert box_fractions(boxes, 5000, 5000, number_type="float16").dtype == np.float32
    np.testing.assert_array_equal(replayed_boxes(box_fractions(boxes, 5000, 5000), 5000, 5000)[0], boxes)


def test_fkds_own_float16_is_replayed_as_fkd_replays_it_a_pixel_off_and_never_outside():
    size = (8001, 4000)
    boxes = random_boxes(*size, 3, num=5000)
    # Those that end at the lower edge may be put two pixels outside.
    boxes["height"][:3000] = np.arange(3000) + 100
    boxes["top"][:3000] = size[0] - boxes["height"][:3000]
    coords = fkd.fractions(plain(boxes), *size, np.float16)
    replayed, inside = replayed_boxes(coords, *size)
    assert inside.all()
    assert (replayed != boxes).any()
    bottom, right = replayed["top"] + replayed["height"], replayed["left"] + replayed["width"]
    assert bottom.max() <= size[0]
    assert right.max() <= size[1]
    for row, fraction in enumerate(coords):
        exact = [fraction[axis].item() * size[axis % 2] for axis in range(4)]
        assert replayed["top"][row] == round(exact[0])
        assert bottom[row] == min(round(exact[0] + exact[2]), size[0])


@pytest.mark.parametrize("name", ["n01440764/n01440764_18", "n01440764/a.b.c", "x/y/n01440764/z"])
def test_files_lie_where_fkds_loader_looks(tmp_path, name):
    image = f"/data/train/{name}.JPEG"
    path = tmp_path / "train" / label_path(name)
    path.parent.mkdir(parents=True)
    labels = fkd_labels(None, distributions(3).numpy(), some_boxes(3), SIZE, "hard")
    write_fkd(path, labels)
    np.testing.assert_array_equal(fkd.load(tmp_path, "train", image)[2], labels.labels)


def test_names_that_fkd_cannot_tell_apart_are_refused():
    for name in ("n01440764_18", "a.b/c", "a/.hidden", "/c"):
        with pytest.raises(ValueError, match="no place"):
            label_path(name)
    with pytest.raises(ValueError, match=r"'a/b\.1' and 'a/b\.2'"):
        label_paths(["a/b.1", "a/c", "a/b.2"])


def write(path, coords, flips, labels):
    path.write_bytes(dump_arrays([np.asarray(coords, "f4"), np.asarray(flips), np.asarray(labels)]))
    return path


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"coords": [[0, 0, 1]]}, r"coords are floats \[M, 4\]"),
        ({"flips": [0, 1]}, "flips"),
        ({"flips": [2]}, "flips"),
        ({"labels": [[[1, 2], [0.5, 0.1]]] * 2}, "none of FKD's forms"),
        ({"labels": [[[1, 2]]]}, "none of FKD's forms"),
        ({"labels": [[[1, 1], [0.5, 0.1]]]}, "twice"),
        ({"labels": [[[1, 1000], [0.5, 0.1]]]}, "0..999"),
        ({"labels": [[[1, -1], [0.5, 0.1]]]}, "0..999"),
        ({"labels": [[[1, 1.5], [0.5, 0.1]]]}, "whole"),
        ({"labels": [[[1, 2], [0.5, np.nan]]]}, "probabilities"),
        ({"labels": [[[1, 2], [7.5, 0.1]]]}, "logits"),
        ({"labels": [[[1, 2], [0.5, -0.1]]]}, "logits"),
        ({"labels": [[0.1] * 10]}, "10 classes, expected 1000"),
        ({"labels": [[0.5] + [0.0] * 999]}, "sum to 1"),
        ({"labels": [1000]}, "0..999"),
    ],
)
def test_a_file_that_means_nothing_is_refused_with_its_name(tmp_path, change, word):
    good = {"coords": [[0, 0, 1, 1]], "flips": [True], "labels": [[[1, 2], [0.5, 0.1]]]}
    assert len(read_fkd(write(tmp_path / "good.tar", **good), num_classes=1000)) == 1
    with pytest.raises(BadLabelFile, match=word) as fault:
        read_fkd(write(tmp_path / "bad.tar", **(good | change)), num_classes=1000)
    assert str(tmp_path / "bad.tar") in str(fault.value)


@pytest.mark.parametrize(
    "coords", [[0, 0, 0, 1], [0.9, 0, 0.5, 1], [-0.2, 0, 1, 1], [np.nan, 0, 1, 1], [0, 0, np.inf, 1]]
)
def test_a_crop_outside_of_its_image_is_refused(tmp_path, coords):
    path = write(tmp_path / "bad.tar", [[0, 0, 1, 1], coords], [True, False], [1, 2])
    with pytest.raises(BadLabelFile, match=r"bad\.tar: crop 1 .* 375 x 500"):
        read_fkd(path, num_classes=1000).boxes(*SIZE)


def test_another_form_than_the_one_asked_for_is_refused(tmp_path):
    path = write(tmp_path / "a.tar", [[0, 0, 1, 1]], [True], [[1, 0.5]])
    with pytest.raises(BadLabelFile, match="not the form hard"):
        read_fkd(path, num_classes=1000, form="hard")
    path = write(tmp_path / "a.tar", [[0, 0, 1, 1]], [True], [[0.25, 0.75]])
    assert read_fkd(path, num_classes=2, form="full").num_kept == 0


def test_a_form_of_more_classes_than_were_kept_is_refused():
    best = np.array([[3, 1, 2, 5, 4]]), np.array([[0.5, 0.2, 0.1, 0.05, 0.01]], np.float32)
    box = some_boxes(1)
    assert fkd_labels(*best, box, SIZE, "marginal_smoothing_k5").labels.shape == (1, 2, 5)
    for form in ("marginal_smoothing_k10", "full"):
        with pytest.raises(ValueError, match="the 5 best were kept"):
            fkd_labels(*best, box, SIZE, form)
    with pytest.raises(ValueError, match="float16 cannot hold class 2049"):
        fkd_labels(best[0] + 2046, best[1], box, SIZE, "smoothing", number_type="float16")


def test_an_interrupted_writing_leaves_no_file(tmp_path):
    labels = fkd_labels(None, distributions(1).numpy(), some_boxes(1), SIZE, "hard")
    with pytest.raises(FileNotFoundError):
        write_fkd(tmp_path / "absent/a.tar", labels)
    with pytest.raises(AttributeError):
        write_fkd(tmp_path / "a.tar", None)
    assert list(tmp_path.iterdir()) == []
