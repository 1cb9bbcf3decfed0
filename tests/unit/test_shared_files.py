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
from itertools import permutations
from pathlib import Path

import pytest

from autoip.kernel import capabilities, users

USER = 62345
NOBODY = 65534
"""Stands for the user `autoip`, who need not exist here."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for users")

PROLOGUE = f"""
import grp, os, pwd, sys
from ipaddress import IPv4Address
from pathlib import Path
from autoip.kernel import capabilities, users
from autoip.errors import AlreadyRunning, NoPermission, StateProblem
from autoip.daemon.lock_file import LockFile
from autoip.daemon.address_store import AddressStore
where, state, secret = map(Path, sys.argv[1:])
MAC = bytes(6)
def named(name):
    number = {{"autoip": {USER}, "nobody": {NOBODY}, "root": 0}}[name]
    return pwd.struct_passwd((name, "x", number, number, "", "/", "/bin/false"))
def unnamed(name):
    if name != "root":
        raise KeyError(name)
    return pwd.struct_passwd((name, "x", 0, 0, "", "/", "/bin/false"))
def become(name=None):
    problem = users.become(name, [where, state])
    assert problem is None, problem
    capabilities.limit()
def attempt(interface="eth0"):
    try:
        return LockFile.acquire(where, interface)
    except (AlreadyRunning, NoPermission) as problem:
        return f"{{type(problem).__name__}}: {{problem}}"
"""
IDENTITY = {
    "by hand": "pwd.getpwnam = named; become()",
    "stays root": "pwd.getpwnam = named; become('root')",
    "without that user": "pwd.getpwnam = unnamed; become()",
    "without that user, with a bus": """
pwd.getpwnam = lambda name: unnamed(name) if name == "autoip" else named(name)
users.SYSTEM_BUS = "/"
become()
""",
    "service": f"""
os.setgroups([])
os.setresgid({USER}, {USER}, {USER})
os.setresuid({USER}, {USER}, {USER})
""",
    "nobody yet": "",
    "may not change ids": """
pwd.getpwnam = named
def forbidden(*_):
    raise PermissionError(1, os.strerror(1))
os.setresgid = forbidden
print(users.become(None, [where, state]))
capabilities.limit()
""",
}
HOLD = """
held = attempt()
held.hold(7, IPv4Address("169.254.20.20"))
print(os.getpid(), flush=True)
sys.stdin.read()
"""
BOTH = pytest.mark.parametrize(
    ("first", "second"),
    [(first, second) for first, second in permutations(("by hand", "stays root", "service"), 2)],
)


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
    return [sys.executable, "-c", f"{PROLOGUE}{IDENTITY[who]}\n{code}", *words]


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
        assert output(folder, "stays root", "attempt().release()") == ""
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


@pytest.mark.parametrize("who", ["by hand", "stays root"])
def test_all_files_are_the_service_users(folder: Path, who: str) -> None:
    """What root makes, the directories too; nobody else may open a lock file."""
    code = "held = attempt(); AddressStore(state).save(MAC, IPv4Address('169.254.7.7'), 'eth0')"
    output(folder, who, code)
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
    assert output(folder, "stays root", code) == f"{denied}\ndone done\ndone"


def test_planted_files_are_refused(folder: Path) -> None:
    """A link of the service user's in the place of a lock file or of the saved address."""
    made_by_manager(folder)
    lock = folder / "run" / f"{os.stat('/proc/self/ns/net').st_ino}-eth0.lock"
    saved = folder / "state" / ("00" * 6 + ".json")
    for path in (lock, saved):
        path.symlink_to(folder / "secret")
        os.chown(path, USER, USER, follow_symlinks=False)
    assert "symbolic link" in output(folder, "stays root", "print(attempt())")
    output(
        folder, "stays root", "AddressStore(state).save(MAC, IPv4Address('169.254.7.7'), 'eth0')"
    )
    assert not saved.is_symlink()
    assert (folder / "secret").read_text() == "precious"


