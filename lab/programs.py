"""Where the programs of the system are."""

from __future__ import annotations

import os
import shutil


def find_program(program: str) -> str | None:
    """Return the full path of a program in the path or in the folders of system programs; None: it is in none."""
    places = [os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/lib/systemd", "/lib/systemd"]
    return shutil.which(program, path=":".join(places))
