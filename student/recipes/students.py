"""Where a student comes from: torchvision, timm, or a function of the user's. Always from scratch, for C
classes.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence

from torch import nn


def make_student(source: str, num_classes: int) -> nn.Module:
    """``torchvision:NAME``, ``timm:NAME``, ``cifar:NAME`` or ``package.module:function``, called with ``num_classes=``.

    Raises ValueError that names what was expected.
    """
    package, found, name = source.partition(":")
    if not found or not package or not name:
        raise ValueError(
            f"--student {source!r}: expected torchvision:NAME, timm:NAME, cifar:NAME or package.module:function, for "
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
    elif package == "cifar":
        from teacherfarm.networks.cifar import make_cifar_network

        student = make_cifar_network(name, num_classes)
    else:
        student = _from_function(source, package, name, num_classes)
    if not isinstance(student, nn.Module):
        raise ValueError(f"--student {source!r} returned a {type(student).__name__}, expected a torch.nn.Module")
    return student


def default_taps(source: str, model: nn.Module, *, height: int, width: int) -> tuple[str, ...]:
    """The modules that end the stages of a student, for crops of this size in pixels; () where it has no maps.

    ``source``: as for :func:`make_student`.
    """
    from teacherfarm.networks.stages import find_stages

    try:
        return find_stages(model, height, width)
    except Exception as error:
        raise ValueError(
            f"the stages of {source} were not found ({error}): name them with --student-taps MODULE ..."
        ) from error


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


def load_pretrained(student: nn.Module, source: str) -> None:
    """Give a student of torchvision or timm the weights that its package has for it; the last layer stays as it is
    where its shape differs. Downloads them if need be.
    """
    package, _, name = source.partition(":")
    if package == "torchvision":
        import torchvision

        weights = torchvision.models.get_model(name, weights="DEFAULT").state_dict()
    elif package == "timm":
        import timm

        weights = timm.create_model(name, pretrained=True).state_dict()
    else:
        raise ValueError(f"--init pretrained: only torchvision: and timm: students have weights, not {source!r}")
    own = student.state_dict()
    student.load_state_dict(
        {key: weights[key] if value.shape == weights[key].shape else value for key, value in own.items()}
    )