def test_root_may_not_change_ids(folder: Path) -> None:
    """It stays root and says so; a directory of its own works, the service user's is refused."""
    said, lock = output(folder, "may not change ids", "print(attempt())").splitlines()
    assert "cannot become user" in said
    assert "object" in lock
    assert (folder / "run").stat().st_uid == 0
    os.chown(folder / "run", USER, USER)
    told = output(folder, "may not change ids", "print(attempt('eth1'))")
    assert "NoPermission" in told and f"belongs to user {USER}" in told


@pytest.mark.parametrize(
    ("uid_map", "reported"), [("0 1000 1", False), ("0 0 1", True), ("0 0 4294967295", True)]
)
def test_root_of_a_namespace_without_other_users(
    folder: Path, uid_map: str, reported: bool
) -> None:
    """Root that is an ordinary user outside has nothing to give up, so that it stays root inside is not reported."""
    (folder / "uid_map").write_text(f"  {uid_map}\n")
    code = f"""
def unmapped(*_):
    raise OSError(22, os.strerror(22))
pwd.getpwnam, os.setresgid = named, unmapped
users.UID_MAP = Path({str(folder / "uid_map")!r})
print(users.become(None, [where, state]))
"""
    said = output(folder, "nobody yet", code)
    assert ("cannot become user" in said) == reported
    assert (said == "None") != reported


IDS = "print(*os.getresuid(), *os.getresgid(), os.getgroups())"


def test_ids_of_their_own(folder: Path) -> None:
    """All of them, and no further group; whoever has no user `autoip` takes ids without a name."""
    assert output(folder, "by hand", IDS) == f"{USER} " * 6 + "[]"
    spare = users.SPARE_IDS[0]
    assert output(folder, "without that user", IDS) == f"{spare} " * 6 + "[]"
    # A bus refuses ids without a name.
    assert output(folder, "without that user, with a bus", IDS) == f"{NOBODY} " * 6 + "[]"
    assert output(folder, "stays root", "print(*os.getresuid())") == f"0 0 {USER}"


def test_ids_that_have_a_name_are_left_alone(folder: Path) -> None:
    first = users.SPARE_IDS[0]
    code = f"""
pwd.getpwnam = unnamed
pwd.getpwuid = {{{first}: 1}}.__getitem__
grp.getgrgid = {{{first + 1}: 1}}.__getitem__
become()
print(os.getuid(), os.getgid())
"""
    assert output(folder, "nobody yet", code) == f"{first + 2} {first + 2}"


def test_the_user_comes_later(folder: Path) -> None:
    """What ids without a name have left is the service's from then on, and so is what root's has made before."""
    for who, owner in (
        ("without that user", users.SPARE_IDS[0]),
        ("without that user, with a bus", NOBODY),
        ("by hand", USER),
    ):
        output(
            folder,
            who,
            "held = attempt(); AddressStore(state).save(MAC, IPv4Address('169.254.7.7'), 'eth0')",
        )
        paths = [folder / "run", folder / "state", *folder.glob("run/*"), *folder.glob("state/*")]
        assert len(paths) == 4
        assert {path.stat().st_uid for path in paths} == {owner}


def test_a_directory_with_other_files_is_left_as_it_is(folder: Path) -> None:
    """`RUNTIME_DIRECTORY=/tmp`: it is not given to anybody."""
    (folder / "run").mkdir()
    (folder / "run" / "passwd").touch()
    told = output(folder, "by hand", "print(attempt())")
    assert "NoPermission" in told
    assert (folder / "run").stat().st_uid == (folder / "run" / "passwd").stat().st_uid == 0


def test_what_another_owner_has_is_not_given(folder: Path) -> None:
    """A hard link to root's file, by whoever had the directory before: the file stays root's."""
    (folder / "run").mkdir(mode=0o755)
    os.link(folder / "secret", folder / "run" / "1-eth0.lock")
    (folder / "run" / "1-eth1.lock").symlink_to(folder / "secret")
    os.chown(folder / "run", users.SPARE_IDS[0], users.SPARE_IDS[0])
    output(folder, "by hand", "")
    assert (folder / "run").stat().st_uid == USER
    assert (folder / "secret").stat().st_uid == 0


def test_another_user_shares_nothing(folder: Path) -> None:
    assert output(folder, "service", "print(*sorted(capabilities.trusted_users()))") == f"0 {USER}"
    assert capabilities.trusted_users() == {0}
