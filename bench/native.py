"""The C programs that the benchmarks compare with, compiled when they are needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lab import LabError

if TYPE_CHECKING:
    from typing_extensions import Self

HERE = Path(__file__).resolve().parent


class Workshop:
    """A temporary folder with the compiled programs."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix=f"autoip-bench-{os.getpid()}-"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def program(self, name: str) -> str:
        """Return the path of the program made from bench/NAME.c. Raises LabError."""
        target = self._folder / name
        if not target.exists():
            command = ["cc", "-O2", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"]
            done = subprocess.run(
                [*command, "-o", str(target), str(HERE / f"{name}.c")],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise LabError(f"cc {name}.c: {done.stderr}")
        return str(target)
