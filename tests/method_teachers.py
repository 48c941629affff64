"""Teachers that the methods need beside the tiny one: sources for export."""

from __future__ import annotations

import dataclasses

from teacherfarm.export.teachers import Teacher
from tests.tiny_teacher import make, tiny_net


def make_several() -> Teacher:
    """Ten classes of which a crop may show several."""
    net = tiny_net(8)
    return dataclasses.replace(make(), module=net, activation="sigmoid", name="several")
