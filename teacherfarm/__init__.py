"""Serves frozen teachers to students that train elsewhere. This module knows the version and nothing else."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("teacherfarm")
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0.1.0"

__all__ = ["__version__"]
