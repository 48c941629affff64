"""The reference trainer, to be read from top to bottom: teacherfarm distill DATA --method ... --teacher-address ...

Shows how the parts go together; each of them is meant to be used in a training loop of your own as well.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.blocking import TeacherClient
from teacherfarm.student.by_reference import ByReference
from teacherfarm.student.checkpoint import (
    Run,
    load_checkpoint,
    read_progress,
    save_checkpoint,
)
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.methods.distiller import Distiller
from teacherfarm.student.methods.method import Step
from teacherfarm.student.methods.registry import find_method
from teacherfarm.student.recipes.distill_checks import check_options, find_checkpoint
from teacherfarm.student.recipes.distill_command import add_arguments
from teacherfarm.student.recipes.distill_data import DistillData
from teacherfarm.student.recipes.distill_teachers import DistillTeachers
from teacherfarm.student.recipes.finishing import Finishing
from teacherfarm.student.recipes.interrupts import StopWish
from teacherfarm.student.recipes.kept_labels import KeptLabels
from teacherfarm.student.recipes.link_check import measure_link
from teacherfarm.student.recipes.method_options import PREFIX, given_settings, make_settings, words
from teacherfarm.student.recipes.pass_meter import STEPS_PER_READING, PassMeter
from teacherfarm.student.recipes.passes import plan_phases
from teacherfarm.student.recipes.phase_training import PhaseTraining
from teacherfarm.student.recipes.ranks import Ranks, joined
from teacherfarm.student.recipes.run_config import CONFIG_FILE, write_config
from teacherfarm.student.recipes.run_log import PassRow, RunLog
from teacherfarm.student.recipes.trainee import make_trainee
from teacherfarm.student.settings import Timeouts

STOPPED = 130
GO_ON = "the same command with --resume goes on from there"


def main(options: argparse.Namespace) -> int:
    """Run the command: 0 when it is done, 1 when recording stopped on the way, 130 when it was asked to stop.

    Mistakes and faults are raised.
    """
    with joined(options.device) as ranks:
        return distill(KeptLabels(options), ranks, functools.partial(connect, options))


def connect(
    options: argparse.Namespace,
    *,
    spec: LabelSpec | None = None,
    digest: str = "",
    by_reference: ByReference | None = None,
) -> TeacherClient:
    """A client of the teacher; its first use connects."""
    return TeacherClient(
        options.teacher_address,
        options.teacher,
        api_key=options.api_key,
        digest=digest or options.digest,
        spec=spec,
        timeouts=Timeouts(answer_s=options.answer_timeout),
        on_starved=options.on_starved,
        by_reference=by_reference,
    )


def distill(kept: KeptLabels, ranks: Ranks, connect: Callable[..., Any]) -> int:
    """Train, evaluate, and write everything to ``options.out``; from kept labels alone where they name no teacher.

    ``connect``: see :func:`connect`, without the options.
    """
    options, device = kept.options, ranks.device
    out: Path = options.out
    say: Callable[[str], None] = functools.partial(tqdm.write, file=sys.stdout) if ranks.first else lambda _: None
    with contextlib.ExitStack() as stack:
        # The teacher's card: what there is to learn from, and how crops are cut for it.
        teachers = stack.enter_context(DistillTeachers(kept, connect))
        card = teachers.card
        data = DistillData(kept, card, ranks)
        teachers.references = data.references() if kept.asks and options.by_reference else None
        method = find_method(options.method)
        settings = make_settings(method, kept.decided_for(method, card) | given_settings(options))
        say(f"teacher  {card.name}: {card.num_classes or 'no'} classes, digest {card.teacher_digest[:12] or 'unknown'}")
        if kept.recorded is not None:
            say(f"labels   {kept}")
        say(f"data     {len(data.train)} images to train on, {len(data.val)} to evaluate; {data.train.match}")

        # Student and method, and everything else that has a state.
        trainee = make_trainee(
            options,
            method,
            settings,
            card,
            size=(data.student_rendering.height, data.student_rendering.width),
            num_samples=len(data.train),
            num_classes=len(data.train.source.classes),
            num_ranks=ranks.num_ranks,
            fetch_head=teachers.head,
        )
        check_options(options, data, trainee)
        distiller = trainee.distiller.to(device)
        torch.manual_seed(options.seed + ranks.rank)  # equal weights, but each rank its own dropout
        scaler = torch.amp.GradScaler(device.type, enabled=options.amp == "fp16")
        average = None
        if options.ema:
            averaging = get_ema_multi_avg_fn(options.ema)  # type: ignore[no-untyped-call]
            average = AveragedModel(distiller, multi_avg_fn=averaging, use_buffers=True)
        finished = distiller if average is None else cast(Distiller, average.module)
        say(f"student  {options.student}: {millions(distiller.student)} parameters on {device}")
        say(f"method   {method.name}: {', '.join(f'{key} {words(value)}' for key, value in vars(settings).items())}")

        # Where to begin.
        passes = plan_phases([(phase.begin, phase.end) for phase in trainee.phases], options.crops_per_image)
        checkpoint = find_checkpoint(options)
        begin = read_progress(checkpoint) if checkpoint is not None else {"pass": 0, "steps": 0, "phase": 0}
        first = passes[min(begin["pass"], len(passes) - 1)]
        training = PhaseTraining(trainee, begin.get("phase", 0), options, ranks, scaler)
        loader_of = (first.phase, first.crops_per_image)

        def train_loader(phase: int, crops_per_image: int) -> LabelledLoader[Any]:
            asks = trainee.phases[phase].asks
            return data.train_loader(crops_per_image, teachers.asked(asks.spec), asks)

        loader = train_loader(*loader_of)

        def state() -> Run:
            parts: dict[str, Any] = {"model": distiller, "optimizer": training.optimizer, "scaler": scaler}
            if average is not None:
                parts["ema"] = average
            teacher = {card.name: card.teacher_digest}
            return Run(
                parts=parts, loader=loader, teachers=teacher, settings=data.settings() | trainee.settings_by_name()
            )

        steps = begin["steps"]
        if checkpoint is not None:
            load_checkpoint(checkpoint, state())
            say(f"going on from {checkpoint.name}, step {steps}")
        elif kept.asks and kept.recorded is None and options.measure_link:
            say(f"link     measuring answers for {options.measure_link:g} s, and some steps of the student")
            say(f"link     {measure_link(options, data, teachers, training, ranks)}")
            teachers.count_anew()
        epochs_done = first.epoch if begin["pass"] < len(passes) else options.epochs
        out.mkdir(parents=True, exist_ok=True)
        log = stack.enter_context(RunLog(out, resume_epoch=epochs_done)) if ranks.first else None
        config = ""
        if ranks.first:
            config = write_config(out / CONFIG_FILE, options, method.name, vars(settings), PREFIX)
        finishing = Finishing(options, data, trainee, teachers, ranks)
        wish = stack.enter_context(StopWish())

        def keep(pass_number: int) -> None:
            progress = {"pass": pass_number, "steps": steps, "phase": training.number}
            save_checkpoint(out, state(), step=steps, progress=progress, keep=options.keep)

        # Training, pass by pass.
        if len(trainee.phases) > 1 and begin["pass"] < len(passes):
            say(f"phase    {training.phase.name}")
        for number in range(begin["pass"], len(passes)):
            this = passes[number]
            if this.phase != training.number:
                training = PhaseTraining(trainee, this.phase, options, ranks, scaler)
                say(f"phase    {training.phase.name}")
            if (this.phase, this.crops_per_image) != loader_of:
                loader_of = (this.phase, this.crops_per_image)
                loader = train_loader(*loader_of)
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
            training.model.train()
            for index, (batch, labels) in enumerate(loader, done_before):
                # Every so many batches the optimiser goes one step; the last ones of a pass may be fewer.
                group_begin = index - index % options.accumulate
                group_size = min(options.accumulate, len(loader) - group_begin)
                last = index + 1 == group_begin + group_size
                step = Step(
                    labels=None if training.phase.asks.spec is None else labels,
                    targets=data.train.targets(batch).to(device),
                    samples=batch["samples"].to(device),
                    epoch=this.epoch + this.crops_per_image * group_begin / len(loader),
                    mix=batch.get("mix"),
                )
                parts = training.backward(data.student_input(batch), step, share=1 / group_size, last=last)
                meter.batch(parts, len(labels))
                if not last:
                    continue
                rate = training.rate(this.epoch, step.epoch)
                training.step(rate)
                if average is not None:
                    average.update_parameters(distiller)
                meter.step()
                steps = meter.steps
                if index + 1 == len(loader):
                    continue  # kept below, when the pass was evaluated
                ask = ranks.num_ranks == 1 or steps % STEPS_PER_READING == 0
                stop = ask and ranks.any(wish.noted)
                if stop or (options.checkpoint_steps and steps % options.checkpoint_steps == 0):
                    keep(number)
                if stop:
                    meter.close()
                    say(f"stopped at step {steps}; {GO_ON}")
                    return STOPPED

            means, speed = meter.finish(), meter.images_per_s
            result = finishing.evaluate(finished)
            loss = sum(means.values()) if means else math.nan
            say(
                f"epoch {this.epoch_after}/{options.epochs}  loss {loss:.4f}  validation {result}  "
                f"{speed:.0f} images/s  {loader.report()}"
            )
            if log is not None:
                log.add(
                    PassRow(
                        epoch=this.epoch_after,
                        steps=steps,
                        learning_rate=rate,
                        loss=loss,
                        images_per_s=speed,
                        stall=loader.stall,
                        unanswered=loader.unanswered,
                        val_loss=result.loss,
                        val_top1=result.top1,
                        val_top5=result.top5,
                    ),
                    means,
                )
            keep(number + 1)
            if number + 1 < len(passes) and ranks.any(wish.noted):
                say(f"stopped after epoch {this.epoch_after}; {GO_ON}")
                return STOPPED

        # The finished student, beside its teacher where there is one.
        finishing.finish(finished, log, loader, config, say)
        return 0 if kept.finish(ranks, say) else 1


def millions(module: nn.Module) -> str:
    """How many parameters a module has."""
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f} M"


__all__ = ["add_arguments", "distill", "main"]
