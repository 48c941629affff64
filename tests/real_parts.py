"""Tests against real servers: left out, with the reason, where such a server is not installed; never in CI."""

from __future__ import annotations

from typing import NoReturn

import pytest

from tools.triton_environment import skips_allowed


def absent(reason: str) -> NoReturn:
    """Skip this test, or fail it where nothing may be left out (CI or TEACHERFARM_NO_SKIPS in the environment)."""
    if skips_allowed():
        pytest.skip(reason)
    pytest.fail(f"{reason} (and CI leaves nothing out)", pytrace=False)
