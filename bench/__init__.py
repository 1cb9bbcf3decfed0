"""Benchmarks: each prints its measurements beside those of other programs in the same run."""
