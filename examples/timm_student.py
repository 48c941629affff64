"""A student as one of timm's training tasks, taught by a farm. DATA holds train/ and val/ with a folder for each class.

    teacherfarm serve models/
    torchrun --nproc-per-node 2 examples/timm_student.py DATA --farm zmq://127.0.0.1:7001 --student timm:resnet18

Needs pip install 'teacherfarm[timm]'.
"""

import argparse
from pathlib import Path

import torch
from timm.optim import create_optimizer_v2
from torch.utils.data import DataLoader, Subset

from teacherfarm.student.evaluation import evaluate
from teacherfarm.student.image_sources import SampleImages
from teacherfarm.student.integrations.distillation import connect
from teacherfarm.student.integrations.timm import FarmTask
from teacherfarm.student.recipes.ranks import joined
from teacherfarm.student.recipes.students import make_student
from teacherfarm.student.shard_sampler import ShardSampler


def main() -> None:
    options = parse()
    torch.manual_seed(0)
    train, val = SampleImages(options.data / "train"), SampleImages(options.data / "val")
    with (
        joined("auto") as ranks,
        connect(
            options.farm,
            student=lambda num_classes: make_student(options.student, num_classes),
            method=options.method,
            classes=train.classes,
            num_samples=len(train),
            batch_size=options.batch_size * ranks.num_ranks,
            epochs=options.epochs,
        ) as distillation,
    ):
        task = FarmTask(distillation, device=ranks.device)
        task.setup_ema(decay=0.9)
        optimizer = create_optimizer_v2(task.get_trainable_module(), opt="sgd", lr=0.05, momentum=0.9)
        if ranks.num_ranks > 1:
            task.prepare_distributed([ranks.device.index] if ranks.device.type == "cuda" else None)

        crops = distillation.crops(train)
        loader = distillation.labelled(
            DataLoader(
                crops,
                batch_size=options.batch_size,
                sampler=ShardSampler(crops, rank=ranks.rank, num_ranks=ranks.num_ranks),
                drop_last=True,
                num_workers=options.workers,
                collate_fn=distillation.collate(),
            )
        )
        task.train()
        for epoch in range(options.epochs):
            loader.set_epoch(epoch)
            for number, (batch, labels) in enumerate(loader):
                step = distillation.step(batch, labels, epoch=epoch + number / len(loader), device=ranks.device)
                result = task(distillation.pixels(batch, ranks.device), step)
                optimizer.zero_grad()
                result["loss"].backward()
                optimizer.step()
                task.update_ema()
            if ranks.first:
                print(f"epoch {epoch + 1}  loss {result['loss']:.4f}  {loader.report()}")

        centre = distillation.center_crops(val)
        figures = evaluate(
            task.get_eval_model(ema=True),
            DataLoader(Subset(centre, ranks.share(len(centre))), batch_size=options.batch_size),
            ranks.device,
            split=lambda batch: (distillation.pixels(batch), distillation.targets(batch)),
        )
        if ranks.first:
            print(f"averaged student  {figures}")
            distillation.save(options.out, options.student, distiller=task.get_eval_model(ema=True).distiller)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--farm", required=True, metavar="ADDRESS")
    parser.add_argument("--student", default="timm:resnet18")
    parser.add_argument("--method", default="kd")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64, help="images of one process")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
