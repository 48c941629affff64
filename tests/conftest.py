"""Settings that every test needs; fixtures live beside the tests that use them."""

import os

import hypothesis

# Before torch is imported, and inherited by what tests start: two test processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test that would download fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Deadlines measure the machine's other load; on CI the same examples must be tried every time.
hypothesis.settings.register_profile("teacherfarm", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("teacherfarm")
