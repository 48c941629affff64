"""Settings that every test needs, and one tiny exported teacher; other fixtures live beside their tests."""

import os
from pathlib import Path

import hypothesis
import pytest

# Before torch is imported, and inherited by what tests start: two test processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test that would download fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Deadlines measure the machine's other load; on CI the same examples must be tried every time.
hypothesis.settings.register_profile("teacherfarm", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("teacherfarm")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with one verified teacher, "tiny" (tests.tiny_teacher); shared, so nobody writes
    into it.
    """
    from teacherfarm.export import export_teacher

    models = tmp_path_factory.mktemp("models")
    export_teacher("tests.tiny_teacher:make", models)
    return models
