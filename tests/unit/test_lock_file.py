"""autoip.daemon.lock_file: one instance for an interface and network namespace (if-one)."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from autoip.daemon import lock_file
from autoip.daemon.lock_file import Held, LockFile
from autoip.errors import AlreadyRunning, NoPermission
from autoip.paths import network_namespace

ADDRESS = IPv4Address("169.254.20.20")
OTHER = IPv4Address("169.254.30.30")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces and users")
needs_ip = pytest.mark.skipif(
    shutil.which("ip") is None, reason="needs iproute2 (Debian: iproute2)"
)

PROLOGUE = """
import os, sys, time
from ipaddress import IPv4Address
from pathlib import Path
from autoip.errors import AlreadyRunning, NoPermission
from autoip.daemon.lock_file import Held, LockFile
where = Path(sys.argv[1])
def attempt(interface="eth0"):
    try:
        return LockFile.acquire(where, interface)
    except (AlreadyRunning, NoPermission) as problem:
        return f"{type(problem).__name__}: {problem}"
"""


@contextmanager
def process(directory: Path, code: str, *before: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `code` and then waits, once it has printed a line."""
    command = [*before, sys.executable, "-c", PROLOGUE + code, str(directory)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def line(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    return running.stdout.readline().rstrip("\n")


HOLD = """
held = attempt()
held.hold(7, IPv4Address("169.254.20.20"))
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def file_of(directory: Path, interface: str = "eth0") -> Path:
    return directory / f"{network_namespace()}-{interface}.lock"


def test_if_one_within_a_process(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "autoip"
    before = sorted(os.listdir("/proc/self/fd"))
    old = os.umask(0o077)
    try:
        first = LockFile.acquire(directory, "eth0")
    finally:
        os.umask(old)
    assert first.warning is None
    assert first.previous is None
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    assert stat.S_IMODE(file_of(directory).stat().st_mode) == 0o600
    with pytest.raises(AlreadyRunning) as refused:
        LockFile.acquire(directory, "eth0")
    assert (refused.value.interface, refused.value.pid) == ("eth0", os.getpid())
    with LockFile.acquire(directory, "eth1") as other:
        assert other.warning is None
    first.release()
    first.release()
    assert os.listdir(directory) == []
    assert sorted(os.listdir("/proc/self/fd")) == before
    LockFile.acquire(directory, "eth0").release()


@pytest.mark.parametrize("name", ["é", ".x", "a b"[::2], "\udcff\udcfe", "v23456789012345", "'$;"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    with LockFile.acquire(tmp_path, name):
        assert os.listdir(tmp_path) == [file_of(tmp_path, name).name]
        with pytest.raises(AlreadyRunning):
            LockFile.acquire(tmp_path, name)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a\0b", "v234567890123456", "éééééééé"])
def test_no_interface_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        LockFile.acquire(tmp_path, name)
    assert os.listdir(tmp_path) == []


def test_if_one_from_another_process(tmp_path: Path) -> None:
    with process(tmp_path, HOLD) as first:
        pid = int(line(first))
        assert pid == first.pid
        with pytest.raises(AlreadyRunning) as refused:
            LockFile.acquire(tmp_path, "eth0")
        assert refused.value.pid == pid
        assert f"pid {pid}" in str(refused.value)


def test_a_crash_does_not_block(tmp_path: Path) -> None:
    with process(tmp_path, HOLD) as first:
        line(first)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert file_of(tmp_path).exists()
        # A crash before anything of our own is on the interface passes the knowledge on.
        with process(
            tmp_path, "held = attempt()\nprint(os.getpid(), flush=True)\nsys.stdin.read()\n"
        ) as second:
            assert int(line(second)) == second.pid
            second.send_signal(signal.SIGKILL)
            second.wait()
        with LockFile.acquire(tmp_path, "eth0") as third:
            assert third.warning is None
            assert third.previous == Held(7, ADDRESS)
            third.drop()
            with pytest.raises(AlreadyRunning) as refused:
                LockFile.acquire(tmp_path, "eth0")
            assert refused.value.pid == os.getpid()
        assert os.listdir(tmp_path) == []
        with LockFile.acquire(tmp_path, "eth0") as fourth:
            assert fourth.previous is None


def test_hold_and_drop_are_what_the_next_one_learns(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    with LockFile.acquire(tmp_path, "eth0") as first:
        inode = path.stat().st_ino
        for held in (Held(2**31 - 1, IPv4Address("169.254.254.255")), Held(1, OTHER)):
            first.hold(held.index, held.address)
            assert lock_file._parse(path.read_bytes()) == (os.getpid(), held)
        first.drop()
        assert lock_file._parse(path.read_bytes()) == (os.getpid(), None)
        assert path.stat().st_ino == inode
        assert path.stat().st_size == lock_file.RECORD_SIZE


def sealed(text: str) -> bytes:
    """Return a record with this text and its check sum."""
    body = text.encode().ljust(lock_file.RECORD_SIZE - 10)
    return body + b" %08x\n" % zlib.crc32(body)


def test_a_record_is_text_and_its_check_sum() -> None:
    whole = sealed(f"autoip 1 pid=7 index=3 address={ADDRESS}")
    assert lock_file._format(7, Held(3, ADDRESS)) == whole
    assert lock_file._parse(whole) == (7, Held(3, ADDRESS))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 128,
        b"\xff" * 128,
        b"1234\n",
        b"x" * 100000,
        lock_file._format(1, Held(1, ADDRESS))[:-1],
        lock_file._format(1, Held(1, ADDRESS)).replace(b"index=1", b"index=2"),
        sealed(f"autoip 2 pid=1 index=1 address={ADDRESS}"),
        sealed("autoip 1 pid=1 index=1 address=192.0.2.1"),
        sealed(f"autoip 1 pid=1 index=0 address={ADDRESS}"),
        sealed(f"autoip 1 pid=1 index={2**31} address={ADDRESS}"),
        sealed("autoip 1 pid=1 index=1 address=nowhere"),
        sealed("autoip 1 pid=1 index=1"),
    ],
)
def test_damaged_records(tmp_path: Path, content: bytes) -> None:
    path = file_of(tmp_path)
    path.write_bytes(content)
    path.chmod(0o600)
    with LockFile.acquire(tmp_path, "eth0") as held:
        assert held.previous is None
        assert held.warning is None
        assert lock_file._parse(path.read_bytes()[:128]) == (os.getpid(), None)


def test_the_pid_survives_a_rewrite_in_progress(tmp_path: Path) -> None:
    """One process rewrites the record without pause; another one is told the pid every time."""
    code = """
held = attempt()
print("ready", flush=True)
while True:
    for n in range(100):
        held.hold(n, IPv4Address(f"169.254.20.{n}"))
        held.drop()
"""
    with process(tmp_path, code) as first:
        assert line(first) == "ready"
        for _ in range(2000):
            with pytest.raises(AlreadyRunning) as refused:
                LockFile.acquire(tmp_path, "eth0")
            assert refused.value.pid == first.pid


def test_the_record_of_a_crashed_one_is_not_taken_for_the_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is taken, but the record is still of the process that crashed before."""
    with subprocess.Popen(["true"]) as dead:
        pass
    path = file_of(tmp_path)
    with LockFile.acquire(tmp_path, "eth0"):
        ours = path.read_bytes()
        path.write_bytes(lock_file._format(dead.pid, None))
        pauses: list[float] = []

        def later(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                path.write_bytes(ours)

        monkeypatch.setattr("autoip.daemon.lock_file.time.sleep", later)
        with pytest.raises(AlreadyRunning) as refused:
            LockFile.acquire(tmp_path, "eth0")
        assert refused.value.pid == os.getpid()
        assert len(pauses) == 3


RACE = """
count, rounds = int(sys.argv[2]), int(sys.argv[3])

def race():
    inside = where / "inside"
    won = 0
    while won < rounds:
        found = attempt()
        if isinstance(found, str):
            assert found.startswith("AlreadyRunning"), found
            time.sleep(0.002)
            continue
        assert found.warning is None, found.warning
        # Fails if another one is inside.
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        time.sleep(0.0005)
        os.unlink(inside)
        won += 1
        # Every other time by ending, not by releasing.
        if won < rounds:
            found.release()

# All begin when the last of them is there: a read ends when nobody has the other end any more.
start, go = os.pipe()
racers = []
for _ in range(count):
    racers.append(os.fork())
    if racers[-1] == 0:
        status = 1
        try:
            os.close(go)
            os.read(start, 1)
            race()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
os.close(go)
print([os.waitpid(racer, 0)[1] for racer in racers])
"""


def test_fifty_racing(tmp_path: Path) -> None:
    """At most one at any time, each gets its turn, and nothing but AlreadyRunning happens."""
    count, rounds = 50, 3
    # Forks of one process: to start Python fifty times takes ten times as long as the race.
    command = [sys.executable, "-c", PROLOGUE + RACE, str(tmp_path), str(count), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{[0] * count}\n"
    assert not (tmp_path / "inside").exists()


def test_removed_between_open_and_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner releases just when we have opened its file: we must not lock a file without name."""
    first = LockFile.acquire(tmp_path, "eth0")
    open_file = lock_file._open_file
    opened: list[int] = []

    def slow(*arguments: Any) -> int:
        file = open_file(*arguments)
        opened.append(os.fstat(file).st_ino)
        if len(opened) == 1:
            first.release()
        return file

    monkeypatch.setattr(lock_file, "_open_file", slow)
    with LockFile.acquire(tmp_path, "eth0"):
        assert len(opened) == 2
        assert file_of(tmp_path).exists()
        monkeypatch.undo()
        with pytest.raises(AlreadyRunning):
            LockFile.acquire(tmp_path, "eth0")


def test_replaced_between_open_and_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As before, and a third instance is there already."""
    first = LockFile.acquire(tmp_path, "eth0")
    third: list[LockFile] = []
    open_file = lock_file._open_file

    def slow(*arguments: Any) -> int:
        file = open_file(*arguments)
        if not third:
            first.release()
            monkeypatch.undo()
            third.append(LockFile.acquire(tmp_path, "eth0"))
        return file

    monkeypatch.setattr(lock_file, "_open_file", slow)
    with pytest.raises(AlreadyRunning) as refused:
        LockFile.acquire(tmp_path, "eth0")
    assert refused.value.pid == os.getpid()
    third[0].release()


def test_planted_files_are_refused(tmp_path: Path) -> None:
    aim = tmp_path / "aim"
    aim.write_text("precious")
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(0o755)  # a umask of 002 would have it refused for its mode
    path = file_of(directory)

    def plant(mode: int) -> None:
        os.mknod(path, 0o600 | stat.S_IFREG)
        path.chmod(mode)

    cases: tuple[tuple[Callable[[], None], str], ...] = (
        (lambda: path.symlink_to(aim), "symbolic link"),
        (lambda: path.symlink_to(tmp_path / "nowhere"), "symbolic link"),
        (lambda: os.link(aim, path), "another name"),
        (lambda: os.mkfifo(path), "regular"),
        *(
            (partial(plant, mode), "by others")
            for mode in (0o640, 0o620, 0o610, 0o604, 0o602, 0o601)
        ),
    )
    for make, text in cases:
        make()
        with pytest.raises(NoPermission, match=text):
            LockFile.acquire(directory, "eth0")
        assert aim.read_text() == "precious"
        assert not (tmp_path / "nowhere").exists()
        path.unlink()
    path.mkdir()
    with pytest.raises(NoPermission):
        LockFile.acquire(directory, "eth0")


def test_a_planted_file_is_neither_followed_nor_waited_for(tmp_path: Path) -> None:
    """Root reads the records in the directory of the service's user."""
    aim, pipe, link = tmp_path / "aim", tmp_path / "pipe", tmp_path / "link"
    aim.write_bytes(sealed(f"autoip 1 pid=1 index=1 address={ADDRESS}"))
    os.mkfifo(pipe)
    link.symlink_to(aim)
    handle = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    found: list[Held | None] = []
    reader = threading.Thread(
        target=lambda: found.append(lock_file.recorded(handle, "pipe")), daemon=True
    )
    reader.start()
    reader.join(10)
    assert found == [None]
    assert lock_file.recorded(handle, "aim") == Held(1, ADDRESS)
    with pytest.raises(OSError, match="symbolic link"):
        lock_file.recorded(handle, "link")
    os.close(handle)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o757])
def test_directories_that_others_can_write_are_refused(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(mode)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(NoPermission, match="written by others"):
        LockFile.acquire(directory, "eth0")
    assert os.listdir(directory) == []
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["EROFS", "ENOSPC", "EDQUOT", "EIO", "EMFILE", "ENFILE"])
def test_without_a_file_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    number: int = getattr(errno, name)

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock_file, "_open_file", refuse)
    before = sorted(os.listdir("/proc/self/fd"))
    held = LockFile.acquire(tmp_path, "eth0")
    assert held.warning == f"no lock file {file_of(tmp_path)}: {os.strerror(number)}"
    held.hold(1, ADDRESS)
    held.release()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NoPermission):
            LockFile.acquire(path, "eth0")


