"""``teacherfarm labels import`` and ``export``: other projects' files become recorded labels, and FKD's again."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from teacherfarm import cli
from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.crops.sample_index import index_dataset
from teacherfarm.label_store import fkd_files
from teacherfarm.label_store.manifest import Manifest
from teacherfarm.label_store.recorded_labels import LabelRecorder, RecordedLabels
from teacherfarm.label_store.tinyvit_files import TinyVitLabels, write_rank
from teacherfarm.protos.crop import CropFormat, Rendering
from teacherfarm.protos.soft_label import LabelSpec, log_softmax, top_k
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.recipes import foreign_labels
from tests import fkd

NUM_CLASSES = 40
VIEWS = 6
NAMES = [f"n0{number % 3}/image_{number}" for number in range(7)]
"""Not in the order that the index has them."""


@pytest.fixture
def data(tmp_path):
    generator = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        path = tmp_path / "data" / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (30 + number, 50 - number, 3), np.uint8)).save(path)
    return tmp_path / "data"


@pytest.fixture
def card():
    return TeacherCard(
        name="tiny",
        teacher_digest="a" * 64,
        artifact_digest="b" * 64,
        model_file="model.onnx",
        crop_format=CropFormat(height=32, width=32),
        rendering=Rendering(height=32, width=32),
        num_classes=NUM_CLASSES,
        activation="softmax",
        features=(),
    )


def size_of(name):
    number = NAMES.index(name)
    return 30 + number, 50 - number


def boxes_of(name, views=VIEWS):
    return CropPlan(seed=3).boxes([NAMES.index(name)], np.arange(views), *([side] for side in size_of(name)))


def answers(name, views=VIEWS):
    generator = torch.Generator().manual_seed(NAMES.index(name))
    return torch.randn(views, NUM_CLASSES, generator=generator) * 3


def generate(root, form, names=NAMES, views=VIEWS, number_type=np.float32, **options):
    """FKD's label files of some images."""
    for name in names:
        boxes = boxes_of(name, views)
        kept = fkd.quantise(torch.softmax(answers(name, views), 1), form)
        plain = [row[:4] for row in boxes.tolist()]
        fkd.save(f"{root}/train/{name}.tar", plain, boxes["flip"], kept, size_of(name), number_type, **options)


def run(*arguments):
    return cli.main(["labels", *map(str, arguments)])


def import_fkd(source, data, out, *more):
    return run("import", "fkd", source, "--data", data, "--out", out, "--num-classes", NUM_CLASSES, *more)


def row_of(labels, name):
    return [labels.index.name(row) for row in range(len(labels.index))].index(name)


def labels_of(labels, name, views=VIEWS):
    row, view = np.full(views, row_of(labels, name)), np.arange(views)
    return labels.soft_labels(row, view), labels.boxes(row, view)


def completion(form):
    return "renorm" if "renorm" in form else "smoothing"


@pytest.mark.parametrize("number_type", ["float32", "float16"])
@pytest.mark.parametrize("form", fkd_files.FKD_FORMS)
def test_fkds_files_go_in_and_come_out_meaning_the_same(tmp_path, data, form, number_type):
    generate(tmp_path / "theirs", form, number_type=np.dtype(number_type).type)
    assert import_fkd(tmp_path / "theirs", data, tmp_path / "ours", "--form", form) == 0
    labels = RecordedLabels.open(str(tmp_path / "ours"))
    assert len(labels) == len(NAMES) * VIEWS
    assert labels.manifest.spec.top_k == fkd_files.KEPT[form]
    arguments = ["--out", tmp_path / "back", "--form", form, "--number-type", number_type]
    assert run("export", "fkd", tmp_path / "ours", *arguments) == 0
    # A probability takes two roundings at most: float16 of its logarithm, and where the file is float16 its own.
    # Scaling five probabilities up to 1 scales their errors, too.
    tolerance = 2e-3 if number_type == "float16" else 5e-4 if "renorm" in form else 2e-4
    for name in NAMES:
        soft, boxes = labels_of(labels, name)
        np.testing.assert_array_equal(boxes, boxes_of(name))
        theirs = fkd.load(tmp_path / "theirs", "train", f"/x/train/{name}.JPEG")
        dense = fkd.decode(theirs[2], form, NUM_CLASSES).numpy()
        if form == "full":
            np.testing.assert_allclose(soft.probabilities(), dense, atol=tolerance)
        else:
            ours = soft.probabilities(completion=completion(form))
            np.testing.assert_allclose(ours, dense, atol=tolerance)
        back = fkd.load(tmp_path / "back", "train", f"/x/train/{name}.JPEG")
        np.testing.assert_array_equal(back[0], theirs[0])
        np.testing.assert_array_equal(back[1], theirs[1])
        assert [part.dtype for part in back] == [part.dtype for part in theirs]
        np.testing.assert_allclose(fkd.decode(back[2], form, NUM_CLASSES), dense, atol=tolerance)
        if back[2].ndim == 3:
            np.testing.assert_array_equal(back[2][:, 0], theirs[2][:, 0])


