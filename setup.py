"""The compiled module, the wheel's tag and the license; all else about the package is in pyproject.toml."""

from setuptools import setup

setup(
    license="Apache-2.0",
    cffi_modules=["csrc/build_native.py:ffibuilder"],
    # cffi compiles against the limited API: one wheel serves every Python from 3.10 on.
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
