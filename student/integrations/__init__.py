"""Distillation from a farm inside other people's training loops: Lightning, transformers, accelerate, timm's tasks.

:mod:`~teacherfarm.student.integrations.distillation` is what they have in common, and knows none of them.
"""