@pytest.mark.parametrize("k", [0, 1, 5, 10])
def test_our_labels_go_out_and_come_back_bit_for_bit(tmp_path, data, card, k):
    index = index_dataset(data)
    plan = CropPlan(seed=9)
    spec = LabelSpec(top_k=k)
    manifest = Manifest.of(
        card, spec, plan=plan, rendering=card.rendering, views=VIEWS, samples=index.digest(), has_boxes=False
    )
    rows, views = np.repeat(np.arange(len(index)), VIEWS), np.tile(np.arange(VIEWS), len(index))
    logs = log_softmax(np.random.default_rng(1).standard_normal((len(rows), NUM_CLASSES)) * 4)
    records = np.zeros(len(rows), manifest.record_dtype)
    if k:
        records["classes"], records["log_probabilities"] = top_k(logs, k, 1.0)
    else:
        records["labels"] = logs
    with LabelRecorder(str(tmp_path / "ours"), manifest, index) as recorder:
        recorder.add(rows, views, records)
    form = {0: "full", 1: "smoothing", 5: "marginal_smoothing_k5", 10: "marginal_smoothing_k10"}[k]
    assert run("export", "fkd", tmp_path / "ours", "--out", tmp_path / "fkd", "--form", form) == 0
    (tmp_path / "card.json").write_text(card.to_json())
    arguments = ["--data", data, "--out", tmp_path / "again", "--card", tmp_path / "card.json"]
    assert run("import", "fkd", tmp_path / "fkd", *arguments) == 0
    again = RecordedLabels.open(str(tmp_path / "again"))
    assert again.manifest.spec == manifest.spec
    assert again.manifest.teacher == manifest.teacher
    back, present = again.read(rows, views)
    assert present.all()
    np.testing.assert_array_equal(back, records)
    due = plan.boxes(index.numbers()[rows], views, index.heights[rows], index.widths[rows])
    np.testing.assert_array_equal(again.boxes(rows, views), due)


def test_a_file_that_tries_to_run_code_stops_the_import_and_is_named(tmp_path, data, capsys):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'was-here'}",)

    generate(tmp_path / "theirs", "hard")
    evil = tmp_path / "theirs/train" / f"{NAMES[3]}.tar"
    torch.save([Attack(), np.zeros(VIEWS, bool), np.zeros(VIEWS, np.int64)], evil)
    assert import_fkd(tmp_path / "theirs", data, tmp_path / "ours") == 1
    said = capsys.readouterr().err
    assert "UnsafeLabelFile" in said
    assert str(evil) in said
    assert "system" in said
    assert not (tmp_path / "was-here").exists()


def test_damaged_files_are_left_out_and_named_and_got_the_next_time(tmp_path, data, capsys):
    generate(tmp_path / "theirs", "marginal_smoothing_k5")
    broken = tmp_path / "theirs/train" / f"{NAMES[5]}.tar"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "theirs/train" / f"{NAMES[2]}.tar").unlink()
    assert import_fkd(tmp_path / "theirs", data, tmp_path / "ours") == 1
    said = "".join(capsys.readouterr())
    assert str(broken) in said
    assert "1 images have no label file" in said
    labels = RecordedLabels.open(str(tmp_path / "ours"))
    assert len(labels) == (len(NAMES) - 2) * VIEWS
    assert labels_of(labels, NAMES[5])[0].weight.sum() == 0
    broken.write_bytes(whole)
    assert import_fkd(tmp_path / "theirs", data, tmp_path / "ours") == 0
    labels = RecordedLabels.open(str(tmp_path / "ours"))
    np.testing.assert_array_equal(labels_of(labels, NAMES[5])[1], boxes_of(NAMES[5]))


