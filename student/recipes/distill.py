"""The reference trainer, to be read from top to bottom: teacherfarm distill DATA --teacher-address ... --out
...

Shows how the parts go together; each of them is meant to be used in a training loop of your own as well.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from teacherfarm.protos.soft_label import LabelSpec, SoftLabels
from teacherfarm.student.blocking import TeacherClient
from teacherfarm.student.by_reference import ByReference
from teacherfarm.student.checkpoint import (
    Run,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    read_progress,
    save_checkpoint,
)
from teacherfarm.student.evaluation import Evaluation, evaluate
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.losses import kd_divergence, sigmoid_cross_entropy, soft_cross_entropy, with_hard_labels
from teacherfarm.student.recipes.distill_command import add_arguments
from teacherfarm.student.recipes.distill_data import DistillData
from teacherfarm.student.recipes.interrupts import StopWish
from teacherfarm.student.recipes.kept_labels import KeptLabels
from teacherfarm.student.recipes.pass_meter import STEPS_PER_READING, PassMeter
from teacherfarm.student.recipes.passes import learning_rate, plan_passes
from teacherfarm.student.recipes.ranks import Ranks, joined
from teacherfarm.student.recipes.run_log import PassRow, RunLog
from teacherfarm.student.recipes.students import make_student
from teacherfarm.student.settings import Timeouts

STOPPED = 130
GO_ON = "the same command with --resume goes on from there"
AMP_TYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(options: argparse.Namespace) -> int:
    """Run the command: 0 when it is done, 1 when recording stopped on the way, 130 when it was asked to stop.

    Mistakes and faults are raised.
    """
    with joined(options.device) as ranks:
        kept = KeptLabels(options)
        with contextlib.nullcontext() if not kept.asks else connect(kept.options) as teacher:
            return distill(kept, ranks, teacher)


def connect(options: argparse.Namespace, *, digest: str = "", by_reference: ByReference | None = None) -> TeacherClient:
    """The teacher's client; the first use connects."""
    return TeacherClient(
        options.teacher_address,
        options.teacher,
        api_key=options.api_key,
        digest=digest or options.digest,
        spec=LabelSpec(top_k=options.top_k, temperature=options.temperature if options.top_k else 1.0),
        timeouts=Timeouts(answer_s=options.answer_timeout),
        on_starved=options.on_starved,
        by_reference=by_reference,
    )


