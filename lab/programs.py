"""Where the programs of the system are."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from .namespace import LabError


def find_program(program: str) -> str | None:
    """Return the full path of a program in the path or in the folders of system programs; None: it is in none."""
    places = [os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/lib/systemd", "/lib/systemd"]
    return shutil.which(program, path=":".join(places))


def python_for_all() -> list[str]:
    """Return the command of a Python that the daemon's user may run: this one can be in root's home.

    Raises:
        LabError: there is none.
    """
    folders = Path(sys.executable).resolve().parents
    if all(folder.stat().st_mode & 0o001 for folder in folders):
        return [sys.executable]
    packages = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    other = shutil.which(name, path="/usr/local/bin:/usr/bin")
    if other is None:
        raise LabError(f"needs a {name} that every user may run")
    return ["env", f"PYTHONPATH={packages}", other]
