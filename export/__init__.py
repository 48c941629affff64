"""From a frozen teacher to a verified entry of a model repository."""

from teacherfarm.export.exporting import export_teacher
from teacherfarm.export.teachers import Teacher

__all__ = ["Teacher", "export_teacher"]
