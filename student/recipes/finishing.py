"""What a run is worth: the student evaluated after each pass and at the end, and everything that is kept of it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from teacherfarm.student.evaluation import Evaluation, evaluate
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.methods.distiller import Distiller
from teacherfarm.student.neighbours import evaluate_neighbours
from teacherfarm.student.recipes.distill_data import DistillData
from teacherfarm.student.recipes.distill_teachers import DistillTeachers
from teacherfarm.student.recipes.finished import StudentCard, save_student
from teacherfarm.student.recipes.phase_training import AMP_TYPES
from teacherfarm.student.recipes.ranks import Ranks
from teacherfarm.student.recipes.report import ReportData, write_report
from teacherfarm.student.recipes.run_log import RunLog
from teacherfarm.student.recipes.trainee import Trainee
from teacherfarm.student.tally import MOST_CLASSES, Tally

RESULT_FILE = "result.json"


class Finishing:
    """Evaluates what the method would leave behind, without any teacher, on the validation images."""

    def __init__(
        self, options: argparse.Namespace, data: DistillData, trainee: Trainee, teachers: DistillTeachers, ranks: Ranks
    ) -> None:
        self._options, self._data, self._trainee = options, data, trainee
        self._teachers, self._ranks = teachers, ranks
        self._val_loader = data.val_loader()
        self._gives_classes = trainee.distiller.method.gives_classes

    def evaluate(self, distiller: Distiller) -> Evaluation:
        """The student as it is now; all ranks together."""
        return self._evaluate(distiller, self._val_loader)

    def finish(
        self,
        distiller: Distiller,
        log: RunLog | None,
        loader: LabelledLoader[Any],
        config: str,
        say: Callable[[str], None],
    ) -> None:
        """Evaluate beside the teacher, where there is one; the rank with a log writes the student and the report."""
        options, teachers, trainee = self._options, self._teachers, self._trainee
        card = teachers.card
        num_classes = trainee.setup.student.num_classes
        counted = self._gives_classes and num_classes <= MOST_CLASSES
        tally = Tally(num_classes, self._ranks.device) if counted else None
        with teachers.knowing_classes() as teacher:
            val: Any = self._val_loader
            if teacher is not None and self._gives_classes:
                val = LabelledLoader(val, teacher, lambda batch: batch["crops"], on_mismatch="ignore")
            result = self._evaluate(distiller, val, tally)
        say(f"student  {result}")
        client = teachers.stats(self._ranks)
        if log is None:
            return
        save_student(options.out, distiller.inference(), self._student_card(distiller))
        figures = {
            "method": trainee.method.name,
            "teacher": card.name,
            "teacher_digest": card.teacher_digest,
            **{name: value if math.isfinite(value) else None for name, value in dataclasses.asdict(result).items()},
        }
        (options.out / RESULT_FILE).write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")
        curves = log.draw()
        report = write_report(
            options.out,
            ReportData(
                title=f"{options.student} by {trainee.method.name} from {card.name}",
                passes=log.rows,
                result=result,
                parts=log.parts,
                tally=tally,
                classes=card.classes,
                client=client,
                wire=options.teacher_address or "",
                stall=loader.report(),
                facts={
                    "method": f"{trainee.method.name}: {trainee.method.about} ({trainee.method.paper})",
                    "student": options.student,
                    "teacher": f"{card.name}, digest {card.teacher_digest}",
                    "data": f"{options.data}: {len(self._data.train)} images to train on, {len(self._data.val)} to "
                    "evaluate",
                    "labels": str(options.labels) if options.labels else "streamed",
                    "processes": str(self._ranks.num_ranks),
                },
                settings=config,
            ),
        )
        say(
            f"written  {options.out}: student.pt, student.json, {RESULT_FILE}, log.csv, {curves.name}, {report.name}, "
            "config.yaml, tensorboard/"
        )

    def _student_card(self, distiller: Distiller) -> StudentCard:
        options, card = self._options, self._teachers.card
        return StudentCard(
            source=options.student,
            num_outputs=self._trainee.setup.student.num_classes,
            method=self._trainee.method.name,
            rendering=self._data.student_rendering,
            mean=tuple(options.mean),
            std=tuple(options.std),
            center_crop_fraction=card.center_crop_fraction,
            classes=card.classes,
            teacher=card.name,
            teacher_digest=card.teacher_digest,
            plan=distiller.method.inference_plan(),
        )

    def _evaluate(self, distiller: Distiller, loader: Any, tally: Tally | None = None) -> Evaluation:
        val = self._data.val
        targets = val.targets if self._gives_classes else val.own_targets

        def split(batch: Any) -> tuple[Tensor, Tensor]:
            return self._data.student_input(batch), targets(batch)

        finished, device = distiller.inference(), self._ranks.device
        amp = AMP_TYPES[self._options.amp]
        if not self._gives_classes:
            return evaluate_neighbours(finished, loader, device, split=split, amp_dtype=amp)
        return evaluate(finished, loader, device, split=split, amp_dtype=amp, tally=tally)