def test_an_interrupted_import_goes_on_where_it_ended(tmp_path, data, monkeypatch, capsys):
    generate(tmp_path / "theirs", "hard")
    monkeypatch.setattr(foreign_labels, "_IMAGES_AT_ONCE", 1)
    read, seen = fkd_files.read_fkd, []

    def reading(path, **options):
        seen.append(path)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return read(path, **options)

    monkeypatch.setattr(foreign_labels, "read_fkd", reading)
    assert import_fkd(tmp_path / "theirs", data, tmp_path / "ours", "--threads", 1) == 130
    done = len(RecordedLabels.open(str(tmp_path / "ours"))) // VIEWS
    assert 2 <= done < len(NAMES)
    seen[:] = [None] * 10
    assert import_fkd(tmp_path / "theirs", data, tmp_path / "ours", "--threads", 1) == 0
    assert len(seen) - 10 == 1 + len(NAMES) - done  # the first file tells the form
    assert len(RecordedLabels.open(str(tmp_path / "ours"))) == len(NAMES) * VIEWS


def test_images_of_fewer_crops_have_fewer_views_and_of_more_are_refused(tmp_path, data, capsys):
    generate(tmp_path / "theirs", "hard", NAMES[:1])
    generate(tmp_path / "theirs", "hard", NAMES[1:2], views=2)
    generate(tmp_path / "theirs", "hard", NAMES[2:3], views=9)
    assert import_fkd(tmp_path / "theirs", data, tmp_path / "ours") == 1
    assert "has 9 crops, more than 6" in "".join(capsys.readouterr())
    assert import_fkd(tmp_path / "theirs", data, tmp_path / "nine", "--views", 9) == 0
    labels = RecordedLabels.open(str(tmp_path / "nine"))
    assert [labels_of(labels, name, 9)[0].weight.sum() for name in NAMES[:4]] == [6, 2, 9, 0]
    assert run("export", "fkd", tmp_path / "nine", "--out", tmp_path / "back", "--form", "hard", "--views", 4) == 0
    assert "3 of 7 images" in (said := capsys.readouterr().out)
    assert "4 have no labels" in said
    lengths = [len(fkd.load(tmp_path / "back", "train", f"/x/train/{name}.JPEG")[2]) for name in NAMES[:3]]
    assert lengths == [4, 2, 4]


def test_the_label_file_of_another_image_is_refused(tmp_path, data, capsys):
    generate(tmp_path / "theirs", "hard", NAMES[:2])
    path = tmp_path / "theirs/train" / f"{NAMES[1]}.tar"
    coords, flips, labels = torch.load(path, weights_only=False)
    coords[2] = (0.5, 0.5, 0.9, 0.9)
    torch.save([coords, flips, labels], path)
    assert import_fkd(tmp_path / "theirs", data, tmp_path / "ours") == 1
    assert "31 x 49 pixels, which is no crop of it" in "".join(capsys.readouterr())


def test_an_export_leaves_what_is_there_unless_told_otherwise(tmp_path, data, capsys):
    generate(tmp_path / "theirs", "marginal_smoothing_k5")
    import_fkd(tmp_path / "theirs", data, tmp_path / "ours")
    export = ["export", "fkd", tmp_path / "ours", "--out", tmp_path / "back"]
    there = tmp_path / "back/train" / f"{NAMES[0]}.tar"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"mine")
    assert run(*export) == 0
    assert there.read_bytes() == b"mine"
    assert "exported 6 of 7 images" in capsys.readouterr().out
    assert run(*export, "--overwrite", "--split", "train", "--form", "marginal_renorm_k5") == 0
    assert "--soft_label_type marginal_renorm ..." in capsys.readouterr().out
    assert there.stat().st_size > 500


@pytest.mark.parametrize("form", ["full", "marginal_smoothing_k10"])
def test_a_form_that_the_labels_cannot_fill_is_refused_before_anything_is_written(tmp_path, data, form, capsys):
    generate(tmp_path / "theirs", "marginal_smoothing_k5")
    import_fkd(tmp_path / "theirs", data, tmp_path / "ours")
    assert run("export", "fkd", tmp_path / "ours", "--out", tmp_path / "back", "--form", form) == 2
    assert "the 5 best" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


