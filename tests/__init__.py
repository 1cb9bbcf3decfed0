"""The tests. A package, so that the files can import one another as `tests.NAME`."""
