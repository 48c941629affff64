"""Teachers that the methods need beside the tiny one: sources for export."""

from __future__ import annotations

import dataclasses

from teacherfarm.export.ensemble import make_ensemble
from teacherfarm.export.teachers import Teacher
from tests.tiny_teacher import make, make_other, tiny_net


def make_several() -> Teacher:
    """Ten classes of which a crop may show several."""
    net = tiny_net(8)
    return dataclasses.replace(make(), module=net, activation="sigmoid", name="several")


def make_pair() -> Teacher:
    """Two teachers, one answer."""
    return make_ensemble([make(), make_other()], name="pair")
