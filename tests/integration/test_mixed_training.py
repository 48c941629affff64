"""FKD, FerKD and consistent teaching on mixed crops with a served teacher: streamed, recorded, by reference."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.crops.view_schedule import ViewSchedule
from teacherfarm.label_store.recorded_labels import RecordedLabels
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student import TeacherClient
from teacherfarm.student.crop_dataset import CropDataset
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.methods.distiller import Distiller
from teacherfarm.student.methods.ferkd import FerKD, FerKDSettings
from teacherfarm.student.methods.fkd import FKD, FKDSettings
from teacherfarm.student.methods.funmatch import FunMatch, FunMatchSettings
from teacherfarm.student.methods.method import Setup, Step
from teacherfarm.student.methods.student_taps import TappedStudent
from teacherfarm.student.mixed_crops import MixedCrops
from teacherfarm.student.pixels import to_student
from teacherfarm.student.recorded_teacher import RecordedTeacher
from teacherfarm.student.recording_teacher import RecordingTeacher
from tests.farm_process import FarmProcess
from tests.methods import tiny_student
from tests.tiny_teacher import CLASSES, MEAN, STD
from tests.unit.student.image_folders import write_images

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.*views per sample are replayed")

RENDERING = Rendering(height=32, width=32, interpolation="bilinear")
PER_VISIT, EPOCHS = 2, 3


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, CLASSES[:4], 3)
    return folder


def make_dataset(images, schedule=None, **options):
    schedule = schedule or ViewSchedule(views=4, order="permute", per_visit=PER_VISIT)
    return CropDataset(
        images,
        teacher_rendering=RENDERING,
        student_rendering=Rendering(height=24, width=16),
        plan=CropPlan(seed=3),
        schedule=schedule,
        **options,
    )


def make_method(kind, settings, card, dataset):
    student = TappedStudent(tiny_student())
    setup = Setup(
        card=card,
        student=student.measure(24, 16),
        num_samples=len(dataset),
        batch_size=4 * PER_VISIT,
        crops_per_image=PER_VISIT,
    )
    return Distiller(student, kind(settings, setup)), kind.asks(settings, setup)


def train(dataset, teacher, kind, settings, *, card):
    """The loss of every step."""
    distiller, asks = make_method(kind, settings, card, dataset)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    loader = LabelledLoader(
        DataLoader(dataset, batch_size=4, collate_fn=MixedCrops(asks.mixing, asks.draw, seed=2)),
        teacher,
        lambda batch: batch["crops"],
        keys=lambda batch: batch["keys"],
        samples=lambda batch: batch["samples"],
        views=lambda batch: batch["views"],
        weight_view=lambda batch: batch["weight"],
    )
    losses = []
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        for batch, labels in loader:
            step = Step(labels=labels, targets=batch["targets"], samples=batch["samples"], mix=batch.get("mix"))
            loss = sum(distiller(to_student(batch["images"], MEAN, STD), step).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert len(losses) == EPOCHS * 3
    assert len(set(losses)) == len(losses)
    return losses


METHODS = {
    "fkd": (FKD, FKDSettings(mix="fkd")),
    "fkd-dense": (FKD, FKDSettings(form="full", mix="cutmix")),
    "ferkd-absolute": (FerKD, FerKDSettings(thresholds="absolute", low=0.3, middle=0.6, high=0.999, mix="selfmix")),
    "ferkd-quantile": (FerKD, FerKDSettings(low=0.1, middle=0.4, high=0.9, history=4, mix="selfmix-mixup")),
}


@pytest.mark.parametrize("name", METHODS)
def test_recorded_labels_train_like_streamed_ones(images, tiny_farm, wire, tmp_path, name):
    kind, settings = METHODS[name]
    dataset = make_dataset(images)
    with TeacherClient(tiny_farm.addresses[wire]) as teacher:
        card = teacher.card
    _, asks = make_method(kind, settings, card, dataset)
    with (
        TeacherClient(tiny_farm.addresses[wire], spec=asks.spec) as teacher,
        RecordingTeacher(teacher, dataset, tmp_path / "labels") as recording,
    ):
        streamed = train(dataset, recording, kind, settings, card=card)
    again = RecordedTeacher(RecordedLabels.open(str(tmp_path / "labels")), dataset)
    assert train(dataset, again, kind, settings, card=card) == streamed
    assert again.missing == 0


def test_dense_records_train_a_method_of_five_classes(images, tiny_farm, tmp_path):
    """What holds more than is asked is cut down: the same losses, but for the rounding of what was recorded."""
    kind, settings = METHODS["fkd"]
    dataset = make_dataset(images)
    with TeacherClient(tiny_farm.zmq) as teacher:
        card = teacher.card
        with RecordingTeacher(teacher, dataset, tmp_path / "dense") as recording:
            train(dataset, recording, *METHODS["fkd-dense"], card=card)
    with TeacherClient(tiny_farm.zmq, spec=LabelSpec(outputs=("labels",), top_k=5)) as teacher:
        streamed = train(dataset, teacher, kind, settings, card=card)
    dense = RecordedTeacher(RecordedLabels.open(str(tmp_path / "dense")), dataset)
    assert train(dataset, dense, kind, settings, card=card) == pytest.approx(streamed, rel=2e-3)


def test_a_teacher_that_sees_the_mix_may_cut_it_itself(images, tiny_models, wire, tmp_path):
    """Pixels mixed here and references mixed there are the same crops: the same losses."""
    flags = ("--dataset", f"train={images}", "--dataset-cache", tmp_path / "indexes")
    fresh = ViewSchedule(per_visit=PER_VISIT)
    runs = []
    with FarmProcess(tmp_path, tiny_models, *flags) as farm:
        for named in ("", "train"):
            dataset = make_dataset(images, fresh, by_reference=named)
            by_reference = dataset.references() if named else None
            with TeacherClient(farm.addresses[wire], by_reference=by_reference) as teacher:
                runs.append(train(dataset, teacher, FunMatch, FunMatchSettings(), card=teacher.card))
    assert runs[0] == runs[1]
