"""Distillation methods against a remote teacher, one file each.

:mod:`~teacherfarm.student.methods.method` says what a method is, :mod:`~teacherfarm.student.methods.registry` knows
them by name, :mod:`~teacherfarm.student.methods.distiller` puts one and a student into one module to train.
"""
