"""Crops by reference over both wires: the same pixels, the same labels, and what becomes of samples that differ."""

from __future__ import annotations

import logging
import shutil
import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.crops.cutting import decode_and_cut
from teacherfarm.crops.mixing import Mix, draw_cutmix, draw_funmatch_mix, draw_self_mix, mix_crops, mix_references
from teacherfarm.crops.sample_index import index_dataset
from teacherfarm.crops.sample_readers import open_samples
from teacherfarm.crops.view_schedule import ViewSchedule
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.faults import (
    BadReference,
    NotAllowed,
    SampleChanged,
    SampleMismatch,
    UnknownDataSet,
    UnknownSample,
)
from teacherfarm.protos.references import BOX_REFERENCE, MIXING_TYPES, CropReferences
from teacherfarm.protos.wire import ListTeachers, SliceFault, SliceLabels, TeacherList, Welcome, encode_header
from teacherfarm.student import TeacherClient, Timeouts
from teacherfarm.student.by_reference import ByReference
from teacherfarm.student.crop_dataset import CropDataset, collate_crops
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.teacher_server.projects.api_keys import digest_of
from tests.farm_process import FarmProcess, wait_for
from tests.integration.test_restart import BATCH, EPOCH, Killer, moments, run_epoch
from tests.raw_student import hello, raw_student, slice_header

RENDERING = Rendering(height=32, width=32, interpolation="bicubic")
PLAN = CropPlan(seed=11)
NUM_IMAGES = 12


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of class folders: JPEG and PNG files of several sizes."""
    root = tmp_path_factory.mktemp("images")
    for number in range(NUM_IMAGES):
        random = np.random.default_rng(number)
        small = random.integers(0, 256, (5, 7, 3), np.uint8)
        picture = Image.fromarray(small).resize((60 + 9 * number, 50 + 5 * number), Image.Resampling.BICUBIC)
        file = root / ("cat", "dog")[number % 2] / f"{number:02}.{'png' if number % 3 == 0 else 'jpg'}"
        file.parent.mkdir(exist_ok=True)
        picture.save(file)
    return root


@pytest.fixture(scope="module")
def farm(tiny_models, images, tmp_path_factory):
    """A server that has these images."""
    folder = tmp_path_factory.mktemp("reference_farm")
    with FarmProcess(
        folder, tiny_models, "--dataset", f"train={images}", "--dataset-cache", folder / "indexes"
    ) as farm:
        yield farm


def dataset(images, *, per_visit=3, **options) -> CropDataset:
    return CropDataset(
        images, teacher_rendering=RENDERING, plan=PLAN, schedule=ViewSchedule(per_visit=per_visit), **options
    )


def batch_of(data: CropDataset, indices=range(NUM_IMAGES)):
    return collate_crops(data.__getitems__(list(indices)))


def same_labels(got, expected) -> None:
    assert got.weight.tolist() == expected.weight.tolist()
    np.testing.assert_array_equal(got.log_probabilities, expected.log_probabilities)


def test_the_labels_are_those_of_the_pixels_that_a_student_cuts(wire, farm, images):
    named = dataset(images, by_reference="train")
    pixels, references = batch_of(dataset(images)), batch_of(named)
    assert references["crops"].shape == (3 * NUM_IMAGES, 20)
    assert references["keys"] == b""
    with TeacherClient(getattr(farm, wire)) as teacher:
        expected = teacher.label(pixels["crops"])
    with TeacherClient(getattr(farm, wire), by_reference=named.references()) as teacher:
        same_labels(teacher.label(references["crops"]), expected)
        # Pixels go over the same session, for whatever has no reference.
        same_labels(teacher.label(pixels["crops"]), expected)
        assert teacher.stats.bytes_sent == 20 * 3 * NUM_IMAGES + pixels["crops"].nbytes
    assert len(np.unique(expected.log_probabilities, axis=0)) > 30, "labels that differ, or the order would not show"


def test_a_loader_passes_references_through(wire, farm, images):
    named = dataset(images, by_reference="train", student_rendering=Rendering(height=16, width=16))
    loader = DataLoader(named, batch_size=5, collate_fn=collate_crops, num_workers=2)
    with TeacherClient(getattr(farm, wire), by_reference=named.references()) as teacher:
        expected = teacher.label(batch_of(dataset(images), range(5))["crops"])
        batches = list(LabelledLoader(loader, teacher, lambda batch: batch["crops"], keys=lambda batch: batch["keys"]))
    assert [len(labels) for _, labels in batches] == [15, 15, 6]
    same_labels(batches[0][1], expected)
    assert batches[0][0]["images"].shape == (15, 16, 16, 3)


def explicit(images):
    """Every image's number and content, and a box of each; and the pixels in them."""
    index, reader = index_dataset(images), open_samples(images)
    random = np.random.default_rng(2)
    boxes = PLAN.boxes(index.numbers(), random.integers(0, 9, len(index)), index.heights, index.widths)
    pixels = [decode_and_cut(reader.read(row), boxes[row : row + 1], RENDERING) for row in range(len(index))]
    return CropReferences.of_boxes(index.numbers(), index.prefixes(), boxes), np.concatenate(pixels)


