"""What methods check of batches before anything is asked."""

import pytest

from teacherfarm.student.methods.fitnet import FitNet, FitNetSettings
from teacherfarm.student.methods.method import MethodMismatch, StudentShape
from teacherfarm.student.methods.simkd import SimKD, SimKDSettings
from teacherfarm.student.methods.srrl import SRRL, SRRLSettings
from tests.methods import make_card, make_setup


@pytest.mark.parametrize(
    ("method", "settings"), [(SRRL, SRRLSettings()), (SimKD, SimKDSettings()), (FitNet, FitNetSettings())]
)
def test_batch_normalisation_needs_two_values(method, settings):
    card = make_card(features={"embedding": (24,), "layer1": (24, 1, 1)})
    student = StudentShape(num_classes=10, embedding=12, features={"stage1": (6, 1, 1)})
    assert method.asks(settings, make_setup(card, student, batch_size=2)).spec is not None
    with pytest.raises(MethodMismatch, match=f"{method.name} normalises over the crops of a batch"):
        method.asks(settings, make_setup(card, student, batch_size=1))


def test_a_map_has_many_values():
    assert SimKD.asks(SimKDSettings(), make_setup(batch_size=1)).head
