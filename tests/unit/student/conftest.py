"""Clients that lose no time in tests."""

import pytest

from teacherfarm.student import client, retry


@pytest.fixture
def quick(monkeypatch):
    """Sessions are opened again, and starvation is looked for, at once."""
    monkeypatch.setattr(retry, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(retry, "LONGEST_DELAY_S", 0.005)
    monkeypatch.setattr(client, "STARVATION_CHECK_S", 0.005)
