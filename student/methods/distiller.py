"""A student and a method as one module: what an optimiser, DistributedDataParallel or a framework's trainer is given.

Knows no clients and loaders: labels come with each step.
"""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from teacherfarm.student.methods.hard_fallback import with_hard_fallback
from teacherfarm.student.methods.method import Method, Step
from teacherfarm.student.methods.student_taps import TappedStudent


class Distiller(nn.Module):
    """``distiller(pixels, step)`` -> the loss's parts by name; their sum is to be minimised.

    ``distiller.predict(pixels)`` -> logits [N, C]. ``hard_fallback``: crops without an answer learn from their own
    class. Forward goes through the module, so that DDP sees every parameter.
    """

    def __init__(self, student: TappedStudent, method: Method, *, hard_fallback: bool = False) -> None:
        super().__init__()
        self.student = student
        self.method = method
        self.hard_fallback = hard_fallback
        # DDP's own list of what it leaves alone.
        self._ddp_params_and_buffers_to_ignore = [f"method.{name}" for name in method.equal_on_ranks]
        self.enter(0)

    def forward(self, pixels: Tensor, step: Step) -> dict[str, Tensor]:
        outputs = self.student(pixels)
        parts = self.method.loss(outputs, step)
        return with_hard_fallback(parts, self.method.predict(outputs), step) if self.hard_fallback else parts

    def predict(self, pixels: Tensor) -> Tensor:
        """The finished model's logits."""
        return self.method.predict(self.student(pixels))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode:
            self.method.keep_frozen(self.student.model)
        return self

    def enter(self, phase: int) -> None:
        """Begin a phase of the method."""
        self.method.enter(phase, self.student.model)
        self.train(self.training)

    def inference(self) -> nn.Module:
        """What is kept at the end: pixels in, logits out, no teacher."""
        return self.method.inference(self.student.bare())
