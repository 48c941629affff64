"""A teacher's graph as ONNX bytes by PyTorch's exporter: free batch size, equal bytes for equal teachers.

Writes no file and judges no numbers.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from teacherfarm.export.graph import GraphPlan, TeacherBody, TeacherGraph, half_precision
from teacherfarm.export.teachers import Teacher
from teacherfarm.protos.crop import NumberType
from teacherfarm.protos.teacher_card import CROPS_INPUT, Precision

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

DEFAULT_OPSET = 18
"""What PyTorch's exporter writes by itself, and every ONNX Runtime and TensorRT of the last years reads."""

MAX_MODEL_BYTES = 2**31 - 1
"""protobuf's limit for one message, and so for an ONNX file with its weights inside."""

BATCH_ADVICE = "len(x), int(x.shape[0]) and a loop over crops fix it; write x.shape[0] or -1 instead"

_NUMBERS = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}


def onnx_bytes(
    teacher: Teacher,
    plan: GraphPlan,
    *,
    number_type: NumberType = "uint8",
    precision: Precision = "fp32",
    opset: int = DEFAULT_OPSET,
) -> bytes:
    """The serialised ONNX model; input "crops" [N, H, W, C], outputs ``plan.output_names``.

    Raises ValueError when PyTorch cannot export the module or the result exceeds what one ONNX file can hold.
    """
    if precision == "bf16":
        raise ValueError("precision is fp32 or fp16")
    module = teacher.module if precision == "fp32" else half_precision(teacher.module)
    body = TeacherBody(module, plan, torch.float32 if precision == "fp32" else torch.float16)
    try:
        graph = TeacherGraph(body, teacher, number_type).eval()
        crops = torch.zeros(3, teacher.height, teacher.width, teacher.num_channels).to(_NUMBERS[number_type])
        with torch.no_grad(), _quiet_exporter():
            try:
                program = torch.onnx.export(
                    graph,
                    (crops,),
                    dynamo=True,
                    opset_version=opset,
                    input_names=[CROPS_INPUT],
                    output_names=list(plan.output_names),
                    dynamic_shapes={"crops": {0: torch.export.Dim("batch")}},
                    verbose=False,
                )
            except torch.onnx.errors.OnnxExporterError as error:
                reason = str(error.__cause__ or error).strip().partition("\n")[0]
                raise ValueError(
                    f"PyTorch cannot export this module to ONNX with a free batch size ({reason}). The usual reason is "
                    f"a forward() that branches on values or fixes the batch size: {BATCH_ADVICE}"
                ) from error
    finally:
        body.close()
    assert program is not None
    model = program.model_proto
    _require_free_batch(model)
    _strip(model)
    if model.ByteSize() > MAX_MODEL_BYTES:
        raise ValueError(
            f"the model has {model.ByteSize() / 2**30:.1f} GiB and one ONNX file holds 2: teachers of this size are "
            "not supported yet"
        )
    return bytes(model.SerializeToString(deterministic=True))


def _require_free_batch(model: onnx.ModelProto) -> None:
    """PyTorch's exporter says nothing where it had to fix the batch size."""
    [crops] = model.graph.input
    for value in (crops, *model.graph.output):
        batch = value.type.tensor_type.shape.dim[0]
        if batch.HasField("dim_value"):
            raise ValueError(
                f"the teacher's forward() fixes the batch size: exported with {batch.dim_value} crops, it takes no "
                f"other number of them. {BATCH_ADVICE}"
            )


def teacher_digest(fp32_model: bytes) -> str:
    """SHA-256 of the fp32 ONNX bytes: names the graph and weights whatever precision is served later."""
    return hashlib.sha256(fp32_model).hexdigest()


def _strip(model: onnx.ModelProto) -> None:
    """Take out what says where and how the model was traced: source lines would change the digest, and tell paths."""
    if model.functions:
        raise ValueError("the exporter left functions in the model; export with a current torch and onnxscript")
    graph = model.graph
    del graph.value_info[:]
    holders = (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output)
    for holder in holders:
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter's own progress and its advice about internals would bury what matters to the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
