"""A Python for daemons that do not stay root's."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from .namespace import LabError


def python_for_all() -> list[str]:
    """The words that start this Python, or another of its version, as any user. Raises LabError: there is none.

    A daemon that has become the service's user executes it at a reload, and this one can be in root's home.
    """
    folders = Path(sys.executable).resolve().parents
    if all(folder.stat().st_mode & 0o001 for folder in folders):
        return [sys.executable]
    packages = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if (other := shutil.which(name, path="/usr/local/bin:/usr/bin")) is None:
        raise LabError(f"needs a {name} that every user may run")
    return ["env", f"PYTHONPATH={packages}", other]
