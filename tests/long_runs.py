"""Commands that start several processes, each with torch: on a busy machine they are slow, and only slow."""

import pytest

HUNG_S = 270.0
"""After this a command counts as hung; how fast it is, is measured in bench."""


def long_run(commands: int = 1) -> pytest.MarkDecorator:
    """The test runs so many of them."""
    return pytest.mark.timeout(commands * HUNG_S + 30)
