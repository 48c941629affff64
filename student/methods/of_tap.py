"""A finished student that ends elsewhere than its model does. Knows no teacher and no method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from teacherfarm.student.methods.student_taps import shown


class OfTap(nn.Module, ABC):
    """Pixels -> what :meth:`finish` makes of the student's module ``tap``; what comes after that is not used."""

    def __init__(self, student: nn.Module, tap: str) -> None:
        super().__init__()
        self.student = student
        self._found: list[Tensor] = []
        # No closure: a copy's hook must keep for the copy.
        student.get_submodule(tap).register_forward_hook(self._keep)

    @abstractmethod
    def finish(self, values: Tensor) -> Tensor:
        """What is returned, of the tap's values: maps [N, C, H, W] or tokens [N, T, D]."""

    def forward(self, pixels: Tensor) -> Tensor:
        self._found.clear()
        self.student(pixels)
        finished = self.finish(self._found.pop())
        self._found.clear()
        return finished

    def _keep(self, module: nn.Module, _taken: Any, given: Tensor) -> None:
        self._found.append(shown(self.student, module, given))
