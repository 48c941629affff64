"""A run cut off inside an epoch, or between two, goes on in Lightning and in transformers as if it never was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from teacherfarm.student.image_sources import SampleImages
from teacherfarm.student.integrations.distillation import connect
from teacherfarm.student.methods.distiller import Distiller
from tests.tiny_teacher import CLASSES, tiny_net
from tests.unit.student.image_folders import write_images

# Deprecations of what is imported are its own business.
pytestmark = pytest.mark.filterwarnings("ignore")
BATCH, STEPS_PER_EPOCH = 8, 5


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return SampleImages(write_images(tmp_path_factory.mktemp("images") / "train", CLASSES, 4))


@pytest.fixture
def trained(monkeypatch):
    """What distillers are trained with, step by step: samples, epoch, loss."""
    steps = []
    forward = Distiller.forward

    def watched(self, pixels, step):
        parts = forward(self, pixels, step)
        steps.append((step.samples.tolist(), round(step.epoch, 4), float(sum(parts.values()))))
        return parts

    monkeypatch.setattr(Distiller, "forward", watched)
    return steps


def taught(models, images, fit):
    """The student's weights after ``fit(distillation, crops)``."""
    torch.manual_seed(0)
    student = tiny_net(seed=1).train()
    with connect(f"local://{models}", student=student, num_samples=len(images), batch_size=BATCH) as distillation:
        fit(distillation, distillation.crops(images))
    return nn.utils.parameters_to_vector(student.parameters()).detach().clone()


def with_lightning(folder, **limits):
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from teacherfarm.student.integrations.lightning import DistillationData, DistillationModule

    resumed = limits.pop("resumed", None)

    def fit(distillation, crops):
        module = DistillationModule(distillation, lambda each: torch.optim.SGD(each, lr=0.05, momentum=0.9))
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        saved = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)
        trainer = Trainer(accelerator="cpu", callbacks=[saved], default_root_dir=folder, **limits, **quiet)
        trainer.fit(module, DistillationData(distillation, crops, batch_size=BATCH), ckpt_path=resumed)

    return fit


def with_transformers(folder, **limits):
    from transformers import TrainingArguments

    from teacherfarm.student.integrations.transformers import DistillationTrainer

    resumed = limits.pop("resumed", None)
    epochs, steps = limits.get("max_epochs", 2), limits.get("max_steps", -1)

    def fit(distillation, crops):
        arguments = TrainingArguments(
            str(folder),
            num_train_epochs=epochs,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=0.05,
            optim="sgd",
            optim_args="momentum=0.9",
            lr_scheduler_type="constant",
            remove_unused_columns=False,
            save_strategy="steps",
            save_steps=1,
            save_total_limit=1,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = DistillationTrainer(distillation, arguments, train_dataset=crops)
        trainer.train(resume_from_checkpoint=resumed is not None)

    return fit


@pytest.mark.parametrize("stopped_after", [3, STEPS_PER_EPOCH])
@pytest.mark.parametrize("trainer", [with_lightning, with_transformers])
def test_a_resumed_run_is_the_same(trainer, stopped_after, tiny_models, images, trained, tmp_path):
    whole = taught(tiny_models, images, trainer(tmp_path / "whole", max_epochs=2))
    straight = list(trained)
    assert len(straight) == 2 * STEPS_PER_EPOCH
    assert [step[1] for step in straight] == pytest.approx([number / STEPS_PER_EPOCH for number in range(10)])
    trained.clear()
    cut = tmp_path / "cut"
    taught(tiny_models, images, trainer(cut, max_epochs=2, max_steps=stopped_after))
    assert len(trained) == stopped_after
    resumed = taught(tiny_models, images, trainer(cut, max_epochs=2, resumed=cut / "last.ckpt"))
    assert trained == straight
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
