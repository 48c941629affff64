"""The methods by name. Imports none of them before it is asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping

from teacherfarm.student.methods.method import Method

METHODS: Mapping[str, str] = {
    "kd": "kd:KD",
    "fkd": "fkd:FKD",
    "ferkd": "ferkd:FerKD",
    "relabel": "relabel:ReLabel",
    "dkd": "dkd:DKD",
    "dist": "dist:DIST",
    "meal-v2": "meal_v2:MEALV2",
    "funmatch": "funmatch:FunMatch",
    "sigmoid-kd": "sigmoid_kd:SigmoidKD",
    "fitnet": "fitnet:FitNet",
    "at": "at:AT",
    "sp": "sp:SP",
    "vid": "vid:VID",
    "crd": "crd:CRD",
    "srrl": "srrl:SRRL",
    "semckd": "semckd:SemCKD",
    "simkd": "simkd:SimKD",
    "sskd": "sskd:SSKD",
    "embedding": "embedding:Embedding",
    "tokens": "tokens:Tokens",
}
"""Where each method is: file:class below teacherfarm.student.methods."""


def find_method(name: str) -> type[Method]:
    """The class of a method. Raises ValueError with the known ones."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there is no method {name!r}; {meant}known: {', '.join(METHODS)}")
    module, _, class_name = METHODS[name].partition(":")
    method: type[Method] = getattr(importlib.import_module(f"teacherfarm.student.methods.{module}"), class_name)
    return method
