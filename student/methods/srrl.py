"""SRRL: the student's representation must look right to the teacher's classifier (Yang et al., ICLR 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from teacherfarm.protos.teacher_card import EMBEDDING
from teacherfarm.student.methods.beside_logits import asks_beside_logits
from teacherfarm.student.methods.heads import need_embedding, need_head, need_student_embedding, take_head
from teacherfarm.student.methods.kd import KDSettings, logit_terms
from teacherfarm.student.methods.method import Asks, Method, Setup, Step, StudentOutputs, setting
from teacherfarm.student.methods.needs import need_several_values
from teacherfarm.student.methods.teacher_values import feature, weighted_mean, wide


@dataclass(frozen=True, kw_only=True)
class SRRLSettings(KDSettings):
    """Defaults: the SimKD toolbox (arXiv 2203.14001), CIFAR-100."""

    feature_weight: float = setting(1.0, "factor of the squared error between the embeddings")
    regression_weight: float = setting(1.0, "factor of the squared error between the teacher's logits of both")


class SRRL(Method):
    """Squared errors between connected student and teacher, once as they are and once behind the teacher's classifier.

    The teacher's logits are computed here, from its embedding and its classifier: labels have lost their level.
    """

    name = "srrl"
    about = "the student's embedding must match the teacher's, also as its classifier sees it"
    paper = "Yang et al., Knowledge Distillation via Softmax Regression Representation Learning, ICLR 2021"
    Settings = SRRLSettings
    settings: SRRLSettings

    def __init__(self, settings: SRRLSettings, setup: Setup) -> None:
        super().__init__(settings, setup)
        size = need_embedding(self.name, setup)
        self.connector = nn.Sequential(
            nn.Linear(need_student_embedding(self.name, setup), size, bias=False), nn.BatchNorm1d(size), nn.ReLU()
        )
        self.classifier = take_head(self.name, setup, size).layer()

    @classmethod
    def asks(cls, settings: SRRLSettings, setup: Setup) -> Asks:
        need_head(cls.name, setup, need_embedding(cls.name, setup))
        need_student_embedding(cls.name, setup)
        need_several_values(cls.name, setup)
        return asks_beside_logits(cls.name, settings, setup, [EMBEDDING], head=True)

    def loss(self, outputs: StudentOutputs, step: Step) -> dict[str, Tensor]:
        embedding, settings = outputs.embedding, self.settings
        assert embedding is not None
        with torch.autocast(embedding.device.type, enabled=False):
            guess = self.connector(wide(embedding))
            truth = feature(step, EMBEDDING, guess)
            behind = (self.classifier(guess) - self.classifier(truth)).square().mean(dim=1)
            error = (guess - truth).square().mean(dim=1)
            parts = {
                "feature": settings.feature_weight * weighted_mean(error, step, guess),
                "regression": settings.regression_weight * weighted_mean(behind, step, guess),
            }
        return {**parts, **logit_terms(settings, outputs, step)}