def distill(kept: KeptLabels, ranks: Ranks, teacher: TeacherClient | None) -> int:
    """Train, evaluate, and write everything to ``options.out``; without a teacher, from kept labels alone."""
    options, card, device = kept.options, kept.card(teacher), ranks.device
    out = options.out
    say: Callable[[str], None] = functools.partial(tqdm.write, file=sys.stdout) if ranks.first else lambda _: None

    # The data, and where to begin.
    data = DistillData(kept, card, ranks)
    if teacher is not None and options.by_reference:
        # Only its card told how crops are cut: now the same teacher can be told which.
        teacher = connect(options, digest=card.teacher_digest, by_reference=data.references())
    passes = plan_passes(options.epochs, options.crops_per_image)
    check_options(options, data, card.activation)
    checkpoint = find_checkpoint(options)
    begin = read_progress(checkpoint) if checkpoint is not None else {"pass": 0, "steps": 0}
    say(f"teacher  {card.name}: {card.num_classes} classes, digest {card.teacher_digest[:12] or 'unknown'}")
    if kept.recorded is not None:
        say(f"labels   {kept}")
    say(f"data     {len(data.train)} images to train on, {len(data.val)} to evaluate; {data.train.match}")

    # The student, and everything else that has a state.
    torch.manual_seed(options.seed)
    student = make_student(options.student, card.num_classes).to(device)
    torch.manual_seed(options.seed + ranks.rank)  # equal weights, but each rank its own dropout
    model = DistributedDataParallel(student) if ranks.num_ranks > 1 else student
    optimizer = make_optimizer(options, student)
    scaler = torch.amp.GradScaler(device.type, enabled=options.amp == "fp16")
    parts: dict[str, Any] = {"model": student, "optimizer": optimizer, "scaler": scaler}
    average = None
    if options.ema:
        averaging = get_ema_multi_avg_fn(options.ema)  # type: ignore[no-untyped-call]
        average = parts["ema"] = AveragedModel(student, multi_avg_fn=averaging, use_buffers=True)
    finished = student if average is None else average
    say(
        f"student  {options.student}: {sum(p.numel() for p in student.parameters()) / 1e6:.2f} M parameters on {device}"
    )

    def evaluate_on(loader: Any) -> Evaluation:
        split = lambda batch: (data.student_input(batch), data.val.targets(batch))  # noqa: E731
        return evaluate(finished, loader, device, split=split, amp_dtype=AMP_TYPES[options.amp])

    def run_with(loader: LabelledLoader[Any]) -> Run:
        return Run(parts=parts, loader=loader, teachers={card.name: card.teacher_digest}, settings=data.settings())

    steps, val_loader = begin["steps"], data.val_loader()
    crops_per_image = passes[min(begin["pass"], len(passes) - 1)].crops_per_image
    loader = data.train_loader(crops_per_image, teacher)
    if checkpoint is not None:
        load_checkpoint(checkpoint, run_with(loader))
        say(f"going on from {checkpoint.name}, step {steps}")

    epochs_done = passes[begin["pass"]].epoch if begin["pass"] < len(passes) else options.epochs
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.callback(kept.close, seal=False)
        if teacher is not None:
            stack.callback(teacher.close)
        log = stack.enter_context(RunLog(out, resume_epoch=epochs_done)) if ranks.first else None
        wish = stack.enter_context(StopWish())

        for number in range(begin["pass"], len(passes)):
            this = passes[number]
            if this.crops_per_image != crops_per_image:
                crops_per_image = this.crops_per_image
                loader = data.train_loader(crops_per_image, teacher)
            run = run_with(loader)
            loader.set_epoch(this.visit)
            kept.begin_pass(ranks)
            done_before = loader.state_dict()["batches"]

            meter = PassMeter(
                f"epoch {this.epoch_after}/{options.epochs}",
                loader=loader,
                ranks=ranks,
                log=log,
                steps=steps,
                done_before=done_before,
            )
            model.train()
            for step, (batch, labels) in enumerate(loader, done_before):
                epoch = this.epoch + (this.crops_per_image * step / len(loader) if options.lr_per == "step" else 0.0)
                rate = learning_rate(epoch, peak=options.lr, epochs=options.epochs, warmup_epochs=options.warmup_epochs)
                for group in optimizer.param_groups:
                    group["lr"] = rate

                with torch.autocast(device.type, dtype=AMP_TYPES[options.amp], enabled=options.amp != "off"):
                    logits = model(data.student_input(batch))
                loss = loss_of(options, logits, labels, data.train.targets(batch).to(device))
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                if options.clip_norm:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(student.parameters(), options.clip_norm)
                scaler.step(optimizer)
                scaler.update()
                if average is not None:
                    average.update_parameters(student)

                meter.step(loss, len(labels))
                steps = meter.steps
                if step + 1 == len(loader):
                    continue  # kept below, when the pass was evaluated
                ask = ranks.num_ranks == 1 or steps % STEPS_PER_READING == 0
                stop = ask and ranks.any(wish.noted)
                if stop or (options.checkpoint_steps and steps % options.checkpoint_steps == 0):
                    save_checkpoint(out, run, step=steps, progress={"pass": number, "steps": steps}, keep=options.keep)
                if stop:
                    meter.close()
                    say(f"stopped at step {steps}; {GO_ON}")
                    return STOPPED

            mean_loss, speed = meter.finish(), meter.images_per_s
            result = evaluate_on(val_loader)
            say(
                f"epoch {this.epoch_after}/{options.epochs}  loss {mean_loss:.4f}  validation {result}  "
                f"{speed:.0f} images/s  {loader.report()}"
            )
            if log is not None:
                log.add(
                    PassRow(
                        epoch=this.epoch_after,
                        steps=steps,
                        learning_rate=rate,
                        loss=mean_loss,
                        images_per_s=speed,
                        stall=loader.stall,
                        unanswered=loader.unanswered,
                        val_loss=result.loss,
                        val_top1=result.top1,
                        val_top5=result.top5,
                    )
                )
            save_checkpoint(out, run, step=steps, progress={"pass": number + 1, "steps": steps}, keep=options.keep)
            if number + 1 < len(passes) and ranks.any(wish.noted):
                say(f"stopped after epoch {this.epoch_after}; {GO_ON}")
                return STOPPED

        # The finished student, beside its teacher where there is one.
        if teacher is None:
            result = evaluate_on(val_loader)
        else:
            result = evaluate_on(
                LabelledLoader(val_loader, teacher, lambda batch: batch["crops"], on_mismatch="ignore")
            )
        say(f"student  {result}")
        if log is not None:
            torch.save(finished.state_dict(), out / "student.pt")
            figures = {"teacher": card.name, "teacher_digest": card.teacher_digest, **dataclasses.asdict(result)}
            (out / "result.json").write_text(json.dumps(figures, indent=2) + "\n")
            say(f"written  {out}: student.pt, result.json, log.csv, {log.draw().name}, tensorboard/")
        return 0 if kept.finish(ranks, say) else 1


