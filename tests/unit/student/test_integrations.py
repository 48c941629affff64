import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from teacherfarm.student.image_sources import SampleImages
from teacherfarm.student.integrations.distillation import connect
from teacherfarm.student.losses import NO_TARGET, hard_cross_entropy, kd_divergence
from teacherfarm.student.methods.method import MethodMismatch
from tests.tiny_teacher import CLASSES, tiny_net
from tests.unit.student.image_folders import write_images

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations inside the libraries
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return SampleImages(write_images(tmp_path_factory.mktemp("images") / "train", CLASSES, 2))


@pytest.fixture
def distil(tiny_models):
    """``distil(**options)``: connected to the tiny teacher in this process, closed in the end."""
    made = []

    def make(**options):
        options.setdefault("student", tiny_net(seed=1))
        made.append(connect(f"local://{tiny_models}", **options))
        return made[-1]

    yield make
    for one in made:
        one.teacher.close()


def first(distillation, images, batch_size=8, **options):
    loader = DataLoader(distillation.crops(images, **options), batch_size, collate_fn=distillation.collate())
    return next(iter(distillation.labelled(loader)))


def test_the_loss_is_the_methods_own(distil, images):
    student = tiny_net(seed=1)
    distillation = distil(student=student, settings={"temperature": 2.0, "hard_weight": 0.5})
    batch, labels = first(distillation, images)
    pixels = distillation.pixels(batch)
    parts = distillation.distiller(pixels, distillation.step(batch, labels))
    logits = student(pixels)
    assert float(parts["kd"]) == pytest.approx(float(kd_divergence(logits, labels, 2.0, t_squared=True)), rel=1e-5)
    assert float(parts["ce"]) == pytest.approx(0.5 * float(hard_cross_entropy(logits, batch["targets"])), rel=1e-5)


def test_crops_are_cut_as_the_card_says_and_for_both(distil, images):
    distillation = distil(student_size=24, crops_per_image=3)
    batch, labels = first(distillation, images, batch_size=2)
    assert batch["crops"].shape == (6, 32, 32, 3)
    assert batch["images"].shape == (6, 24, 24, 3)
    assert len(labels) == 6
    assert distillation.pixels(batch).shape == (6, 3, 24, 24)
    assert distillation.crops(images).plan.scale == distillation.card.crop_scale
    centre = distillation.center_crops(images)[0]
    assert centre["crops"].shape == (32, 32, 3)
    assert centre["images"].shape == (24, 24, 3)


def test_classes_are_matched_by_their_names(distil, images):
    # Folders are in the order of their names, the teacher's classes are not.
    distillation = distil(classes=images.classes)
    assert [CLASSES[number] for number in distillation.class_numbers] == list(images.classes)
    batch, _ = first(distillation, images)
    assert [CLASSES[number] for number in distillation.targets(batch)] == [
        images.classes[number] for number in batch["targets"]
    ]
    batch["weight"][0] = 0
    batch["targets"][1] = NO_TARGET
    assert distillation.targets(batch).tolist()[:2] == [NO_TARGET, NO_TARGET]


def test_a_class_that_the_teacher_does_not_know(distil):
    with pytest.raises(MethodMismatch, match=r"learns from the data's own classes, too: .*not matched: zebra"):
        distil(classes=("car", "zebra"))
    without = distil(classes=("car", "zebra"), settings={"hard_weight": 0.0})
    assert without.class_numbers == (CLASSES.index("car"), NO_TARGET)


def test_mistakes_are_named(distil):
    with pytest.raises(ValueError, match="did you mean 'dkd'"):
        distil(method="dkt")
    with pytest.raises(ValueError, match="method kd has no setting 'beta'; it has temperature"):
        distil(settings={"beta": 1})
    with pytest.raises(MethodMismatch, match="no feature maps are known of this student"):
        distil(method="fitnet")
    with pytest.raises(MethodMismatch, match="3 classes and the teacher 'tiny' 10"):
        distil(student=tiny_net(classes=3), method="dkd")


def test_crops_are_mixed_as_the_method_wants(distil, images):
    distillation = distil(method="funmatch")
    batch, labels = first(distillation, images)
    assert "mix" in batch
    step = distillation.step(batch, labels, epoch=0.5)
    assert step.mix is batch["mix"]
    assert step.epoch == 0.5
    assert torch.isfinite(sum(distillation.distiller(distillation.pixels(batch), step).values()))


def test_the_teachers_classifier_comes_along(distil, tiny_models):
    distillation = distil(method="srrl")
    head = distillation.distiller.method.setup.head
    np.testing.assert_allclose(head.weight.numpy(), tiny_net(seed=5).head.weight.detach().numpy(), rtol=1e-6)


def test_a_student_of_vectors(images, tmp_path):
    from teacherfarm.export import export_teacher
    from teacherfarm.student.integrations.lightning import DistillationModule

    export_teacher("tests.tiny_tokens:make", tmp_path)
    made = []

    def make(length):
        made.append(tiny_net(classes=length))
        return made[0]

    with connect(f"local://{tmp_path}", student=make, method="embedding") as distillation:
        assert made[0].head.out_features == 16
        batch, labels = first(distillation, images)
        parts = distillation.distiller(distillation.pixels(batch), distillation.step(batch, labels))
        assert torch.isfinite(sum(parts.values()))
        module = DistillationModule(distillation, torch.optim.SGD)
        assert module.validation_step(next(iter(DataLoader(distillation.center_crops(images), 4))), 0) is None


