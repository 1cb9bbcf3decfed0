"""``python -m autoip``."""

from __future__ import annotations

import sys

from autoip.commands.main import main

_NOT_BUILT = (
    "autoip.kernel._native",
    "_cffi_backend",
    "cffi",
    "pyroute2",
)
"""The compiled modules, and the packages that they and the program need."""

try:
    status = main()
except ModuleNotFoundError as error:
    if error.name not in _NOT_BUILT:
        raise
    print(
        f"autoip: not built for this Python (no {error.name}): run `make`, or `pip install .`",
        file=sys.stderr,
    )
    status = 1
sys.exit(status)
