import io
import logging
import pickle
import random
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset, default_collate
from torchvision.datasets import ImageFolder

from teacherfarm.crops.crop_plan import CropPlan, sample_number
from teacherfarm.crops.cutting import cut, decode
from teacherfarm.crops.view_schedule import ViewSchedule
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.faults import UnreadableImage
from teacherfarm.student import crop_collate, image_sources
from teacherfarm.student.crop_dataset import CropDataset, collate_crops

TEACHER = Rendering(height=24, width=20, interpolation="bicubic")
STUDENT = Rendering(height=16, width=16, interpolation="area")


def picture(number, height=40, width=60):
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(pixels, image_format="JPEG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    for number, name in enumerate(["dog/b.jpg", "cat/10.png", "cat/2.JPEG", "dog/deep/a.jpg", "cat/notes.txt"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(number), "PNG" if name.endswith("png") else "JPEG"))
    (root / "empty").mkdir()
    return root


def same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        if name == "keys":
            assert first[name] == second[name]
        else:
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


def test_an_item_is_m_crops_of_one_image_by_plan_and_schedule(folder):
    plan, schedule = CropPlan(seed=3), ViewSchedule(per_visit=3)
    dataset = CropDataset(folder, teacher_rendering=TEACHER, student_rendering=STUDENT, plan=plan, schedule=schedule)
    dataset.set_epoch(2)
    item = dataset[1]
    pixels = decode((folder / "cat/2.JPEG").read_bytes())
    boxes = plan.boxes([sample_number("cat/2")], [6, 7, 8], 40, 60)
    np.testing.assert_array_equal(item["crops"].numpy(), cut(pixels, boxes, TEACHER))
    np.testing.assert_array_equal(item["images"].numpy(), cut(pixels, boxes, STUDENT))
    assert item["views"].tolist() == [6, 7, 8]
    assert item["samples"].tolist() == [1, 1, 1]
    assert item["targets"].tolist() == [0, 0, 0]
    assert item["weight"].tolist() == [1, 1, 1]
    assert len({item["keys"][at : at + 16] for at in (0, 16, 32)}) == 3


def test_a_batch_lies_crop_by_crop(folder):
    dataset = CropDataset(folder, teacher_rendering=TEACHER, schedule=ViewSchedule(per_visit=2))
    items = [dataset[index] for index in range(4)]
    (batch,) = DataLoader(dataset, batch_size=4, collate_fn=collate_crops)
    assert batch["crops"].shape == (8, 24, 20, 3)
    assert batch["samples"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert batch["views"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert batch["targets"].tolist() == [0, 0, 1, 1] * 2
    for row in range(8):
        item, crop = items[row % 4], row // 4
        assert torch.equal(batch["crops"][row], item["crops"][crop])
        assert batch["keys"][16 * row : 16 * row + 16] == item["keys"][16 * crop : 16 * crop + 16]
    same(collate_crops(items), batch)


def test_equal_renderings_are_cut_once_and_shared(folder, monkeypatch):
    dataset = CropDataset(folder, teacher_rendering=TEACHER, schedule=ViewSchedule(per_visit=4))
    decoded = []
    monkeypatch.setattr(
        image_sources, "decode", lambda data, name, **how: decoded.append(name) or decode(data, name, **how)
    )
    batch = collate_crops(dataset.__getitems__([0, 2]))
    assert batch["images"] is batch["crops"]
    assert collate_crops([dataset[0], dataset[2]])["images"].shape == (8, 24, 20, 3)
    assert decoded == ["cat/10", "dog/b"] * 2


def test_other_loaders_may_collate_by_themselves(folder):
    dataset = CropDataset(folder, teacher_rendering=TEACHER, schedule=ViewSchedule(per_visit=2))
    batch = default_collate(dataset.__getitems__([0, 3]))
    assert batch["crops"].shape == (2, 2, 24, 20, 3)
    assert torch.equal(batch["crops"][1], dataset[3]["crops"])
    assert [item["samples"][0].item() for item in dataset.__getitems__([2, 1, 0])[1:]] == [1, 0]


def test_a_worker_cuts_into_memory_that_it_shares(folder, monkeypatch):
    dataset = CropDataset(folder, teacher_rendering=TEACHER, student_rendering=STUDENT)
    here = collate_crops(dataset.__getitems__([0, 1]))
    assert not here["crops"].is_shared()
    monkeypatch.setattr(crop_collate, "get_worker_info", lambda: "a worker")
    there = collate_crops(dataset.__getitems__([0, 1]))
    assert there["crops"].is_shared()
    assert there["images"].is_shared()
    same(there, here)


def test_of_a_workers_batch_only_the_pixels_need_a_file_descriptor(folder, monkeypatch):
    dataset = CropDataset(folder, teacher_rendering=TEACHER, schedule=ViewSchedule(per_visit=2))
    here = collate_crops(dataset.__getitems__([0, 1, 2]))
    monkeypatch.setattr(crop_collate, "get_worker_info", lambda: "a worker")
    for there in (
        collate_crops(dataset.__getitems__([0, 1, 2])),
        collate_crops([dataset[index] for index in (0, 1, 2)]),
    ):
        sent = bytes(ForkingPickler.dumps(there))
        assert sent.count(b"rebuild_storage") == 1
        received = pickle.loads(sent)
        assert type(received) is dict
        same(received, here)
        assert received["images"] is received["crops"]


def test_what_a_collate_of_ones_own_adds_is_left_as_it_is(folder, monkeypatch):
    monkeypatch.setattr(crop_collate, "get_worker_info", lambda: "a worker")
    batch = collate_crops(CropDataset(folder, teacher_rendering=TEACHER).__getitems__([0, 1]))
    batch |= {"half": torch.ones(2, dtype=torch.bfloat16), "array": np.arange(3), "long": torch.zeros(2, 10_000)}
    received = pickle.loads(bytes(ForkingPickler.dumps(batch)))
    assert received["half"].dtype == torch.bfloat16
    assert type(received["array"]) is np.ndarray
    assert received["long"].is_shared()
    assert not received["targets"].is_shared()


def test_the_order_of_files_is_that_of_torchvision(folder):
    (folder / "empty").rmdir()
    theirs = ImageFolder(folder)
    ours = CropDataset(folder, teacher_rendering=TEACHER)
    names = [ours.source.name(index) for index in range(len(ours))]
    assert names == [path.removeprefix(f"{folder}/").rpartition(".")[0] for path, _ in theirs.samples]
    assert [ours.source.target(index) for index in range(len(ours))] == theirs.targets


def test_an_image_folder_and_its_subset_keep_names_and_crops(folder):
    (folder / "empty").rmdir()
    whole = CropDataset(folder, teacher_rendering=TEACHER)
    by_torchvision = CropDataset(ImageFolder(folder), teacher_rendering=TEACHER)
    same(by_torchvision[3], whole[3])
    subset = CropDataset(Subset(ImageFolder(folder), [3, 1]), teacher_rendering=TEACHER)
    assert len(subset) == 2
    assert subset.source.name(0) == "dog/deep/a"
    same(subset[0] | {"samples": whole[3]["samples"]}, whole[3])
    same(next(iter(DataLoader(Subset(whole, [3]), collate_fn=collate_crops))), whole[3])


def test_any_sequence_of_images_will_do(folder, tmp_path):
    pixels = picture(7)
    png = encoded(pixels, "PNG")
    (tmp_path / "one.png").write_bytes(png)
    kinds = [
        (pixels, 5),
        (Image.fromarray(pixels), torch.tensor(5)),
        (png, np.int64(5)),
        (tmp_path / "one.png", 5),
        (str(tmp_path / "one.png"), 5),
        {"image": Image.fromarray(pixels), "label": 5},
        {"name": "as CIFAR's columns", "fine_label": 5, "img": png},
    ]
    # Boxes depend on the name, here the index: each kind stands at the same one.
    items = [CropDataset([kind], teacher_rendering=TEACHER)[0] for kind in kinds]
    for item in items:
        assert item["targets"].tolist() == [5]
        assert torch.equal(item["crops"], items[0]["crops"])
    grey = CropDataset([picture(1)[:, :, 0]], teacher_rendering=TEACHER)[0]
    assert torch.equal(grey["crops"][..., 0], grey["crops"][..., 2])
    assert grey["targets"].tolist() == [image_sources.NO_TARGET]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ((torch.zeros(3, 8, 8), 0), r"Tensor of torch.float32 \[3, 8, 8\].*student_transform"),
        ((np.zeros((8, 8, 3), np.float32), 0), r"ndarray of float32 \[8, 8, 3\]"),
        ((picture(0), "cat"), "class number"),
        ({"photo": picture(0)}, "columns photo; expected one of image, img"),
    ],
)
def test_what_is_no_image_is_refused_with_advice(item, words):
    with pytest.raises(ValueError, match=words):
        CropDataset([item], teacher_rendering=TEACHER)[0]


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no images in"):
        CropDataset(tmp_path, teacher_rendering=TEACHER)
    with pytest.raises(ValueError, match=r"no data set at .*one folder per class"):
        CropDataset(tmp_path / "missing", teacher_rendering=TEACHER)
    with pytest.raises(ValueError, match="images by index"):
        CropDataset(iter([]), teacher_rendering=TEACHER)
    with pytest.raises(ValueError, match="on_unreadable"):
        CropDataset([picture(0)], teacher_rendering=TEACHER, on_unreadable="ignore")


@pytest.mark.parametrize("damage", [b"", b"no image", encoded(picture(0))[:-500]])
def test_an_unreadable_image_is_raised_or_skipped_with_weight_zero(folder, damage, caplog):
    (folder / "cat/2.JPEG").write_bytes(damage)
    schedule = ViewSchedule(per_visit=2)
    strict = CropDataset(folder, teacher_rendering=TEACHER, schedule=schedule)
    with pytest.raises(UnreadableImage, match="cat/2"):
        strict[1]
    lenient = CropDataset(
        folder, teacher_rendering=TEACHER, student_rendering=STUDENT, schedule=schedule, on_unreadable="skip"
    )
    with caplog.at_level(logging.WARNING):
        batch = collate_crops(lenient.__getitems__([0, 1, 2]))
        lenient.__getitems__([1])
    assert batch["weight"].tolist() == [1, 0, 1, 1, 0, 1]
    assert batch["targets"].tolist() == [0, 0, 1] * 2
    for name in ("crops", "images"):
        assert not batch[name][[1, 4]].any()
        assert batch[name][[0, 2]].any()
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "cat/2:" in warnings[0]
    assert torch.equal(batch["crops"][0], strict[0]["crops"][0])


def test_a_data_set_that_fails_to_open_its_image_counts_as_unreadable():
    class Broken:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise OSError("image file is truncated")

    with pytest.raises(UnreadableImage, match="image 0 of Broken: image file is truncated"):
        CropDataset(Broken(), teacher_rendering=TEACHER)[0]
    item = CropDataset(Broken(), teacher_rendering=TEACHER, on_unreadable="skip")[0]
    assert item["weight"].tolist() == [0]
    assert item["targets"].tolist() == [image_sources.NO_TARGET]


def test_keys_name_content_box_and_rendering(tmp_path):
    def key(pixels, **settings):
        return CropDataset([pixels], **({"teacher_rendering": TEACHER} | settings))[0]["keys"]

    assert key(picture(1)) == key(picture(1))
    assert key(encoded(picture(1))) == key(encoded(picture(1)))
    # Two data sets have an image of the same name: another image is another crop.
    assert key(picture(1)) != key(picture(2))
    assert key(picture(1)) != key(picture(1).reshape(60, 40, 3))
    assert key(picture(1)) != key(picture(1), plan=CropPlan(seed=1))
    assert key(picture(1)) != key(picture(1), teacher_rendering=STUDENT)
    assert key(picture(1)) == key(picture(1), student_rendering=STUDENT)


def noisy(image):
    """Draws from all three generators that augmentations use."""
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float()
    return pixels * torch.rand(1) + random.random() + float(np.random.rand())


def test_the_students_transform_draws_by_sample_and_view_alone(folder):
    dataset = CropDataset(
        folder, teacher_rendering=TEACHER, schedule=ViewSchedule(per_visit=2), student_transform=noisy
    )
    torch.manual_seed(0)
    state = torch.get_rng_state()
    batch = collate_crops(dataset.__getitems__([0, 1, 2]))
    assert torch.equal(torch.get_rng_state(), state)
    assert batch["images"].shape == (6, 3, 24, 20)
    assert batch["crops"].dtype == torch.uint8
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    again = collate_crops([dataset[2], dataset[1]])
    assert torch.equal(again["images"], batch["images"][[2, 1, 5, 4]])
    dataset.set_epoch(1)
    assert not torch.equal(dataset[0]["images"], batch["images"][[0, 3]])
    small = CropDataset(folder, teacher_rendering=TEACHER, student_rendering=STUDENT, student_transform=noisy)
    assert small[0]["images"].shape == (1, 3, 16, 16)


def test_a_transform_that_gives_no_tensor_or_changing_shapes_is_refused(folder):
    dataset = CropDataset(folder, teacher_rendering=TEACHER, student_transform=lambda image: image)
    with pytest.raises(ValueError, match="must return a tensor"):
        dataset[0]
    sizes = iter([3, 4])
    changing = CropDataset(folder, teacher_rendering=TEACHER, student_transform=lambda image: torch.zeros(next(sizes)))
    with pytest.raises(ValueError, match="one shape for all crops"):
        changing.__getitems__([0, 1])


def test_few_replayed_views_are_warned_about(folder):
    with pytest.warns(UserWarning, match="10 views per sample"):
        CropDataset(folder, teacher_rendering=TEACHER, schedule=ViewSchedule(views=10, order="cycle"))


def test_it_survives_pickling(folder):
    dataset = CropDataset(folder, teacher_rendering=TEACHER, schedule=ViewSchedule(per_visit=2))
    dataset.set_epoch(3)
    same(pickle.loads(pickle.dumps(dataset))[2], dataset[2])
    assert "pass 3" in repr(dataset)
    with pytest.raises(ValueError, match="counted from 0"):
        dataset.set_epoch(-1)