def loss_of(options: argparse.Namespace, logits: Tensor, labels: SoftLabels, targets: Tensor) -> Tensor:
    """The loss that the options name."""
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ValueError(
            f"--student {options.student} must return logits [N, {labels.num_classes}] in training, too (no "
            "auxiliary outputs): wrap it in a function of your own, given as package.module:function"
        )
    fallback = targets if options.hard_fallback else None
    if labels.activation == "sigmoid":
        soft = sigmoid_cross_entropy(logits, labels, options.temperature)
    elif options.loss == "soft-ce":
        soft = soft_cross_entropy(
            logits, labels, options.temperature, completion=options.completion, hard_fallback=fallback
        )
    else:
        soft = kd_divergence(
            logits,
            labels,
            options.temperature,
            t_squared=options.loss == "kd-t2",
            completion=options.completion,
            hard_fallback=fallback,
        )
    return with_hard_labels(soft, logits, targets, hard_weight=options.hard_weight)


def make_optimizer(options: argparse.Namespace, student: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, or AdamW; weight decay acts on every parameter, as in FKD."""
    if options.optimizer == "adamw":
        return torch.optim.AdamW(student.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    return torch.optim.SGD(student.parameters(), lr=options.lr, momentum=0.9, weight_decay=options.weight_decay)


def check_options(options: argparse.Namespace, data: DistillData, activation: str) -> None:
    """Raise ValueError for what would train something else than was meant."""
    if activation == "none":
        raise ValueError("this teacher has no classes (embeddings only): distill needs a classifier")
    if activation == "sigmoid" and (options.hard_weight or options.hard_fallback or options.loss != "soft-ce"):
        raise ValueError(
            "this teacher's classes are independent (sigmoid): only --loss soft-ce without hard labels fits"
        )
    if options.batch_size < options.crops_per_image:
        raise ValueError(
            f"--batch-size counts crops and must hold one image's {options.crops_per_image}, got {options.batch_size}"
        )
    if (options.hard_weight or options.hard_fallback) and data.train.match.unmatched:
        raise ValueError(f"hard labels need every class: {data.train.match}. Give --class-map FILE")
    if options.hard_fallback and options.on_starved != "skip":
        raise ValueError("--hard-fallback has an effect with --on-starved skip only")


def find_checkpoint(options: argparse.Namespace) -> Path | None:
    """The newest checkpoint with --resume; without it an older run in the folder is refused, not overwritten."""
    if options.resume:
        return latest_checkpoint(options.out)
    if list_checkpoints(options.out):
        raise ValueError(
            f"{options.out} holds an earlier run: --resume goes on with it, another --out starts a new one"
        )
    return None


__all__ = ["add_arguments", "distill", "main"]
