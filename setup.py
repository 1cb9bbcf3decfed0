"""The compiled modules; all else about the package is in pyproject.toml."""

from setuptools import setup

setup(
    cffi_modules=[
        "csrc/build_arpsock.py:ffibuilder",
        "csrc/build_privileges.py:ffibuilder",
    ],
)
