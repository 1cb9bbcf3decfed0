"""Benchmarks: each prints what was measured, beside what else was measured in the same run."""
