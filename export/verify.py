"""Does the exported file answer as PyTorch does? References, comparisons, the table, the verdict.

Knows ONNX Runtime and PyTorch. The reference normalises by the publisher's own transform, or from the published
statistics in plain numpy: never by the graph's code, so that a wrong normalisation inside the graph is found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teacherfarm.export.graph import GraphPlan, TeacherBody
from teacherfarm.export.teachers import Teacher
from teacherfarm.protos.crop import NumberType
from teacherfarm.protos.soft_label import log_softmax
from teacherfarm.protos.teacher_card import (
    CROPS_INPUT,
    GOLDEN_TOLERANCE,
    LOG_PROBABILITIES,
    LOGITS,
    Activation,
    Precision,
)

BATCH_SIZES = (1, 2, 5, 8)
TEMPERATURES = (1.0, 4.0)

VALUE_TOLERANCE: Mapping[Precision, float] = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 2e-1}
"""Largest difference of a logit or feature, relative to the output's largest value: an untrained or very unsure
teacher's probabilities are all alike and hide what its logits show.
"""

Answers = Mapping[str, NDArray[Any]]
Run = Callable[[NDArray[Any]], Answers]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far one artifact's answers are from the reference's."""

    precision: Precision
    num_crops: int
    max_dp: Mapping[float, float]
    top1_agreement: float
    max_value_difference: float

    @property
    def passed(self) -> bool:
        # Written so that NaN fails.
        return all(dp <= GOLDEN_TOLERANCE[self.precision] for dp in self.max_dp.values()) and (
            self.max_value_difference <= VALUE_TOLERANCE[self.precision]
        )

    def figures(self) -> dict[str, float]:
        """For the card: flat names and numbers."""
        named = {f"{self.precision}_max_dp_t{t:g}": round(dp, 8) for t, dp in self.max_dp.items()}
        if self.max_dp:
            named[f"{self.precision}_top1_agreement"] = self.top1_agreement
        named[f"{self.precision}_max_value_difference"] = round(self.max_value_difference, 8)
        return named


def reference_answers(teacher: Teacher, plan: GraphPlan, crops: NDArray[Any], number_type: NumberType) -> Answers:
    """PyTorch's fp32 answers: ``logits`` (teachers with classes) and every feature; float32. An ensemble's are made of
    its members' own.
    """
    if teacher.members:
        from teacherfarm.export.ensemble import ensemble_answers

        parts = [ensemble_answers(teacher, crops[i : i + 8], number_type) for i in range(0, len(crops), 8)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    body = TeacherBody(teacher.module, plan)
    answers: dict[str, list[NDArray[Any]]] = {}
    try:
        with torch.no_grad():
            for start in range(0, len(crops), 8):
                pixels = reference_pixels(teacher, crops[start : start + 8], number_type)
                for name, values in zip(plan.output_names, body(pixels), strict=True):
                    answers.setdefault(name, []).append(values.numpy())
    finally:
        body.close()
    # Probabilities are made from the logits here, not by the graph's log-softmax.
    return {name: np.concatenate(values) for name, values in answers.items() if name != LOG_PROBABILITIES}


def reference_pixels(teacher: Teacher, crops: NDArray[Any], number_type: NumberType) -> torch.Tensor:
    """What the module takes for these crops, by the published transform where there is one for them."""
    if teacher.published_transform is not None and number_type == "uint8" and teacher.channel_order == "RGB":
        return teacher.published_transform(crops)
    top = float(np.iinfo(crops.dtype).max) if np.issubdtype(crops.dtype, np.integer) else 1.0
    fractions = crops.astype(np.float64) / top
    normalised = (fractions - np.array(teacher.mean)) / np.array(teacher.std)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(normalised, 3, 1), dtype=np.float32))


def onnx_session(model: bytes, num_threads: int = 0) -> Run:
    """The model in ONNX Runtime on the CPU, as a function of crops. 0 threads: as many as PyTorch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(crops: NDArray[Any]) -> Answers:
        return dict(zip(names, session.run(names, {CROPS_INPUT: crops}), strict=True))

    return run


def run_in_batches(run: Run, crops: NDArray[Any], batch_sizes: Sequence[int] = BATCH_SIZES) -> Answers:
    """All crops' answers, asked in batches of these sizes in turn."""
    parts: list[Answers] = []
    start = turn = 0
    while start < len(crops):
        size = batch_sizes[turn % len(batch_sizes)]
        batch = crops[start : start + size]
        answers = run(np.ascontiguousarray(batch))
        for name, values in answers.items():
            if len(values) != len(batch):
                raise ValueError(
                    f"output {name!r} has {len(values)} rows for {len(batch)} crops: the batch size is not free"
                )
        parts.append(answers)
        start, turn = start + size, turn + 1
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def probabilities(answers: Answers, activation: Activation, temperature: float) -> NDArray[np.float32]:
    """Float32 [N, C] as a student makes them: from float16 log-probabilities where there are any, else from logits."""
    if activation == "sigmoid":
        return np.asarray(0.5 * (1 + np.tanh(0.5 * answers[LOGITS].astype(np.float32) / temperature)), dtype=np.float32)
    return np.exp(log_softmax(answers.get(LOG_PROBABILITIES, answers[LOGITS]), temperature))


def compare(answers: Answers, reference: Answers, activation: Activation, precision: Precision) -> Comparison:
    """The largest differences over all crops; NaN where an answer is not a number."""
    max_dp: dict[float, float] = {}
    agreement = 1.0
    if activation != "none":
        for temperature in TEMPERATURES:
            difference = probabilities(answers, activation, temperature) - probabilities(
                reference, activation, temperature
            )
            max_dp[temperature] = float(np.abs(difference).max())
        agreement = float((answers[LOGITS].argmax(-1) == reference[LOGITS].argmax(-1)).mean())
    relative = [
        float(np.abs(answers[name].astype(np.float32) - values).max() / max(float(np.abs(values).max()), 1e-6))
        for name, values in reference.items()
    ]
    return Comparison(
        precision=precision,
        num_crops=len(next(iter(reference.values()))),
        max_dp=max_dp,
        top1_agreement=agreement,
        max_value_difference=float(np.max(relative)) if relative else 0.0,
    )


def table(comparisons: Sequence[Comparison]) -> str:
    """For people: one row per artifact that was checked."""
    head = (
        "precision",
        "crops",
        "max |dp| T=1",
        "max |dp| T=4",
        "top-1 agreement",
        "max value diff",
        "verdict",
    )
    rows: list[tuple[str, ...]] = [head]
    for one in comparisons:
        dps = [f"{one.max_dp[t]:.1e}" if t in one.max_dp else "-" for t in TEMPERATURES]
        agreement = f"{one.top1_agreement:.1%}" if one.max_dp else "-"
        limits = f"{GOLDEN_TOLERANCE[one.precision]:g}, {VALUE_TOLERANCE[one.precision]:g}"
        verdict = f"equal (within {limits})" if one.passed else f"DIFFERENT (allowed {limits})"
        rows.append((one.precision, str(one.num_crops), *dps, agreement, f"{one.max_value_difference:.1e}", verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(f"  {line}" for line in lines)
