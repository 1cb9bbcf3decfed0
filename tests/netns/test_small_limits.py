"""A daemon with few descriptors, without /proc, or with a loop of links: one clear line, and its status."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab import Namespace

from .conftest import autoip_command
from .helpers import NETNS, PATIENCE

pytestmark = NETNS


@pytest.fixture
def host(stack: ExitStack) -> Namespace:
    return stack.enter_context(Namespace("host"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the daemon's user reaches, whoever that is."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def fails(host: Namespace, folder: Path, *before: str, words: str = "run eth0") -> tuple[int, str]:
    """Return status and the one error line of autoip, started by `before`."""
    process = host.popen(
        [*before, *autoip_command(), *words.split()],
        env={
            "RUNTIME_DIRECTORY": str(folder),
            "STATE_DIRECTORY": str(folder),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        },
        stderr=subprocess.PIPE,
    )
    _, text = process.communicate(timeout=PATIENCE)
    (line,) = text.decode().splitlines()
    assert line.startswith("autoip: ")
    return process.returncode, line


@pytest.mark.parametrize("files", range(8, 15))
def test_few_descriptors(host: Namespace, folder: Path, files: int) -> None:
    """The daemon does not come as far as its first interface."""
    status, line = fails(host, folder, "prlimit", f"--nofile={files}", "--")
    assert status == 1
    assert "Too many open files" in line or "EMFILE" in line


@pytest.mark.parametrize("words", ["run eth0", "run --hook eth0", "status", "stop eth0"])
def test_without_proc(host: Namespace, folder: Path, words: str) -> None:
    script = 'mount -t tmpfs none /proc && exec "$@"'
    status, line = fails(host, folder, "unshare", "--mount", "sh", "-c", script, "sh", words=words)
    assert (status, line.rpartition("; ")[2]) == (1, "mount /proc")


@pytest.mark.parametrize("below", ["", "x"])
def test_loops_of_links(host: Namespace, folder: Path, below: str) -> None:
    loop = folder / "loop"
    loop.symlink_to("loop")
    for words, expected in (
        ("run eth0", 4),
        ("stop eth0", 1),
        (f"run --config {loop / below} eth0", 4),
    ):
        status, line = fails(host, loop / below, words=words)
        assert (status, line.rpartition(": ")[2]) == (expected, "Too many levels of symbolic links")
