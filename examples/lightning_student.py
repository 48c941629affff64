"""A student in Lightning, taught by a farm. DATA holds train/ and val/ with a folder for each class.

    teacherfarm serve models/
    python examples/lightning_student.py DATA --farm zmq://127.0.0.1:7001 --student torchvision:resnet18 --devices 2

Needs pip install 'teacherfarm[lightning]'. --resume goes on from the last checkpoint, inside an epoch too.
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from teacherfarm.student.image_sources import SampleImages
from teacherfarm.student.integrations.distillation import connect
from teacherfarm.student.integrations.lightning import DistillationData, DistillationModule
from teacherfarm.student.recipes.students import make_student


def main() -> None:
    options = parse()
    seed_everything(0)
    train, val = SampleImages(options.data / "train"), SampleImages(options.data / "val")
    with connect(
        options.farm,
        student=lambda num_classes: make_student(options.student, num_classes),
        method=options.method,
        classes=train.classes,
        num_samples=len(train),
        batch_size=options.batch_size * options.devices,
        epochs=options.epochs,
    ) as distillation:
        module = DistillationModule(distillation, lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9))
        data = DistillationData(
            distillation,
            distillation.crops(train),
            distillation.center_crops(val),
            batch_size=options.batch_size,
            num_workers=options.workers,
        )
        trainer = Trainer(
            max_epochs=options.epochs,
            max_steps=options.steps,
            accelerator="auto",
            devices=options.devices,
            strategy="ddp" if options.devices > 1 else "auto",
            default_root_dir=options.out,
            callbacks=[ModelCheckpoint(options.out, save_last=True, every_n_train_steps=options.save_steps)],
            log_every_n_steps=10,
        )
        trainer.fit(module, data, ckpt_path=options.out / "last.ckpt" if options.resume else None)
        if trainer.is_global_zero:
            distillation.save(options.out, options.student)
            print(f"val_top1 {trainer.callback_metrics['val_top1']:.3f}, waited {trainer.train_dataloader.stall:.1%}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--farm", required=True, metavar="ADDRESS")
    parser.add_argument("--student", default="torchvision:resnet18")
    parser.add_argument("--method", default="kd")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many")
    parser.add_argument("--save-steps", type=int, default=None, help="write a checkpoint every so many steps")
    parser.add_argument("--batch-size", type=int, default=64, help="images of one process")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