@needs_root
def test_a_file_or_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    path.write_bytes(b"")
    path.chmod(0o600)
    os.chown(path, 65534, 65534)
    with pytest.raises(NoPermission, match="user 65534"):
        LockFile.acquire(tmp_path, "eth0")
    path.unlink()
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(NoPermission, match="user 65534"):
        LockFile.acquire(tmp_path, "eth0")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory whose parents every user may enter, unlike pytest's own."""
    path = Path(f"/tmp/autoip-test-{secrets.token_hex(8)}")
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@needs_root
def test_another_user_can_do_nothing(public: Path) -> None:
    """Neither lock our file, nor replace it, nor put another one in our way."""
    hostile = """
import fcntl
name = sys.argv[2]
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
def tried(action):
    try:
        action()
    except OSError as problem:
        return type(problem).__name__
    return "done"
for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
    print(tried(lambda: fcntl.flock(os.open(where / name, flags), fcntl.LOCK_EX)))
print(tried(lambda: os.unlink(where / name)))
print(tried(lambda: os.rename(where / name, where / "x")))
print(tried(lambda: os.symlink("/etc/passwd", where / "y")))
print(tried(lambda: os.link(where / name, where / "z")))
print(tried(lambda: os.close(os.open(where / "new", os.O_CREAT | os.O_RDWR))))
print(tried(lambda: fcntl.flock(os.open(where, os.O_RDONLY), fcntl.LOCK_EX)))
print(attempt())
print(attempt("eth1"))
"""
    with process(public, HOLD) as first:
        line(first)
        (path,) = public.iterdir()
        before = path.stat()
        done = subprocess.run(
            [sys.executable, "-c", PROLOGUE + hostile, str(public), path.name],
            check=True,
            capture_output=True,
            text=True,
        )
        results = done.stdout.splitlines()
        assert results[:8] == ["PermissionError"] * 8
        # To lock the directory is possible, and means nothing.
        assert results[8] == "done"
        assert results[9].startswith("NoPermission")
        assert results[10].startswith("NoPermission")
        assert list(public.iterdir()) == [path]
        assert path.stat().st_ino == before.st_ino
        assert path.read_bytes().startswith(b"autoip 1 pid=%d " % first.pid)
        assert first.poll() is None
        first.send_signal(signal.SIGKILL)
        first.wait()
    LockFile.acquire(public, "eth0").release()


