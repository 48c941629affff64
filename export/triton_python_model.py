"""Runs the model.onnx beside this file by ONNX Runtime inside Triton's Python backend.

Copied into a repository entry as model.py, so it stands alone: numpy, onnxruntime and what Triton brings.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]


class TritonPythonModel:
    """One instance: one session. Settings in config.pbtxt: parameter ``intra_op_threads``, instance kind."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called once by Triton; a failure here keeps the model from becoming ready."""
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        threads = config.get("parameters", {}).get("intra_op_threads", {}).get("string_value", "0")
        options.intra_op_num_threads = int(threads)
        providers: list[Any] = ["CPUExecutionProvider"]
        if args.get("model_instance_kind") == "GPU":
            device = int(args.get("model_instance_device_id", "0"))
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device}))
        model = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(model, options, providers=providers)
        self.input_name = self.session.get_inputs()[0].name

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request, in order. What Triton queued together runs together."""
        crops = [pb_utils.get_input_tensor_by_name(request, self.input_name).as_numpy() for request in requests]
        asked = [list(request.requested_output_names()) for request in requests]
        names = list(dict.fromkeys(name for each in asked for name in each))
        try:
            answers = self._run(names, np.concatenate(crops) if len(crops) > 1 else crops[0])
        except Exception as error:
            if len(requests) > 1:
                # One request that cannot be answered must not fail the others.
                return [self.execute([request])[0] for request in requests]
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(error).__name__}: {error}"))]
        responses, start = [], 0
        for batch, wanted in zip(crops, asked, strict=True):
            stop = start + len(batch)
            tensors = [pb_utils.Tensor(name, answers[name][start:stop]) for name in wanted]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
            start = stop
        return responses

    def _run(self, names: list[str], crops: Any) -> dict[str, Any]:
        return dict(zip(names, self.session.run(names, {self.input_name: crops}), strict=True))
