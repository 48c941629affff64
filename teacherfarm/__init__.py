"""Serves frozen teachers to students that train elsewhere. This module knows the version, and keeps forks safe."""

import os
import sys
from importlib.metadata import PackageNotFoundError, version

# grpc reads this once, when it is first imported, so it is set before any of our modules can import it. With grpc's
# fork handlers on, every DataLoader worker that is forked while a stream is open crashes; with them off the workers,
# which never touch grpc, are safe.
if "grpc" not in sys.modules:
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

try:
    __version__ = version("teacherfarm")
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0.1.0"

__all__ = ["__version__"]
