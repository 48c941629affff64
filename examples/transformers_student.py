"""A student in Hugging Face's Trainer, taught by a farm. DATA holds train/ and val/ with a folder for each class.

    teacherfarm serve models/
    torchrun --nproc-per-node 2 examples/transformers_student.py DATA --farm zmq://127.0.0.1:7001

Needs pip install 'teacherfarm[transformers]'. --resume goes on from the last checkpoint, inside an epoch too.
"""

import argparse
from pathlib import Path

from transformers import TrainingArguments, set_seed

from teacherfarm.student.image_sources import SampleImages
from teacherfarm.student.integrations.distillation import connect
from teacherfarm.student.integrations.transformers import DistillationTrainer
from teacherfarm.student.recipes.students import make_student


def main() -> None:
    options = parse()
    set_seed(0)
    arguments = TrainingArguments(
        str(options.out),
        num_train_epochs=options.epochs,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        learning_rate=0.05,
        optim="sgd",
        optim_args="momentum=0.9",
        lr_scheduler_type="constant",
        dataloader_num_workers=options.workers,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        eval_strategy="epoch",
        save_strategy="steps" if options.save_steps else "epoch",
        save_steps=options.save_steps or 500,
        logging_steps=10,
        report_to="none",
        ddp_find_unused_parameters=False,
    )
    train, val = SampleImages(options.data / "train"), SampleImages(options.data / "val")
    with connect(
        options.farm,
        student=lambda num_classes: make_student(options.student, num_classes),
        method=options.method,
        classes=train.classes,
        num_samples=len(train),
        batch_size=options.batch_size * arguments.world_size,
        epochs=options.epochs,
    ) as distillation:
        trainer = DistillationTrainer(
            distillation,
            arguments,
            train_dataset=distillation.crops(train),
            eval_dataset=distillation.center_crops(val),
        )
        trainer.train(resume_from_checkpoint=options.resume)
        figures = trainer.evaluate()
        if trainer.is_world_process_zero():
            distillation.save(options.out, options.student)
            print(f"eval_top1 {figures['eval_top1']:.3f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--farm", required=True, metavar="ADDRESS")
    parser.add_argument("--student", default="torchvision:resnet18")
    parser.add_argument("--method", default="kd")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many")
    parser.add_argument("--save-steps", type=int, default=0, help="write a checkpoint every so many steps")
    parser.add_argument("--batch-size", type=int, default=64, help="images of one process")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
