"""Benchmarks: every figure is a ratio against a reference that takes turns with it in the same run."""

import teacherfarm

# First, because grpc reads its fork settings from the environment when it is imported, and teacherfarm sets them.
__all__ = ["teacherfarm"]