MIXES = {
    "funmatch": lambda random, n: draw_funmatch_mix(random, n),
    "mixup of pairs anywhere": lambda random, n: Mix(
        kind="mixup", partner=tuple(random.permutation(n).tolist()), own_share=77
    ),
    "cutmix": lambda random, n: draw_cutmix(random, n, 32, 32),
    "self-mix": lambda random, n: draw_self_mix(random, n // 3, 3, 32, 32),
}


@pytest.mark.parametrize("name", MIXES)
def test_boxes_may_be_given_and_crops_mixed(wire, farm, images, name):
    references, pixels = explicit(images)
    mix = MIXES[name](np.random.default_rng(5), NUM_IMAGES)
    by_reference = ByReference(dataset="train", rendering=RENDERING)
    with TeacherClient(getattr(farm, wire), by_reference=by_reference) as teacher:
        same_labels(teacher.label(references), teacher.label(pixels))
        same_labels(teacher.label(mix_references(references, mix)), teacher.label(mix_crops(pixels, mix)))


def test_the_same_images_in_another_container_serve(wire, farm, images, tmp_path):
    import pyarrow
    import pyarrow.parquet

    samples = open_samples(images)
    rows = [{"bytes": samples.read(row), "path": f"elsewhere_{row}.jpg"} for row in range(len(samples))]
    pyarrow.parquet.write_table(pyarrow.table({"image": rows, "label": samples.targets}), tmp_path / "train.parquet")
    named = dataset(tmp_path / "train.parquet", by_reference="train")
    assert named.source.name(3) == "elsewhere_3"
    with TeacherClient(getattr(farm, wire), by_reference=named.references()) as teacher:
        expected = teacher.label(batch_of(dataset(tmp_path / "train.parquet"))["crops"])
        same_labels(teacher.label(batch_of(named)["crops"]), expected)


@pytest.fixture
def changed(images, tmp_path):
    """The student's copy of the images: one differs, one is its own."""
    copy = tmp_path / "copy"
    shutil.copytree(images, copy)
    Image.new("RGB", (70, 60), (200, 30, 30)).save(copy / "cat" / "04.jpg")
    Image.new("RGB", (70, 60), (20, 30, 230)).save(copy / "dog" / "99.png")
    return copy


def test_a_sample_that_differs_is_refused_by_name_and_no_other(wire, farm, changed):
    named = dataset(changed, by_reference="train")
    references = batch_of(named, range(len(named)))["crops"]
    with TeacherClient(getattr(farm, wire), by_reference=named.references()) as teacher:
        with pytest.raises(SampleMismatch, match=r"'cat/04'.*another image here"):
            teacher.label(references)
        with pytest.raises(UnknownSample, match=r"'dog/99'.*no sample with the number"):
            teacher.label(batch_of(named, [len(named) - 1])["crops"])
        assert teacher.label(batch_of(named, [0, 1, 3])["crops"]).weight.all()


def test_a_sample_that_differs_may_be_left_out(wire, farm, changed, caplog):
    named = dataset(changed, by_reference="train")
    batch = batch_of(named, range(len(named)))
    with TeacherClient(getattr(farm, wire), by_reference=named.references(on_refused="skip")) as teacher:
        expected = teacher.label(batch_of(dataset(changed), range(len(named)))["crops"])
        with caplog.at_level(logging.WARNING):
            labels = [teacher.label(batch["crops"]) for _ in range(2)]
    names = [named.source.name(index) for index in batch["samples"].tolist()]
    kept = np.array([name not in ("cat/04", "dog/99") for name in names])
    for got in labels:
        assert got.weight.tolist() == kept.astype(np.float32).tolist()
        np.testing.assert_array_equal(got.log_probabilities[kept], expected.log_probabilities[kept])
    told = [record.getMessage() for record in caplog.records if "weight 0" in record.getMessage()]
    assert len(told) == 2, "each sample once"


def test_a_sample_that_differs_may_be_sent(wire, farm, changed):
    named = dataset(changed, by_reference="train")
    with TeacherClient(getattr(farm, wire), by_reference=named.references(on_refused="send")) as teacher:
        expected = teacher.label(batch_of(dataset(changed), range(len(named)))["crops"])
        before = teacher.stats.crops_answered
        same_labels(teacher.label(batch_of(named, range(len(named)))["crops"]), expected)
        assert teacher.stats.crops_answered - before == 3 * len(named)


def test_an_image_that_changed_on_the_server_since_it_was_indexed(wire, start_farm, images, tmp_path):
    served = tmp_path / "served"
    shutil.copytree(images, served)
    farm = start_farm("--dataset", f"train={served}", "--dataset-cache", str(tmp_path / "indexes"))
    Image.new("RGB", (70, 60)).save(served / "cat" / "04.jpg")
    (served / "cat" / "06.png").unlink()
    named = dataset(images, by_reference="train")
    with TeacherClient(getattr(farm, wire), by_reference=named.references()) as teacher:
        with pytest.raises(SampleChanged, match=r"'cat/04'.*changed since it was indexed"):
            teacher.label(batch_of(named)["crops"])
    with TeacherClient(getattr(farm, wire), by_reference=named.references(on_refused="send")) as teacher:
        same_labels(teacher.label(batch_of(named)["crops"]), teacher.label(batch_of(dataset(images))["crops"]))


def test_a_project_names_crops_of_its_own_data_sets_alone(wire, start_farm, images, tmp_path):
    file = tmp_path / "projects.toml"
    keys = {name: f"tfk_{name}_{'0' * 40}" for name in ("one", "other")}
    tables = {name: f'[projects.{name}]\nkeys = ["{digest_of(key)}"]\n' for name, key in keys.items()}
    file.write_text(tables["one"] + tables["other"] + 'datasets = ["val-*"]\n')
    farm = start_farm("--dataset", f"train={images}", "--dataset-cache", str(tmp_path), "--projects", str(file))
    named = dataset(images, by_reference="train")
    address, crops = getattr(farm, wire), batch_of(named)["crops"]
    with pytest.raises(NotAllowed, match="'other' may not name crops of a data set 'train'"):
        TeacherClient(address, api_key=keys["other"], by_reference=named.references()).connect()
    with TeacherClient(address, api_key=keys["one"], by_reference=named.references()) as teacher:
        assert teacher.label(crops).weight.all()
        file.write_text(tables["one"] + "datasets = []\n" + tables["other"])
        farm.signal(signal.SIGHUP)
        with pytest.raises(NotAllowed):
            wait_for(lambda: teacher.label(crops) is None, 20)


def test_a_server_without_its_data_set_says_so_and_ends(start_farm, tmp_path):
    with pytest.raises(AssertionError, match=r"(?s)ended with 1 before.*BadDataSet: no data set at .*absent"):
        start_farm("--dataset", f"train={tmp_path / 'absent'}", "--dataset-cache", str(tmp_path))


def test_what_is_no_crop_is_refused(wire, farm, images):
    address = getattr(farm, wire)
    references, _ = explicit(images)
    outside: NDArray[np.void] = references.table.copy()
    outside["top"][4] = 5000
    with pytest.raises(UnknownDataSet, match=r"no data set 'val'.*it has: train"):
        TeacherClient(address, by_reference=ByReference(dataset="val", rendering=RENDERING)).connect()
    small = Rendering(height=16, width=16)
    with pytest.raises(ValueError, match="16 x 16"):
        TeacherClient(address, by_reference=ByReference(dataset="train", rendering=small)).connect()
    with TeacherClient(address, by_reference=ByReference(dataset="train", rendering=RENDERING)) as teacher:
        with pytest.raises(BadReference, match=r"top=5000.*does not lie inside"):
            teacher.label(CropReferences(table=outside))
        with pytest.raises(BadReference, match="give ByReference the plan"):
            teacher.label(CropReferences.of_views(references.table["sample"], references.table["content"], 0))
        assert len(teacher.label(references)) == NUM_IMAGES
    with TeacherClient(address) as teacher:
        with pytest.raises(BadReference, match="by_reference="):
            teacher.label(references)


@pytest.fixture(scope="module")
def many(farm, images):
    """Packed references of many crops of all images, and the records that their pixels get."""
    named = batch_of(dataset(images, per_visit=20, by_reference="train"))["crops"].numpy()
    with TeacherClient(farm.zmq) as teacher:
        return named, teacher.label(batch_of(dataset(images, per_visit=20))["crops"]).records


def test_a_server_killed_and_restarted_costs_no_label(wire, start_farm, images, many, tmp_path):
    named, right_records = many
    flags = ("--dataset", f"train={images}", "--dataset-cache", str(tmp_path), "--threads=1", "--max-batch=4")
    farm = start_farm(*flags)
    order = np.random.default_rng(11).integers(0, len(named), (EPOCH, BATCH))
    epoch = [{"crops": named[rows], "rows": rows} for rows in order]
    how = dataset(images, by_reference="train").references()
    with TeacherClient(getattr(farm, wire), "tiny", by_reference=how) as client:
        killer = Killer(client, moments(seed=wire), farm.restart)
        killer.start()
        run_epoch(client, epoch, right_records)
        killer.finish()
        stats = client.stats
        assert stats.sessions == 4
        assert stats.crops_resent > 0, "no kill found a crop in flight: the test tested nothing"
        assert (stats.crops_asked, stats.crops_answered, stats.crops_failed) == (EPOCH * BATCH, EPOCH * BATCH, 0)


def test_a_stalled_server_starves_references_as_it_does_pixels(wire, start_farm, images, many, tmp_path):
    named, right_records = many
    farm = start_farm("--dataset", f"train={images}", "--dataset-cache", str(tmp_path), "--window=64")
    how = dataset(images, by_reference="train").references()
    impatient = Timeouts(answer_s=0.5)
    address = getattr(farm, wire)
    with TeacherClient(address, by_reference=how, timeouts=impatient, on_starved="skip", window=128) as teacher:
        farm.pause()
        try:
            futures = [teacher.submit(named[first : first + 64]) for first in (0, 64)]
            assert teacher.room() == 0
            assert not any(future.result(20).weight.any() for future in futures)
            assert teacher.stats.crops_starved == 128
            # The server allowed 64: no more left this side.
            assert teacher.stats.bytes_sent <= 20 * 64
        finally:
            farm.resume()
        wait_for(lambda: teacher.label(named[:64]).weight.all(), 20)
        assert teacher.label(named[:64]).records.tobytes() == right_records[:64].tobytes()


@st.composite
def hostile_slices(draw):
    """A slice by reference: of about the right length, of samples that there are or are not, else of any bytes."""
    num_crops = draw(st.integers(1, 8))
    place, mixing = draw(st.sampled_from(["view", "box"])), draw(st.sampled_from(["none", "mixup", "cutmix"]))
    num_references = num_crops + (draw(st.integers(0, num_crops)) if mixing != "none" else 0)
    table = np.frombuffer(
        draw(st.binary(min_size=25 * num_references, max_size=25 * num_references)), BOX_REFERENCE, num_references
    ).copy()
    if draw(st.booleans()):
        table["top"] %= 40
        table["left"] %= 40
        table["height"] %= 40
        table["width"] %= 40
    known = draw(st.lists(st.integers(0, NUM_IMAGES - 1), max_size=num_references))
    mix = b""
    if mixing != "none":
        records = np.zeros(num_crops, MIXING_TYPES[mixing])
        for name in records.dtype.names:
            records[name] = draw(st.sampled_from([0, 1, num_crops, 300, 2**16 - 1]))
        mix = records.tobytes()
    cut = draw(st.sampled_from([0, 0, 0, 1, 7]))
    return num_crops, place, mixing, table, known, mix, cut


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(broken=st.lists(hostile_slices(), min_size=1, max_size=6))
def test_hostile_references_are_answered_with_declared_faults(wire, farm, images, broken):
    index = index_dataset(images)
    how = ByReference(dataset="train", rendering=RENDERING, plan=PLAN)
    with raw_student(getattr(farm, wire)) as student:
        student.send(hello(codec="reference", samples=how.view))
        for batch_id, (num_crops, place, mixing, table, known, mix, cut) in enumerate(broken):
            for entry, row in enumerate(known):
                table["content"][entry] = index.prefixes()[row]
            packed = table.tobytes()
            if place == "view":
                packed = b"".join(record.tobytes()[:20] for record in table)
            payload = (packed + mix)[: len(packed + mix) - cut]
            student.send(slice_header(batch_id, num_crops, place=place, mixing=mixing), payload)
        student.send(encode_header(ListTeachers()))
        answered = set()
        assert isinstance(student.receive()[0], Welcome)
        while len(answered) < len(broken):
            answer, _ = student.receive()
            if isinstance(answer, TeacherList):
                continue
            assert isinstance(answer, SliceFault | SliceLabels), answer
            if isinstance(answer, SliceFault):
                assert type(answer.fault) is BadReference, answer.fault
            answered.add(answer.batch_id)
