"""Benchmarks: every figure is a ratio against a reference that takes turns with it in the same run."""