def test_accumulation_that_ends_with_a_loader_is_refused(distil, images):
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    from teacherfarm.student.integrations.accelerate import prepare, step_loss

    distillation = distil()
    optimizer = torch.optim.SGD(distillation.distiller.parameters(), lr=0.1)
    loader = DataLoader(distillation.crops(images), 4, collate_fn=distillation.collate())
    with pytest.raises(ValueError, match=r"num_steps=2, sync_with_dataloader=False"):
        prepare(Accelerator(cpu=True, gradient_accumulation_steps=2), distillation, optimizer, loader)

    plugin = GradientAccumulationPlugin(num_steps=2, sync_with_dataloader=False)
    accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=plugin)
    model, optimizer, labelled = prepare(accelerator, distillation, optimizer, loader)
    stepped = []
    for batch, labels in labelled:
        before = next(model.parameters()).detach().clone()
        with accelerator.accumulate(model):
            accelerator.backward(step_loss(accelerator, distillation, model, batch, labels))
            optimizer.step()
            optimizer.zero_grad()
        stepped.append(not torch.equal(before, next(model.parameters())))
    assert stepped == [False, True, False, True, False]


def test_processes_that_do_not_know_of_each_other_are_refused(distil, images, tmp_path, monkeypatch):
    from accelerate import Accelerator
    from transformers import TrainingArguments

    from teacherfarm.student.integrations.accelerate import prepare
    from teacherfarm.student.integrations.lightning import DistillationData
    from teacherfarm.student.integrations.transformers import DistillationTrainer

    distillation, arguments = distil(), TrainingArguments(str(tmp_path), use_cpu=True, remove_unused_columns=False)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(distillation.distiller.parameters(), lr=0.1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for start in (
        lambda: prepare(accelerator, distillation, optimizer, DataLoader(images)),
        lambda: DistillationTrainer(distillation, arguments),
        lambda: DistillationData(distillation, images, batch_size=2).train_dataloader(),
    ):
        with pytest.raises(ValueError, match="2 processes were started and the trainer knows of 1"):
            start()


def test_a_trainer_that_would_drop_the_crops_is_refused(distil, tmp_path):
    from transformers import TrainingArguments

    from teacherfarm.student.integrations.transformers import DistillationTrainer

    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        DistillationTrainer(distil(), TrainingArguments(str(tmp_path), use_cpu=True))


def trained(task, distillation, images, steps=2):
    optimizer = torch.optim.SGD(task.get_clip_parameters(), lr=0.1)
    for _ in range(steps):
        batch, labels = first(distillation, images)
        result = task(distillation.pixels(batch), distillation.step(batch, labels))
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        task.update_ema()
    return result


def test_a_timm_task_trains_and_evaluates(distil, images):
    from teacherfarm.student.integrations.timm import FarmTask

    student = tiny_net(seed=1)
    distillation = distil(student=student)
    task = FarmTask(distillation)
    before = student.head.weight.detach().clone()
    result = trained(task, distillation, images)
    assert set(result) == {"loss", "kd", "ce"}
    assert float(result["loss"]) == pytest.approx(float(result["kd"] + result["ce"]))
    assert not torch.equal(before, student.head.weight)
    pixels = torch.randn(3, 3, 32, 32)
    task.eval()
    torch.testing.assert_close(task.get_eval_model()(pixels), student(pixels))
    assert task.get_eval_model(ema=True) is None
    last = {id(parameter) for parameter in student.head.parameters()}
    clipped = {id(parameter) for parameter in task.get_clip_parameters(exclude_head=True)}
    assert last
    assert not last & clipped
    assert clipped | last == {id(parameter) for parameter in task.get_clip_parameters()}


def test_a_timm_tasks_checkpoint_is_the_students_and_the_methods(distil, images):
    from teacherfarm.student.integrations.timm import FarmTask

    distillation = distil(method="srrl")
    task = FarmTask(distillation)
    task.setup_ema(decay=0.5)
    trained(task, distillation, images)
    state = {**task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True)}
    assert state["state_dict"].keys() == tiny_net().state_dict().keys()
    assert state["task_state"].keys() == distillation.distiller.method.state_dict().keys()
    assert not torch.equal(state["state_dict"]["head.weight"], state["state_dict_ema"]["head.weight"])

    other = FarmTask(distil(student=tiny_net(seed=9), method="srrl"))
    other.setup_ema(decay=0.5)
    other.load_checkpoint_state(state["state_dict"], state["task_state"])
    other.load_checkpoint_state(state["state_dict_ema"], state["task_state_ema"], ema=True)
    pixels = torch.randn(3, 3, 32, 32)
    for ema in (False, True):
        torch.testing.assert_close(
            other.get_eval_model(ema=ema).eval()(pixels), task.get_eval_model(ema=ema).eval()(pixels)
        )
