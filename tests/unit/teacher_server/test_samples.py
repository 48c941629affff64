"""Crops that the server cuts: the very pixels and keys of a student's, each image decoded once, faults by crop."""

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from teacherfarm.crops import sample_index
from teacherfarm.crops.crop_plan import BOX, CropPlan
from teacherfarm.crops.cutting import decode_and_cut
from teacherfarm.crops.mixing import draw_cutmix, draw_funmatch_mix, mix_crops, mix_references
from teacherfarm.crops.sample_index import index_dataset
from teacherfarm.crops.sample_readers import open_samples
from teacherfarm.crops.view_schedule import ViewSchedule
from teacherfarm.protos.crop import CropFormat, Rendering
from teacherfarm.protos.faults import (
    BadDataSet,
    BadReference,
    GoingAway,
    NotReady,
    SampleChanged,
    SampleMismatch,
    UnknownDataSet,
    UnknownSample,
    UnreadableImage,
    WrongCropSize,
    WrongNumberType,
)
from teacherfarm.protos.messages import SampleView
from teacherfarm.protos.references import CropReferences
from teacherfarm.student.crop_dataset import CropDataset, collate_crops
from teacherfarm.teacher_server.projects.project import Project
from teacherfarm.teacher_server.samples import referenced_crops
from teacherfarm.teacher_server.samples.data_sets import DataSets
from tests.on_loop import on_loop
from tests.unit.student.image_folders import write_images

RENDERING = Rendering(height=16, width=20, interpolation="bicubic")
FORMAT = CropFormat(height=16, width=20)
PLAN = CropPlan(seed=4)
TENANT = Project(name="alone")


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images", ("ant", "bee"), 3)


def view(dataset="train", plan=PLAN, rendering=RENDERING) -> SampleView:
    return SampleView(dataset=dataset, rendering=rendering, plan=json.dumps(plan.to_dict()) if plan else "")


async def served(images, cache) -> DataSets:
    data_sets = DataSets({"train": str(images)}, cache=cache, threads=2)
    await data_sets.start()
    return data_sets


async def found(data_sets, references, **options):
    cutter = data_sets.cutter(view(**options), FORMAT, TENANT)
    return await cutter.find(references.pack(), len(references), references.place, references.mixing_kind, 0)


async def cut_by(data_sets, references, **options):
    crops = await found(data_sets, references, **options)
    return await crops.render(range(len(crops))), crops


def views_of(images, num_views=3):
    """References of a batch, crop by crop, and the same crops as a student cuts them."""
    data = CropDataset(images, teacher_rendering=RENDERING, plan=PLAN, schedule=ViewSchedule(per_visit=num_views))
    batch = collate_crops(data.__getitems__(range(len(data))))
    index = index_dataset(images)
    rows = batch["samples"].numpy()
    references = CropReferences.of_views(index.numbers()[rows], index.prefixes()[rows], batch["views"].numpy())
    return references, batch["crops"].numpy(), batch["keys"]


@on_loop
async def test_pixels_and_keys_are_those_that_a_student_cuts(images, tmp_path):
    references, pixels, keys = views_of(images)
    data_sets = await served(images, tmp_path)
    (cut, done), crops = await cut_by(data_sets, references)
    assert list(done) == list(range(18))
    np.testing.assert_array_equal(cut, pixels)
    assert crops.keys == keys
    some, rows = await (await found(data_sets, references)).render([17, 2, 5])
    np.testing.assert_array_equal(some, pixels[[17, 2, 5]])
    assert list(rows) == [17, 2, 5]
    data_sets.close()


@on_loop
async def test_naming_crops_reads_nothing_and_cutting_decodes_each_image_once(images, tmp_path, monkeypatch):
    references, _, _ = views_of(images)
    data_sets = await served(images, tmp_path)
    decoded = []
    real = referenced_crops.decode
    monkeypatch.setattr(
        referenced_crops, "decode", lambda data, name, **how: decoded.append(name) or real(data, name, **how)
    )
    crops = await found(data_sets, references)
    assert (len(crops.keys), decoded) == (18 * 16, [])
    await crops.render(range(18))
    assert len(decoded) == 6
    data_sets.close()


