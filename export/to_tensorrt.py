"""An ONNX model as a TensorRT engine, by the tensorrt package or by trtexec, and the engine as a function of crops.

An engine belongs to the GPU model and TensorRT version that built it. Writes nothing into a repository.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from teacherfarm.protos.teacher_card import CROPS_INPUT, Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from teacherfarm.export.verify import Run

WORKSPACE_BYTES = 4 << 30
TYPICAL_BATCH = 32
"""The batch size that kernels are tuned for, where the largest allows it."""


def require_tensorrt() -> None:
    """Raise ValueError that says what is missing and how to get it; silent when an engine can be built here."""
    import torch

    missing = []
    if not torch.cuda.is_available():
        missing.append("an NVIDIA GPU that PyTorch can use (an engine is built on the GPU model it will run on)")
    if not _has_package() and shutil.which("trtexec") is None:
        missing.append(
            "TensorRT: neither the Python package tensorrt (pip install tensorrt) nor the program trtexec is here; "
            "NVIDIA's container images nvcr.io/nvidia/tensorrt have both"
        )
    if missing:
        raise ValueError(
            f"--tensorrt cannot work on this machine. Missing: {'; and '.join(missing)}. Without --tensorrt the ONNX "
            "file is exported, and a server that has TensorRT can still run it by ONNX Runtime's TensorRT provider"
        )


def build_engine(model: bytes, *, precision: Precision, max_batch: int, input_shape: tuple[int, ...]) -> bytes:
    """The serialised engine for batches of 1 to ``max_batch`` crops of ``input_shape`` [H, W, C].

    The ONNX file's own number types decide (a strongly typed network), so that normalisation and log-softmax stay
    float32 in an fp16 engine; TF32 is off, because it misses fp32's tolerance. Raises ValueError with TensorRT's words
    when it refuses the model.
    """
    shapes = {
        "min": (1, *input_shape),
        "opt": (min(TYPICAL_BATCH, max_batch), *input_shape),
        "max": (max_batch, *input_shape),
    }
    if precision == "bf16":
        raise ValueError("precision is fp32 or fp16")
    return _build_by_package(model, shapes) if _has_package() else _build_by_trtexec(model, shapes)


def engine_runner(engine: bytes) -> Run:
    """The engine as a function of crops, for verification."""
    return _runner_by_package(engine) if _has_package() else _runner_by_trtexec(engine)


def _has_package() -> bool:
    return importlib.util.find_spec("tensorrt") is not None


def _build_by_package(model: bytes, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # Newer versions know strongly typed networks only and dropped the flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise ValueError(f"TensorRT {trt.__version__} cannot read this teacher's ONNX file: {errors}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    profile.set_shape(CROPS_INPUT, shapes["min"], shapes["opt"], shapes["max"])
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError(
            f"TensorRT {trt.__version__} built no engine for this teacher (its log above says why); a smaller "
            "--max-batch needs less memory"
        )
    return bytes(engine)


def _runner_by_package(engine: bytes) -> Run:
    import tensorrt as trt
    import torch

    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    loaded = runtime.deserialize_cuda_engine(engine)
    context = loaded.create_execution_context()
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    outputs = [name for name in names if loaded.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
    numbers = {trt.DataType.FLOAT: torch.float32, trt.DataType.HALF: torch.float16}

    def run(crops: NDArray[Any]) -> dict[str, NDArray[Any]]:
        given = torch.from_numpy(crops).cuda()
        context.set_input_shape(CROPS_INPUT, tuple(crops.shape))
        context.set_tensor_address(CROPS_INPUT, given.data_ptr())
        answers = {}
        for name in outputs:
            kind = numbers[loaded.get_tensor_dtype(name)]
            answers[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=kind, device="cuda")
            context.set_tensor_address(name, answers[name].data_ptr())
        stream = torch.cuda.current_stream()
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT refused to run the engine it built")
        stream.synchronize()
        return {name: values.cpu().numpy() for name, values in answers.items()}

    return run


def _build_by_trtexec(model: bytes, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="teacherfarm-") as folder:
        source, target = Path(folder, "model.onnx"), Path(folder, "model.plan")
        source.write_bytes(model)
        ranges = [f"--{kind}Shapes={CROPS_INPUT}:{'x'.join(map(str, shape))}" for kind, shape in shapes.items()]
        _trtexec(
            f"--onnx={source}", f"--saveEngine={target}", *ranges, "--stronglyTyped", "--noTF32", "--skipInference"
        )
        return target.read_bytes()


def _runner_by_trtexec(engine: bytes) -> Run:
    def run(crops: NDArray[Any]) -> dict[str, NDArray[Any]]:
        with tempfile.TemporaryDirectory(prefix="teacherfarm-") as folder:
            plan, pixels, answers = (Path(folder, name) for name in ("model.plan", "crops.bin", "answers.json"))
            plan.write_bytes(engine)
            pixels.write_bytes(np.ascontiguousarray(crops).tobytes())
            shape = "x".join(map(str, crops.shape))
            _trtexec(
                f"--loadEngine={plan}",
                f"--loadInputs={CROPS_INPUT}:{pixels}",
                f"--shapes={CROPS_INPUT}:{shape}",
                f"--exportOutput={answers}",
                *("--iterations=1", "--duration=0", "--warmUp=0"),
            )
            return read_trtexec_answers(answers.read_text())

    return run


def read_trtexec_answers(text: str) -> dict[str, NDArray[Any]]:
    """The arrays of trtexec's --exportOutput file: a list of name, dimensions like "8x1000" and flat values."""
    return {
        entry["name"]: np.array(entry["values"], np.float32).reshape(
            [int(size) for size in entry["dimensions"].split("x")]
        )
        for entry in json.loads(text)
    }


def _trtexec(*arguments: str) -> None:
    result = subprocess.run(["trtexec", *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        errors = [line for line in (result.stdout + result.stderr).splitlines() if "[E]" in line]
        raise ValueError(f"trtexec failed: {'; '.join(errors[-5:]) or f'exit status {result.returncode}'}")
