"""`python -m autoip` in a clone that was not built: one line that says what to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import autoip

PACKAGE = Path(autoip.__file__).parent


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    # -S: no installed package is seen, nor the built modules of this tree. lo: refused if it does run.
    words = [sys.executable, "-S", "-m", "autoip", "lo"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("compiled", "missing"),
    [(False, "autoip.kernel._native"), (True, "_cffi_backend")],
    ids=["no-modules", "no-packages"],
)
def test_one_line(tmp_path: Path, compiled: bool, missing: str) -> None:
    ignore = shutil.ignore_patterns("__pycache__", *([] if compiled else ["*.so"]))
    shutil.copytree(PACKAGE, tmp_path / "autoip", ignore=ignore)
    result = run(tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"autoip: not built for this Python (no {missing}): run `make`, or `pip install .`\n"
    )


def test_a_module_that_is_missing_otherwise_is_not_hidden(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "autoip")
    (tmp_path / "autoip" / "errors.py").write_text("import no_such_module\n")
    result = run(tmp_path)
    assert result.returncode == 1
    assert "No module named 'no_such_module'" in result.stderr