@pytest.mark.parametrize("draw", [draw_funmatch_mix, lambda random, n: draw_cutmix(random, n, 16, 20)])
@on_loop
async def test_crops_are_mixed_as_a_student_mixes_them(images, tmp_path, draw):
    references, pixels, _ = views_of(images)
    data_sets = await served(images, tmp_path)
    mixes = [draw(np.random.default_rng(seed), 18) for seed in (1, 2)]
    keys = []
    for mix in mixes:
        mixed = mix_references(references, mix)
        (cut, _), crops = await cut_by(data_sets, mixed)
        np.testing.assert_array_equal(cut, mix_crops(pixels, mix))
        keys += [crops.keys[start : start + 16] for start in range(0, 18 * 16, 16)]
        # A slice of it, whose partners lie elsewhere.
        part = mixed.take(np.array([4, 11]))
        (cut, _), crops = await cut_by(data_sets, part)
        np.testing.assert_array_equal(cut, mix_crops(pixels, mix)[[4, 11]])
        assert crops.keys == keys[-18 + 4] + keys[-18 + 11]
    assert len(set(keys)) == 36, "another mix of the same crops is another crop"
    data_sets.close()


@on_loop
async def test_a_bad_reference_is_refused_alone_and_by_name(images, tmp_path):
    references, pixels, _ = views_of(images, 1)
    (images / "ant" / "0001.png").write_bytes(b"no image")
    data_sets = await served(images, tmp_path)
    table = references.table.copy()
    table["content"][2] = 5
    table["sample"][3], table["content"][3] = 77, 78
    (images / "bee" / "0001.png").write_bytes((images / "bee" / "0002.png").read_bytes())
    data_sets2 = await served(images, tmp_path / "other")
    assert len(data_sets2) == 1
    (cut, done), crops = await cut_by(data_sets, CropReferences(table=table))
    assert list(done) == [0, 5]
    np.testing.assert_array_equal(cut, pixels[[0, 5]])
    kinds = {row: type(fault) for row, fault in crops.refused.items()}
    assert kinds == {1: SampleMismatch, 2: SampleMismatch, 3: UnknownSample, 4: SampleChanged}
    for row, words in ((1, "'ant/0001'"), (2, "'ant/0002' of data set 'train'"), (3, "number 000000000000004d")):
        assert words in str(crops.refused[row])
    assert "'bee/0001' of data set 'train' changed since it was indexed" in str(crops.refused[4])
    data_sets.close()
    data_sets2.close()


@on_loop
async def test_an_image_that_nobody_can_read_is_refused_as_such(images, tmp_path):
    (images / "ant" / "0001.png").write_bytes(b"no image")
    data_sets = await served(images, tmp_path)
    index = index_dataset(images)
    references = CropReferences.of_views(index.numbers()[:2], index.prefixes()[:2], 0)
    (_, done), crops = await cut_by(data_sets, references)
    assert list(done) == [0]
    assert type(crops.refused[1]) is UnreadableImage
    assert "'ant/0001'" in str(crops.refused[1])
    data_sets.close()


@on_loop
async def test_boxes_are_taken_as_they_are_and_those_outside_refused(images, tmp_path):
    data_sets = await served(images, tmp_path)
    index, reader = index_dataset(images), open_samples(images)
    boxes = np.array([(0, 0, 40, 40, False), (3, 4, 30, 20, True), (0, 0, 41, 40, False), (0, 0, 0, 4, False)], BOX)
    references = CropReferences.of_boxes(index.numbers()[:4], index.prefixes()[:4], boxes)
    (cut, done), crops = await cut_by(data_sets, references, plan=None)
    assert list(done) == [0, 1]
    for row in done:
        np.testing.assert_array_equal(cut[row], decode_and_cut(reader.read(row), boxes[row : row + 1], RENDERING)[0])
    assert {type(fault) for fault in crops.refused.values()} == {BadReference}
    assert "height=41" in str(crops.refused[2])
    assert "40 x 40 pixels" in str(crops.refused[2])
    with pytest.raises(BadReference, match="views are numbers of a crop plan"):
        await found(data_sets, CropReferences.of_views([1], [1], 0), plan=None)
    data_sets.close()


@on_loop
async def test_a_partner_that_cannot_be_had_refuses_the_crop_that_needs_it(images, tmp_path):
    references, pixels, _ = views_of(images, 1)
    data_sets = await served(images, tmp_path)
    table = references.table.copy()
    table["content"][2] = 5
    mix = draw_funmatch_mix(np.random.default_rng(0), 6)  # each with the one before it
    mixed = mix_references(CropReferences(table=table), mix)
    (cut, done), crops = await cut_by(data_sets, mixed)
    assert list(done) == [0, 1, 4, 5]
    np.testing.assert_array_equal(cut, mix_crops(pixels, mix)[[0, 1, 4, 5]])
    assert sorted(crops.refused) == [2, 3]
    gone = CropReferences(table=table[[2, 2]])
    (cut, done), crops = await cut_by(data_sets, mix_references(gone, draw_funmatch_mix(np.random.default_rng(0), 2)))
    assert (len(cut), list(done), sorted(crops.refused)) == (0, [], [0, 1])
    outside = mix_references(references, draw_cutmix(np.random.default_rng(0), 6, 64, 64))
    outside.mixing["height"][1:], outside.mixing["top"][0] = 1, 100
    outside.mixing["top"][1:] = outside.mixing["left"] = outside.mixing["width"][1:] = 0
    crops = await found(data_sets, outside)
    assert list(crops.refused) == [0]
    assert "does not lie inside 16 x 20" in str(crops.refused[0])
    data_sets.close()


