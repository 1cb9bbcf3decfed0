"""Files of interfaces and network namespaces that are gone leave the run-time directory at the next start."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from autoip.control.protocol import socket_name
from autoip.daemon import lock_file, stale_files
from autoip.daemon.lock_file import Held, LockFile
from lab import Namespace, Port

from .conftest import MakeDaemon
from .helpers import NETNS, claim

pytestmark = NETNS

A = IPv4Address("169.254.7.7")
GONE = 4294967295
"""The inode of no network namespace."""


def crashed(folder: Path, namespace: int, interface: str, index: int = 0) -> tuple[Path, Path]:
    """Make what a crash leaves; with an index, of an instance that had an address. Return lock file and socket."""
    folder.mkdir(mode=0o755, exist_ok=True)
    lock = folder / f"{namespace}-{interface}.lock"
    lock.write_bytes(lock_file._format(4711, Held(index, A) if index else None))
    lock.chmod(0o600)
    control = folder / socket_name(namespace, interface)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(control))
    return lock, control


def test_at_the_start(port: Port, make_autoip: MakeDaemon) -> None:
    daemon = make_autoip(port, "--delay", "50")
    folder = Path(daemon.env["RUNTIME_DIRECTORY"])
    gone = crashed(folder, GONE, "eth0", 2) + crashed(folder, port.host.inode, "usb0", 99)
    claim(port, daemon)
    assert [path for path in gone if path.exists()] == []
    assert daemon.stop() == 0


@pytest.fixture
def host(stack: ExitStack) -> Namespace:
    return stack.enter_context(Namespace("host"))


def test_what_stays(host: Namespace, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    host.ip("link add v0 type veth peer name p0")
    index = host.index("v0")
    other = Namespace("other")
    stays = [
        *crashed(tmp_path, host.inode, "v0", index),  # the record for the next instance
        *crashed(tmp_path, host.inode, "before", index),  # renamed
        *crashed(tmp_path, other.inode, "eth0", 2),
    ]
    locked, control = crashed(tmp_path, GONE, "eth1")
    strange = [tmp_path / name for name in ("x.lock", "7-.lock", f"{GONE}-v0.txt")]
    for path in strange:
        path.touch()
    with open(locked, "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        host.call(stale_files.remove, tmp_path)
        there = [*stays, locked, control, *strange]
        assert [path for path in there if not path.exists()] == []
    # Unlocked it is stale; and so is what a namespace had that is gone.
    other.close()
    host.call(stale_files.remove, tmp_path)
    left = {path for path in tmp_path.iterdir() if path not in strange}
    assert left == set(stays[:4])


def test_threads_end_meanwhile(
    host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that was found first, and has ended by the time at which more is asked of it, keeps nothing."""
    tmp_path.chmod(0o755)
    lock, control = crashed(tmp_path, GONE, "eth1")
    real = os.stat

    def stat(path: str, **more: Any) -> os.stat_result:
        if str(path).endswith("/net/dev"):
            raise FileNotFoundError(path)
        return real(path, **more)

    monkeypatch.setattr(os, "stat", stat)
    host.call(stale_files.remove, tmp_path)
    assert not lock.exists() and not control.exists()


def test_links_are_not_followed(host: Namespace, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("x")
    folder = tmp_path / "run"
    folder.mkdir(mode=0o755)
    (folder / f"{GONE}-eth0.lock").symlink_to(precious)
    host.call(stale_files.remove, folder)
    assert precious.read_text() == "x"
    assert os.readlink(folder / f"{GONE}-eth0.lock") == str(precious)


def test_a_living_instance_keeps_its_files(host: Namespace, tmp_path: Path) -> None:
    """Also for an interface that does not exist yet."""
    tmp_path.chmod(0o755)

    def play() -> None:
        with LockFile.acquire(tmp_path, "usb0"):
            stale_files.remove(tmp_path)
            assert len([*tmp_path.iterdir()]) == 1

    host.call(play)
