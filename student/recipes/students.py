"""Where a student comes from: torchvision, timm, or a function of the user's. Always from scratch, for C
classes.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence

from torch import nn


def make_student(source: str, num_classes: int) -> nn.Module:
    """``torchvision:NAME``, ``timm:NAME`` or ``package.module:function`` (called with ``num_classes=``).

    Raises ValueError that names what was expected.
    """
    package, found, name = source.partition(":")
    if not found or not package or not name:
        raise ValueError(
            f"--student {source!r}: expected torchvision:NAME, timm:NAME or package.module:function, for "
            "example torchvision:resnet18"
        )
    if package == "torchvision":
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        _check_name(source, name, known)
        student = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    elif package == "timm":
        try:
            import timm
        except ImportError as error:
            raise ValueError(f"--student {source!r} needs timm: pip install timm") from error
        _check_name(source, name, timm.list_models())
        student = timm.create_model(name, pretrained=False, num_classes=num_classes)
    else:
        student = _from_function(source, package, name, num_classes)
    if not isinstance(student, nn.Module):
        raise ValueError(f"--student {source!r} returned a {type(student).__name__}, expected a torch.nn.Module")
    return student


def _from_function(source: str, package: str, name: str, num_classes: int) -> object:
    try:
        function = getattr(importlib.import_module(package), name)
    except ImportError as error:
        raise ValueError(
            f"--student {source!r}: cannot import {package} ({error}); is its folder on PYTHONPATH?"
        ) from error
    except AttributeError as error:
        raise ValueError(f"--student {source!r}: {package} has no {name!r}") from error
    return function(num_classes=num_classes)


def _check_name(source: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        close = ", ".join(difflib.get_close_matches(name, known)) or "resnet18"
        raise ValueError(f"--student {source!r}: there is no such model; did you mean {close}?")