@on_loop
async def test_what_hello_asks_is_checked_once(images, tmp_path):
    data_sets = await served(images, tmp_path)
    with pytest.raises(UnknownDataSet, match=r"no data set 'val'.*it has: train"):
        data_sets.cutter(view("val"), FORMAT, TENANT)
    with pytest.raises(UnknownDataSet, match="it has none"):
        DataSets().cutter(view(), FORMAT, TENANT)
    with pytest.raises(WrongCropSize, match="16 x 20"):
        data_sets.cutter(view(), CropFormat(height=20, width=20), TENANT)
    with pytest.raises(WrongNumberType, match="uint8 RGB"):
        data_sets.cutter(view(), CropFormat(height=16, width=20, channels=1), TENANT)
    with pytest.raises(BadReference, match="area"):
        data_sets.cutter(
            view(rendering=Rendering(height=16, width=20, interpolation="area", antialias=False)), FORMAT, TENANT
        )
    for plan in ("no JSON", "[]", "{}", "[" * 30_000, '{"seed": 1}', json.dumps(PLAN.to_dict() | {"attempts": 10**9})):
        with pytest.raises(BadReference, match="crop plan cannot be used"):
            data_sets.cutter(SampleView(dataset="train", rendering=RENDERING, plan=plan), FORMAT, TENANT)
    with pytest.raises(NotReady, match="still being indexed"):
        DataSets({"train": str(images)}).cutter(view(), FORMAT, TENANT)
    data_sets.close()


@on_loop
async def test_an_index_is_kept_between_starts_and_a_bad_folder_for_it_stops_nothing(images, tmp_path, caplog):
    (await served(images, tmp_path / "cache")).close()
    (kept,) = (tmp_path / "cache").iterdir()
    written = kept.stat().st_mtime_ns
    (await served(images, tmp_path / "cache")).close()
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [kept.name]
    assert kept.stat().st_mtime_ns >= written
    (tmp_path / "file").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        (await served(images, tmp_path / "file")).close()
    assert "cannot be kept" in caplog.text
    kept.write_bytes(b"damaged")
    (await served(images, tmp_path / "cache")).close()
    with pytest.raises(BadDataSet, match="no data set at"):
        await served(tmp_path / "absent", tmp_path)


@on_loop
async def test_a_server_that_ends_waits_for_no_index(images, tmp_path, monkeypatch):
    monkeypatch.setattr(sample_index, "_ROWS_AT_ONCE", 1)
    data_sets = DataSets({"train": str(images)}, cache=tmp_path / "cache", threads=1)
    real = sample_index.image_size
    seen = []

    def slow(data, name, **how):
        seen.append(name)
        data_sets.close()
        return real(data, name)

    monkeypatch.setattr(sample_index, "image_size", slow)
    with pytest.raises(GoingAway, match="'train' was not indexed"):
        await data_sets.start()
    assert not (tmp_path / "cache").exists()


@on_loop
async def test_a_slice_that_is_withdrawn_cuts_nothing_more(images, tmp_path, monkeypatch):
    references, _, _ = views_of(images)
    data_sets = await served(images, tmp_path)
    cutter = data_sets.cutter(view(), FORMAT, TENANT)
    cutter.pool = ThreadPoolExecutor(1)
    crops = await cutter.find(references.pack(), 18, "view", "none", 0)
    decoded, going_on = [], asyncio.Event()
    loop, real = asyncio.get_running_loop(), referenced_crops.decode

    def slow(data, name, **how):
        decoded.append(name)
        asyncio.run_coroutine_threadsafe(going_on.wait(), loop).result()
        return real(data, name, **how)

    monkeypatch.setattr(referenced_crops, "decode", slow)
    task = asyncio.ensure_future(crops.render(range(18)))
    while not decoded:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    going_on.set()
    cutter.pool.shutdown(wait=False)
    await loop.run_in_executor(None, cutter.pool.shutdown)
    assert len(decoded) <= 2
    data_sets.close()
