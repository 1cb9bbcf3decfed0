"""lab.roots: roots are made once, and machines leave nothing. Debian's roots are tools/readme.py's."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from lab import LabError, roots
from lab.roots import Bare, make_root
from tests.require import requires_root

from .helpers import wait_until

HERE = Path("/")
"""This machine's own root stands for a Debian one: what is written in an overlay of it is nowhere."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What was made, by a stand-in for debootstrap."""
    calls: list[tuple[str, ...]] = []

    def make(suite: str, packages: list[str], root: Path, base: Path | None) -> None:
        calls.append((suite, *packages))
        assert (base is None) == (not packages)
        time.sleep(0.05)
        root.mkdir(exist_ok=True)
        os.utime(root)

    monkeypatch.setattr(roots, "_make", make)
    return calls


def test_made_once(made: list[tuple[str, ...]], tmp_path: Path) -> None:
    for _ in range(2):
        first = make_root("bookworm", ["sudo", "git"], tmp_path)
        assert first == make_root("bookworm", ["git", "sudo", "git"], tmp_path)
    assert made == [("bookworm",), ("bookworm", "git", "sudo")]
    assert make_root("bookworm", ["git"], tmp_path) != first
    assert make_root("trixie", [], tmp_path) != make_root("bookworm", [], tmp_path)
    assert made[2:] == [("bookworm", "git"), ("trixie",)]


def test_those_who_ask_at_once_wait_for_one(made: list[tuple[str, ...]], tmp_path: Path) -> None:
    threads = [threading.Thread(target=make_root, args=("trixie", (), tmp_path)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert made == [("trixie",)]


def test_half_made_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(suite: str, root: Path) -> None:
        root.mkdir()
        (root / suite).touch()
        raise LabError("no network")

    monkeypatch.setattr(roots, "_bootstrap", interrupted)
    for _ in range(2):
        with pytest.raises(LabError, match="no network"):
            make_root("trixie", folder=tmp_path)
    monkeypatch.setattr(roots, "_bootstrap", lambda suite, root: root.mkdir())
    assert os.listdir(make_root("trixie", folder=tmp_path)) == []


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A name for this machine's root beside which the lock can be."""
    link = tmp_path / "base"
    link.symlink_to(HERE)
    return link


@requires_root
def test_what_is_written_goes_with_the_machine(base: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("text")
    with Bare(base, source) as machine:
        assert machine.run("cat /source/file").stdout == "text"
        with pytest.raises(LabError, match="Read-only"):
            machine.run("touch /source/other")
        machine.run("echo >/autoip-was-here; echo >/tmp/autoip-was-here; hostname elsewhere")
        assert (machine.root / "autoip-was-here").exists()
        assert machine.run("pwd; ls /tmp").stdout.split() == ["/root", "autoip-was-here"]
        pid = machine.pid
    for name in ("/autoip-was-here", "/tmp/autoip-was-here", f"/proc/{pid}"):
        assert not Path(name).exists(), name
    assert os.uname().nodename != "elsewhere"


@requires_root
def test_processes_are_found_and_end_with_the_machine(base: Path) -> None:
    with Bare(base) as machine:
        assert machine.processes() == []
        machine.run("sleep 4711 & sleep 0")
        wait_until(lambda: machine.processes() == ["sleep 4711"], "the shell's child to be sleep")
        with pytest.raises(LabError, match="not done after 1 s"):
            machine.run("echo early; sleep 4712", timeout=1)
    running = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
            running.append((entry / "cmdline").read_bytes())
    assert not [line for line in running if b"\x00471" in line]


@requires_root
def test_a_root_in_use_is_not_replaced(base: Path) -> None:
    with Bare(base), open(f"{base}.lock", "w") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
