"""The tests. A package, so that `python -m tests.demo` and `from tests.lab import ...` work from the top folder."""