@needs_root
def test_without_privileges_in_a_directory_of_ones_own(public: Path) -> None:
    """As a service with User= and RuntimeDirectory=."""
    os.chown(public, 65534, 65534)
    code = """
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
print(type(attempt()).__name__, flush=True)
"""
    with process(public, code) as first:
        assert line(first) == "LockFile"


@needs_root
@needs_ip
def test_two_network_namespaces(public: Path) -> None:
    names = [f"autoip-{os.getpid()}-{secrets.token_hex(4)}" for _ in range(2)]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        one, two = (("ip", "netns", "exec", name) for name in names)
        with process(public, HOLD, *one) as first, process(public, HOLD, *two) as second:
            assert int(line(first)) == first.pid
            assert int(line(second)) == second.pid
            assert len(list(public.iterdir())) == 2
            with process(public, "print(attempt(), flush=True)", *two) as third:
                assert line(third).startswith("AlreadyRunning")
            with LockFile.acquire(public, "eth0"):
                assert len(list(public.iterdir())) == 3
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def in_mount(options: str, body: str) -> None:
    """Run `body` in a process that has a tmpfs with `options` at /mnt, in a mount namespace."""
    script = f'mount -t tmpfs -o {options} none /mnt && exec "$@"'
    code = "import errno, subprocess\n" + PROLOGUE + body
    command = ["unshare", "-m", "sh", "-ec", script, "sh", sys.executable, "-c", code, "/mnt/run"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_root
def test_read_only_file_system() -> None:
    in_mount(
        "size=64k",
        """
where.mkdir(mode=0o755)
subprocess.run(["mount", "-o", "remount,ro", "/mnt"], check=True)
for where in (where, Path("/mnt/missing/below")):
    before = os.listdir("/proc/self/fd")
    held = attempt()
    assert "Read-only file system" in held.warning, held
    assert held.previous is None
    held.hold(1, IPv4Address("169.254.20.20"))
    held.drop()
    held.release()
    assert len(os.listdir("/proc/self/fd")) == len(before)
""",
    )


@needs_root
def test_full_file_system() -> None:
    in_mount(
        "nr_inodes=2",
        """
held = attempt()
assert "No space left" in held.warning, held
held.hold(1, IPv4Address("169.254.20.20"))
held.release()
""",
    )
    # Room for a file, but none for what is in it: the lock is there all the same.
    in_mount(
        "size=64k",
        """
try:
    with open("/mnt/fill", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
except OSError as full:
    assert full.errno == errno.ENOSPC
held = attempt()
assert "No space left" in held.warning, held
refused = attempt()
assert refused.startswith("AlreadyRunning: eth0"), refused
os.unlink("/mnt/fill")
held.hold(1, IPv4Address("169.254.20.20"))
assert str(os.getpid()) in attempt()
held.release()
assert os.listdir(where) == []
""",
    )


def test_released_from_another_thread(tmp_path: Path) -> None:
    held = LockFile.acquire(tmp_path, "eth0")
    thread = threading.Thread(target=held.release)
    thread.start()
    thread.join()
    LockFile.acquire(tmp_path, "eth0").release()
