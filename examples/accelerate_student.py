"""A student in a loop of one's own with Hugging Face accelerate, taught by a farm. DATA holds train/ and val/ with a
folder for each class.

    teacherfarm serve models/
    accelerate launch examples/accelerate_student.py DATA --farm zmq://127.0.0.1:7001 --student torchvision:resnet18

Needs pip install 'teacherfarm[accelerate]'.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Subset

from teacherfarm.student.evaluation import evaluate
from teacherfarm.student.image_sources import SampleImages
from teacherfarm.student.integrations.accelerate import prepare, step_loss
from teacherfarm.student.integrations.distillation import connect
from teacherfarm.student.recipes.students import make_student


def main() -> None:
    options = parse()
    accelerator = Accelerator()
    set_seed(0)
    train, val = SampleImages(options.data / "train"), SampleImages(options.data / "val")
    with connect(
        options.farm,
        student=lambda num_classes: make_student(options.student, num_classes),
        method=options.method,
        classes=train.classes,
        num_samples=len(train),
        batch_size=options.batch_size * accelerator.num_processes,
        epochs=options.epochs,
    ) as distillation:
        optimizer = torch.optim.SGD(distillation.distiller.parameters(), lr=0.05, momentum=0.9)
        loader = DataLoader(
            distillation.crops(train),
            batch_size=options.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=options.workers,
            collate_fn=distillation.collate(),
        )
        model, optimizer, labelled = prepare(accelerator, distillation, optimizer, loader)

        model.train()
        for epoch in range(options.epochs):
            labelled.set_epoch(epoch)
            for number, (batch, labels) in enumerate(labelled):
                with accelerator.accumulate(model):
                    loss = step_loss(accelerator, distillation, model, batch, labels, epoch + number / len(labelled))
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
            accelerator.print(f"epoch {epoch + 1}  loss {loss:.4f}  {labelled.report()}")

        finished = distillation.distiller.inference()
        centre = distillation.center_crops(val)
        share = Subset(centre, range(accelerator.process_index, len(centre), accelerator.num_processes))
        result = evaluate(
            finished,
            DataLoader(share, batch_size=options.batch_size),
            accelerator.device,
            split=lambda batch: (distillation.pixels(batch), distillation.targets(batch)),
        )
        accelerator.print(f"student  {result}")
        if accelerator.is_main_process:
            distillation.save(options.out, options.student)
    accelerator.end_training()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--farm", required=True, metavar="ADDRESS")
    parser.add_argument("--student", default="torchvision:resnet18")
    parser.add_argument("--method", default="kd")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64, help="images of one process")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
