"""Root and the service's user with the same directories, each with real ids and its privileges given up."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from autoip.kernel import capabilities

USER = 62345
"""Stands for the user `autoip`, who need not exist here."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for users")

PROLOGUE = f"""
import os, pwd, sys
from ipaddress import IPv4Address
from pathlib import Path
from autoip.kernel import capabilities
from autoip.errors import AlreadyRunning, NoPermission, StateProblem
from autoip.daemon.lock_file import LockFile
from autoip.daemon.address_store import AddressStore
where, state, secret = map(Path, sys.argv[1:])
MAC = bytes(6)
def named(name):
    assert name == "autoip"
    return pwd.struct_passwd(("autoip", "x", {USER}, {USER}, "", "/", "/bin/false"))
def attempt(interface="eth0"):
    try:
        return LockFile.acquire(where, interface)
    except (AlreadyRunning, NoPermission) as problem:
        return f"{{type(problem).__name__}}: {{problem}}"
"""
IDENTITY = {
    "root": """
pwd.getpwnam = named
capabilities.share_with_service([where, state])
capabilities.limit()
""",
    "service": f"""
os.setgroups([])
os.setresgid({USER}, {USER}, {USER})
os.setresuid({USER}, {USER}, {USER})
""",
    "root without that user": "capabilities.limit()\n",
    "root who may not change ids": """
pwd.getpwnam = named
def forbidden(*_):
    raise PermissionError
os.setresgid = forbidden
capabilities.share_with_service([where, state])
capabilities.limit()
""",
}
HOLD = """
held = attempt()
held.hold(7, IPv4Address("169.254.20.20"))
print(os.getpid(), flush=True)
sys.stdin.read()
"""
BOTH = pytest.mark.parametrize(("first", "second"), [("root", "service"), ("service", "root")])


@pytest.fixture
def folder() -> Iterator[Path]:
    """Every user may enter it, unlike pytest's own; it has what is root's alone."""
    path = Path(f"/tmp/autoip-test-{secrets.token_hex(8)}")
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    (path / "secret").write_text("precious")
    (path / "secret").chmod(0o600)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def made_by_manager(folder: Path) -> None:
    """The directories as the service manager makes them for the service."""
    for name in ("run", "state"):
        (folder / name).mkdir(mode=0o755)
        os.chown(folder / name, USER, USER)


def command(folder: Path, who: str, code: str) -> list[str]:
    words = [str(folder / name) for name in ("run", "state", "secret")]
    return [sys.executable, "-c", PROLOGUE + IDENTITY[who] + code, *words]


