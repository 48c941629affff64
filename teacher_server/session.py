"""What the server knows of an open session, and what the sessions of one scope have in common."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from teacherfarm.protos.crop import CropFormat
from teacherfarm.protos.faults import WrongCropSize, WrongNumberType
from teacherfarm.protos.messages import Welcome
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.teacher_server.credit import Credit
from teacherfarm.teacher_server.farm.lane import Lane
from teacherfarm.teacher_server.farm.lane_load import LoadMark
from teacherfarm.teacher_server.kept_labels import KeptLabels
from teacherfarm.teacher_server.metrics import ScopeMetrics
from teacherfarm.teacher_server.projects.project import Project
from teacherfarm.teacher_server.samples.referenced_crops import CropCutter

ScopeName = tuple[str, str, LabelSpec, CropFormat]


@dataclass(eq=False)
class Scope:
    """The open sessions whose crops may join each other's: of one project, teacher, label spec and crop format.

    ``kept``: what was kept for them, None where nothing is.
    """

    metrics: ScopeMetrics
    kept: KeptLabels | None
    num_sessions: int = 0

    @property
    def keys_wanted(self) -> bool:
        """Whether anybody else could ask the same crops, now or later, so that keys are worth their making."""
        return self.kept is not None or self.num_sessions > 1


@dataclass(eq=False, kw_only=True)
class Session:
    """One student's connection, authenticated at Hello. Close it with ``Gateway.close_session``."""

    id: str
    project: Project
    key_digest: str = field(repr=False)
    lane: Lane
    spec: LabelSpec
    crop_format: CropFormat
    credit: Credit
    welcome: Welcome
    record_dtype: np.dtype[np.void]
    graph_outputs: tuple[str, ...]
    scope: Scope
    load_mark: LoadMark
    cutter: CropCutter | None = None

    @property
    def keys_wanted(self) -> bool:
        """Whether keys are worth their making, at this moment."""
        return self.scope.keys_wanted

    @property
    def scope_name(self) -> ScopeName:
        """What the sessions of a scope have in common."""
        return scope_name(self.project, self.lane, self.spec, self.crop_format)


def scope_name(project: Project, lane: Lane, spec: LabelSpec, crop_format: CropFormat) -> ScopeName:
    """What the sessions of a scope have in common: a reference stands for the pixels that would come raw."""
    codec = "raw" if crop_format.codec == "reference" else crop_format.codec
    return (project.name, lane.card.name, spec, replace(crop_format, codec=codec))


def check_format(asked: CropFormat, card: CropFormat) -> None:
    """Raises the fault that names what a teacher takes otherwise than a session asks to send."""
    if asked.number_type != card.number_type:
        raise WrongNumberType(f"this teacher takes {card.describe()}, asked to send {asked.describe()}")
    if asked.codec == "jpeg" and asked.number_type != "uint8":
        raise WrongNumberType(f"JPEG holds uint8 crops, this teacher takes {card.describe()}: send them raw")
    if asked.shape != card.shape:
        raise WrongCropSize(f"this teacher takes {card.describe()}, asked to send {asked.describe()}")
    if asked.codec == "jpeg" and asked.channels not in (1, 3):
        raise WrongCropSize(f"JPEG holds 1 or 3 channels, this teacher takes {card.describe()}: send them raw")
