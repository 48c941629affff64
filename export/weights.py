"""State dicts from files into modules: every key must find its place. Runs nothing that a file contains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

_WRAPPERS = ("state_dict", "model", "model_state_dict")


def read_state_dict(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors or .pth file; a training checkpoint's wrapper ("state_dict", "module.") is taken
    off.

    Raises ValueError when the file is neither.
    """
    import torch

    if not file.is_file():
        raise ValueError(f"there is no weight file {file}")
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(file))
        except SafetensorError as error:
            raise ValueError(f"{file} is not a whole safetensors file ({error})") from error
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(
            f"{file} cannot be read as a plain state dict ({reason}). Save module.state_dict() with torch.save, or as "
            ".safetensors; pickled modules are not loaded because they run code"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{file} holds no state dict (names -> tensors); save module.state_dict()")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def load_weights(module: nn.Module, file: Path) -> None:
    """Put the file's tensors into ``module``; ValueError lists missing, unexpected and misshapen keys."""
    found = read_state_dict(file)
    wanted = module.state_dict()
    # Counters of training steps are no weights, and converted files drop them.
    missing = sorted(key for key in wanted.keys() - found.keys() if not key.endswith("num_batches_tracked"))
    unexpected = sorted(found.keys() - wanted.keys())
    shapes = [
        f"{key} {list(found[key].shape)} (the module has {list(wanted[key].shape)})"
        for key in sorted(wanted.keys() & found.keys())
        if found[key].shape != wanted[key].shape
    ]
    if missing or unexpected or shapes:
        complaints = [
            f"{len(keys)} {what}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
            for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if keys
        ]
        hint = "; a head of another size needs --classes FILE with its class names" if shapes else ""
        raise ValueError(f"the weights in {file} do not fit this module: {'; '.join(complaints)}{hint}")
    module.load_state_dict(found, strict=False)