def output(folder: Path, who: str, code: str) -> str:
    """What the code prints, run to its end."""
    done = subprocess.run(command(folder, who, code), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def holder(stack: ExitStack, folder: Path, who: str) -> subprocess.Popen[str]:
    """A process that has the lock of eth0 and an address, until it is killed."""
    running = stack.enter_context(
        subprocess.Popen(
            command(folder, who, HOLD), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    )
    stack.callback(running.kill)
    assert running.stdout is not None
    assert running.stdout.readline() == f"{running.pid}\n"
    return running


@pytest.mark.parametrize("order", ["service first", "root first"])
@BOTH
def test_one_at_a_time(folder: Path, first: str, second: str, order: str) -> None:
    """The second one is refused, with the pid of the first; after its crash it learns of the address."""
    if order == "service first":
        made_by_manager(folder)
    else:  # makes the directories
        assert output(folder, "root", "attempt().release()") == ""
    with ExitStack() as stack:
        running = holder(stack, folder, first)
        told = output(folder, second, "print(attempt())")
        assert told.startswith("AlreadyRunning") and told.endswith(f"(pid {running.pid})")
        assert "object" in output(folder, second, "print(attempt('eth1'))")
        running.kill()
        running.wait()
        left = output(folder, second, "held = attempt(); print(held.previous); held.release()")
        assert "index=7" in left and "169.254.20.20" in left
    # eth1's process ended without `release`.
    assert [path.name.partition("-")[2] for path in (folder / "run").iterdir()] == ["eth1.lock"]


def test_all_files_are_the_service_users(folder: Path) -> None:
    """What root makes, the directories too; nobody else may open a lock file."""
    code = "held = attempt(); AddressStore(state).save(MAC, IPv4Address('169.254.7.7'), 'eth0')"
    output(folder, "root", code)
    for directory, mode in (("run", 0o600), ("state", 0o644)):
        assert (folder / directory).stat().st_uid == USER
        assert stat.S_IMODE((folder / directory).stat().st_mode) == 0o755
        [path] = (folder / directory).iterdir()
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (USER, USER)
        assert stat.S_IMODE(status.st_mode) == mode


@BOTH
def test_saved_address(folder: Path, first: str, second: str) -> None:
    """The other one finds it, also with the service's umask, and replaces it."""
    made_by_manager(folder)
    save = "os.umask(0o077); AddressStore(state).save(MAC, IPv4Address('169.254.7.{}'), 'eth0')"
    output(folder, first, save.format(7))
    assert output(folder, second, "print(AddressStore(state).load(MAC))") == "169.254.7.7"
    output(folder, second, save.format(8))
    assert output(folder, first, "print(AddressStore(state).load(MAC))") == "169.254.7.8"


def test_root_can_be_led_nowhere(folder: Path) -> None:
    """In a directory of the service's user root does nothing that this user may not do."""
    made_by_manager(folder)
    code = """
def tried(action):
    try:
        action()
    except OSError as problem:
        return type(problem).__name__
    return "done"
actions = (lambda: open(secret), lambda: os.chmod(secret, 0o666), lambda: os.unlink(secret),
           lambda: os.rename(secret, where / "x"), lambda: os.mkdir(secret.parent / "x"))
with capabilities.as_owner(where):
    print(*map(tried, actions))
print(*map(tried, actions[:2]))
with capabilities.as_owner(secret.parent):
    print(tried(actions[0]))
"""
    # Once it is over, root has its own files again; in a directory of its own it always has.
    denied = " ".join(["PermissionError"] * 5)
    assert output(folder, "root", code) == f"{denied}\ndone done\ndone"


def test_planted_files_are_refused(folder: Path) -> None:
    """A link of the service user's in the place of a lock file or of the saved address."""
    made_by_manager(folder)
    lock = folder / "run" / f"{os.stat('/proc/self/ns/net').st_ino}-eth0.lock"
    saved = folder / "state" / ("00" * 6 + ".json")
    for path in (lock, saved):
        path.symlink_to(folder / "secret")
        os.chown(path, USER, USER, follow_symlinks=False)
    assert "symbolic link" in output(folder, "root", "print(attempt())")
    output(folder, "root", "AddressStore(state).save(MAC, IPv4Address('169.254.7.7'), 'eth0')")
    assert not saved.is_symlink()
    assert (folder / "secret").read_text() == "precious"


@pytest.mark.parametrize("who", ["root without that user", "root who may not change ids"])
def test_root_without_those_ids(folder: Path, who: str) -> None:
    """A directory of its own works, the service user's is refused."""
    assert "object" in output(folder, who, "print(attempt())")
    assert (folder / "run").stat().st_uid == 0
    os.chown(folder / "run", USER, USER)
    told = output(folder, who, "print(attempt('eth1'))")
    assert told.startswith("NoPermission") and f"belongs to user {USER}" in told


def test_a_directory_that_exists_is_left_as_it_is(folder: Path) -> None:
    (folder / "run").mkdir(mode=0o700)
    assert "object" in output(folder, "root", "print(attempt())")
    status = (folder / "run").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o700)


def test_another_user_shares_nothing(folder: Path) -> None:
    assert output(folder, "service", "print(*sorted(capabilities.trusted_users()))") == f"0 {USER}"
    assert capabilities.trusted_users() == {0}