def test_tinyvits_labels_come_with_their_seeds(tmp_path, data, capsys):
    index = index_dataset(data)
    generator = np.random.default_rng(0)
    saved = {}
    for epoch in range(2):
        logs = log_softmax(generator.standard_normal((len(index), NUM_CLASSES)) * 3)
        classes, values = top_k(logs, 10, 1.0)
        keys = [index.name(row).rpartition("/")[2] for row in range(len(index))]
        saved[epoch] = TinyVitLabels(
            keys=keys,
            seeds=generator.integers(0, 2**31, len(keys)).astype(np.int32),
            classes=classes.astype(np.uint16),
            probabilities=np.exp(values).astype(np.float16),
        )
        half = len(keys) // 2
        for rank, rows in enumerate([slice(0, half), slice(half, None)]):
            part = {name: getattr(saved[epoch], name)[rows] for name in ("seeds", "classes", "probabilities")}
            # The last rank's padding: an image that the first has, too.
            part = {name: np.concatenate([values, values[:1]]) for name, values in part.items()}
            padding = keys[0] if rank else "unknown_image"
            write_rank(tmp_path / "tv", epoch, rank, TinyVitLabels(keys=[*keys[rows], padding], **part))
    arguments = ["--data", data, "--out", tmp_path / "ours", "--num-classes", NUM_CLASSES]
    assert run("import", "tinyvit", tmp_path / "tv", *arguments) == 0
    assert "2 keys have no image" in capsys.readouterr().out
    labels = RecordedLabels.open(str(tmp_path / "ours"))
    assert labels.manifest.views == 2
    seeds = np.load(tmp_path / "ours/seeds.npy")
    for epoch, due in saved.items():
        soft = labels.soft_labels(np.arange(len(index)), np.full(len(index), epoch))
        assert soft.weight.all()
        np.testing.assert_array_equal(soft.classes, due.classes)
        np.testing.assert_allclose(np.exp(soft.log_probabilities.astype("f4")), due.probabilities, rtol=8e-3, atol=1e-6)
        np.testing.assert_array_equal(seeds[epoch], due.seeds)
    assert run("export", "fkd", tmp_path / "ours", "--out", tmp_path / "back") == 2
    assert "knows no boxes (TinyViT's augmentation" in capsys.readouterr().err


@pytest.mark.parametrize("k", [0, 5])
def test_relabels_maps_label_the_crops_of_a_plan(tmp_path, data, k):
    from tests.unit.label_store.test_relabel_files import relabel

    maps = {}
    for name in NAMES:
        scores = torch.randn(NUM_CLASSES, 15, 15, generator=torch.Generator().manual_seed(NAMES.index(name))) * 5
        maps[name] = scores.topk(5, dim=0)
        path = tmp_path / "maps" / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.stack([maps[name][0], maps[name][1].float()]), path)
    arguments = ["--data", data, "--out", tmp_path / "ours", "--num-classes", NUM_CLASSES, "--views", 4, "--top-k", k]
    assert run("import", "relabel", tmp_path / "maps", *arguments, "--seed", 8) == 0
    labels = RecordedLabels.open(str(tmp_path / "ours"))
    plan = CropPlan(seed=8)
    assert labels.manifest.plan == plan
    for name in NAMES:
        row = row_of(labels, name)
        height, width = size_of(name)
        boxes = plan.boxes(labels.index.numbers()[[row]], np.arange(4), [height], [width])
        fields = [boxes["top"] / height, boxes["left"] / width, boxes["height"] / height, boxes["width"] / width]
        due = relabel(*maps[name], np.stack(fields, 1), num_classes=NUM_CLASSES).numpy()
        soft = labels.soft_labels(np.full(4, row), np.arange(4))
        if k:
            np.testing.assert_allclose(
                np.exp(soft.log_probabilities.astype("f4")), -np.sort(-due, axis=1)[:, :k], rtol=5e-3
            )
            np.testing.assert_array_equal(soft.top1, due.argmax(1))
        else:
            np.testing.assert_allclose(soft.probabilities(), due, atol=5e-4)


def test_images_in_another_container_get_the_same_labels(tmp_path, data):
    import tarfile

    generate(tmp_path / "theirs", "hard")
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(data, arcname=".")
    assert import_fkd(tmp_path / "theirs", tmp_path / "images.tar", tmp_path / "ours") == 0
    labels = RecordedLabels.open(str(tmp_path / "ours"))
    for name in NAMES:
        np.testing.assert_array_equal(labels_of(labels, name)[1], boxes_of(name))


def test_mistakes_are_told_in_one_line(tmp_path, data, capsys):
    generate(tmp_path / "theirs", "hard")
    common = ["import", "fkd", tmp_path / "theirs", "--data", data, "--out", tmp_path / "ours"]
    assert run(*common) == 2
    assert "--num-classes" in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert run(*common, "--num-classes", 3, "--class-names", tmp_path / "names.txt") == 2
    assert "names 2 classes, --num-classes is 3" in capsys.readouterr().err
    assert import_fkd(tmp_path / "absent", data, tmp_path / "ours") == 2
    assert "not a folder" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "theirs/train")
    assert import_fkd(tmp_path / "theirs", data, tmp_path / "ours") == 2
    assert "no label file of any of 7 images" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()
