"""The compiled C helper, and its results as exceptions.

The only importer of `autoip.kernel._native`.
"""

from __future__ import annotations

import os

from autoip.kernel._native import ffi, lib

__all__ = ["check", "ffi", "lib"]


def check(result: int) -> int:
    """Return the result of a C function.

    Raises:
        OSError: `result` is negative: minus an errno.
    """
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result
