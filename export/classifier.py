"""The teacher's linear classifier as a file that students may reuse, or why there is none.

Knows PyTorch and safetensors; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from teacherfarm.protos.teacher_card import EMBEDDING, LOGITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from teacherfarm.export.graph import GraphPlan
    from teacherfarm.export.teachers import Teacher


def classifier_file(
    teacher: Teacher, plan: GraphPlan, reference: Mapping[str, NDArray[Any]]
) -> tuple[bytes | None, str]:
    """The last layer as safetensors (float32 weight [C, D], bias [C] where it has one) and "", or None and the reason.

    It is one only where ``reference`` shows that it makes the logits of the embedding.
    """
    if teacher.members:
        return None, "an ensemble averages several; export a member by itself"
    if teacher.activation == "none":
        return None, "it has no classes"
    if not plan.head:
        return None, "its logits are not what a linear layer gives: there is none, or something follows it"
    import numpy as np
    from safetensors.torch import save
    from torch import nn

    layer = teacher.module.get_submodule(plan.head)
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    tensors = {"weight": layer.weight.detach().float().flatten(1).contiguous()}
    if layer.bias is not None:
        tensors["bias"] = layer.bias.detach().float().contiguous()
    embedding, logits = reference[EMBEDDING], reference[LOGITS]
    takes_it = embedding.shape[1:] == tensors["weight"].shape[1:]
    if takes_it:
        made = embedding @ tensors["weight"].numpy().T
        made = made + tensors["bias"].numpy() if "bias" in tensors else made
        takes_it = bool(np.abs(made - logits).max() <= 1e-3 * max(float(np.abs(logits).max()), 1e-6))
    if not takes_it:
        return None, f"its last layer {plan.head!r} does not make the logits of its embedding"
    return save(tensors), ""
