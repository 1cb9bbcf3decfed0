"""autoip.daemon.daemon.address_store: damaged files, unwritable directories, full disks and power cuts (sel-memory)."""

from __future__ import annotations

import json
import os
import stat
import string
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoip.core.constants import FIRST_CANDIDATE, LAST_CANDIDATE
from autoip.daemon import address_store
from autoip.daemon.address_store import AddressStore
from autoip.errors import StateProblem

MAC = bytes.fromhex("0200000000ab")
NAME = "0200000000ab.json"
ADDRESS = IPv4Address("169.254.20.20")
OTHER = IPv4Address("169.254.30.30")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for mounts and other users")


def record(**changes: Any) -> bytes:
    values = {"version": 1, "address": str(ADDRESS), "interface": "eth0", **changes}
    return json.dumps(values).encode()


def test_sel_memory_round_trip(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    assert AddressStore(directory).load(MAC) is None
    assert not directory.exists()
    old = os.umask(0o077)
    try:
        AddressStore(directory).save(MAC, ADDRESS, "eth0")
    finally:
        os.umask(old)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    assert os.listdir(directory) == [NAME]
    assert AddressStore(directory).load(MAC) == ADDRESS
    assert AddressStore(directory).load(bytes(6)) is None
    AddressStore(directory).save(MAC, OTHER, "eth1")
    assert AddressStore(directory).load(MAC) == OTHER
    assert json.loads((directory / NAME).read_text()) == {
        "version": 1,
        "address": str(OTHER),
        "interface": "eth1",
    }


def test_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    none = AddressStore(None)
    none.save(MAC, ADDRESS, "eth0")
    assert none.load(MAC) is None
    assert os.listdir(tmp_path) == []


def test_nothing_is_written_when_nothing_changes(tmp_path: Path) -> None:
    AddressStore(tmp_path).save(MAC, ADDRESS, "eth0")
    before = (tmp_path / NAME).stat()
    AddressStore(tmp_path).save(MAC, ADDRESS, "eth0")
    assert (tmp_path / NAME).stat().st_ino == before.st_ino
    assert (tmp_path / NAME).stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("mac", [b"", bytes(5), bytes(7), bytes(20)])
def test_mac_of_another_length(tmp_path: Path, mac: bytes) -> None:
    for directory in (tmp_path, None):
        with pytest.raises(ValueError, match="6 bytes"):
            AddressStore(directory).load(mac)
        with pytest.raises(ValueError, match="6 bytes"):
            AddressStore(directory).save(mac, ADDRESS, "eth0")


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("169.254.0.255", False),
        (str(FIRST_CANDIDATE), True),
        (str(LAST_CANDIDATE), True),
        ("169.254.255.0", False),
        ("169.254.169.254", True),
        ("169.253.20.20", False),
        ("169.255.20.20", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("169.254.20.020", False),
        ("169.254.20.20 ", False),
        ("169.254.20", False),
        ("169.254.20.20/16", False),
        ("١٦٩.254.20.20", False),
        ("::ffff:169.254.20.20", False),
        ("", False),
    ],
)
def test_only_candidates_are_returned(tmp_path: Path, text: str, valid: bool) -> None:
    (tmp_path / NAME).write_bytes(record(address=text))
    if valid:
        assert AddressStore(tmp_path).load(MAC) == IPv4Address(text)
        AddressStore(tmp_path / "other").save(MAC, IPv4Address(text), "eth0")
    else:
        with pytest.raises(StateProblem, match=NAME):
            AddressStore(tmp_path).load(MAC)


@pytest.mark.parametrize("text", ["169.254.0.255", "169.254.255.0", "10.0.0.1"])
def test_only_candidates_are_saved(tmp_path: Path, text: str) -> None:
    for directory in (tmp_path, None):
        with pytest.raises(ValueError, match="candidate"):
            AddressStore(directory).save(MAC, IPv4Address(text), "eth0")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 80,
        b"\xff\xfe\xfd",
        b"null",
        b"[]",
        b'"169.254.20.20"',
        b"169.254.20.20",
        b"[" * 4000,
        b'{"a":' * 800,
        b"9" * 4096,
        b"{}",
        record(version=2),
        record(version=True),
        record(version="1"),
        record(version=None),
        record(address=None),
        record(address=int(ADDRESS)),
        record(address=[str(ADDRESS)]),
        record(address={"a": 1}),
        record() + b"x",
        record()[:-1],
        record(pad="x" * 5000),
        record() + b" " * 5000,
        b" " * 5000 + record(),
    ],
)
def test_damaged_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(StateProblem, match=NAME):
        AddressStore(tmp_path).load(MAC)
    # And they are no obstacle to the next address.
    AddressStore(tmp_path).save(MAC, ADDRESS, "eth0")
    assert AddressStore(tmp_path).load(MAC) == ADDRESS


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | st.text(string.printable, max_size=200).map(str.encode))
def test_any_content(tmp_path: Path, data: bytes) -> None:
    """Whatever the file holds: a candidate, or StateProblem."""
    (tmp_path / NAME).write_bytes(data)
    try:
        address = AddressStore(tmp_path).load(MAC)
    except StateProblem:
        return
    assert address is not None
    assert FIRST_CANDIDATE <= address <= LAST_CANDIDATE


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    version=st.just(1) | _values,
    address=_values | st.integers(0, 2**32 - 1).map(lambda value: str(IPv4Address(value))),
    extra=st.dictionaries(st.text(max_size=9), _values, max_size=2),
)
def test_any_record(tmp_path: Path, version: Any, address: Any, extra: dict[str, Any]) -> None:
    (tmp_path / NAME).write_bytes(
        json.dumps({**extra, "version": version, "address": address}).encode()
    )
    try:
        found = AddressStore(tmp_path).load(MAC)
    except StateProblem:
        return
    assert found is not None
    assert str(found) == address
    assert FIRST_CANDIDATE <= found <= LAST_CANDIDATE


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 100), flip=st.integers(0, 99), value=st.integers(0, 255))
def test_any_damage_to_what_we_wrote(tmp_path: Path, cut: int, flip: int, value: int) -> None:
    directory = tmp_path / "d"
    AddressStore(directory).save(MAC, ADDRESS, "eth0")
    data = bytearray((directory / NAME).read_bytes())
    if flip < len(data):
        data[flip] = value
    (directory / NAME).write_bytes(data[:cut])
    try:
        address = AddressStore(directory).load(MAC)
    except StateProblem:
        pass
    else:
        assert address is not None
        assert FIRST_CANDIDATE <= address <= LAST_CANDIDATE
    AddressStore(directory).save(MAC, OTHER, "eth0")
    assert AddressStore(directory).load(MAC) == OTHER


def test_not_more_than_4_kib_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Sparse: 1 TiB that takes no room.
    with open(tmp_path / NAME, "wb") as file:
        file.truncate(2**40)
    assert len(address_store._read(tmp_path / NAME)) == 4097
    with pytest.raises(StateProblem, match="4096"):
        AddressStore(tmp_path).load(MAC)


def test_what_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / NAME
    aim = tmp_path / "aim"
    aim.write_bytes(record())
    makers: tuple[Callable[[], None], ...] = (
        lambda: path.symlink_to(aim),
        lambda: path.symlink_to(tmp_path / "nowhere"),
        lambda: os.mkfifo(path),
        path.mkdir,
    )
    for make in makers:
        make()
        with pytest.raises(StateProblem, match=r"directory|regular|symbolic"):
            AddressStore(tmp_path).load(MAC)
        if path.is_dir():
            with pytest.raises(StateProblem, match=NAME):
                AddressStore(tmp_path).save(MAC, OTHER, "eth0")
            path.rmdir()
        else:
            # The link, not what it points at, is replaced.
            AddressStore(tmp_path).save(MAC, OTHER, "eth0")
            assert not path.is_symlink()
            assert AddressStore(tmp_path).load(MAC) == OTHER
            path.unlink()
        assert aim.read_bytes() == record()
        assert os.listdir(tmp_path) == ["aim"]


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("x")
    assert AddressStore(place).load(MAC) is None
    with pytest.raises(StateProblem):
        AddressStore(place).save(MAC, ADDRESS, "eth0")
    assert place.read_text() == "x"


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
@pytest.mark.parametrize("kind", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_the_old_content_survives_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, kind: BaseException
) -> None:
    AddressStore(tmp_path).save(MAC, ADDRESS, "eth0")

    def fail(*arguments: Any, **keywords: Any) -> Any:
        raise kind

    if call == "write":
        # Half of it is written.
        monkeypatch.setattr(address_store, "open", _HalfFile, raising=False)
        monkeypatch.setattr(_HalfFile, "failure", kind, raising=False)
        monkeypatch.setattr(address_store, "_read", lambda path: b"")
    elif call == "open":
        monkeypatch.setattr(address_store, "_read", lambda path: b"")
        monkeypatch.setattr(os, "open", fail)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises((StateProblem, KeyboardInterrupt)):
        AddressStore(tmp_path).save(MAC, OTHER, "eth0")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == [NAME]
    assert AddressStore(tmp_path).load(MAC) == ADDRESS


class _HalfFile:
    failure: BaseException

    def __init__(self, descriptor: int, *_: Any, **__: Any) -> None:
        self.descriptor = descriptor

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def write(self, data: bytes) -> int:
        os.write(self.descriptor, data[: len(data) // 2])
        raise self.failure


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(_HalfFile):
        def write(self, data: bytes) -> int:
            return os.write(self.descriptor, data[:3])

    read = address_store._read
    monkeypatch.setattr(address_store, "_read", lambda path: b"")
    monkeypatch.setattr(address_store, "open", Slow, raising=False)
    AddressStore(tmp_path).save(MAC, ADDRESS, "eth0")
    monkeypatch.undo()
    assert address_store._read is read
    assert AddressStore(tmp_path).load(MAC) == ADDRESS


def test_written_through_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut at any moment leaves the old content or the new: the order of the calls."""
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        calls.append(f"fsync {kind} {os.fstat(descriptor).st_size > 0}")
        fsync(descriptor)

    def note_rename(old: Any, new: Any) -> None:
        calls.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    AddressStore(tmp_path).save(MAC, ADDRESS, "eth0")
    assert calls == ["fsync file True", "rename", "fsync directory True"]


def test_killed_while_saving(tmp_path: Path) -> None:
    """kill -9 at any moment: an address is there, and the next save works."""
    code = """
import sys
from ipaddress import IPv4Address
from pathlib import Path
from autoip.daemon.address_store import AddressStore
store = AddressStore(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    for n in range(256):
        store.save(bytes.fromhex("0200000000ab"), IPv4Address(f"169.254.20.{n}"), "eth0")
"""
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        while not (tmp_path / NAME).exists():
            pass
        for _ in range(50):
            assert AddressStore(tmp_path).load(MAC) is not None
        process.kill()
        process.wait()
        process.stdout.close()
        assert AddressStore(tmp_path).load(MAC) is not None
        AddressStore(tmp_path).save(MAC, OTHER, "eth0")
        assert AddressStore(tmp_path).load(MAC) == OTHER


def in_mount(options: str, body: str) -> None:
    """Run `body` in a process that has a tmpfs with `options` at /mnt, in a mount namespace."""
    code = (
        "import errno, os, subprocess, sys\n"
        "from ipaddress import IPv4Address\n"
        "from pathlib import Path\n"
        "from autoip.errors import StateProblem\n"
        "from autoip.daemon.address_store import AddressStore\n"
        f"MAC = {MAC!r}\n"
        "ONE, TWO = IPv4Address('169.254.20.20'), IPv4Address('169.254.30.30')\n"
        "where = Path('/mnt/state')\n"
        "def problem(action):\n"
        "    try:\n"
        "        action()\n"
        "    except StateProblem as found:\n"
        "        return str(found)\n" + body
    )
    script = f'mount -t tmpfs -o {options} none /mnt && exec "$@"'
    command = ["unshare", "-m", "sh", "-ec", script, "sh", sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_root
def test_full_disk() -> None:
    in_mount(
        "size=64k",
        """
store = AddressStore(where)
store.save(MAC, ONE, "eth0")
before = (where / "0200000000ab.json").read_bytes()
try:
    with open("/mnt/fill", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
except OSError as full:
    assert full.errno == errno.ENOSPC
assert "No space left" in problem(lambda: store.save(MAC, TWO, "eth0"))
assert store.load(MAC) == ONE
assert (where / "0200000000ab.json").read_bytes() == before
assert os.listdir(where) == ["0200000000ab.json"]
os.unlink("/mnt/fill")
store.save(MAC, TWO, "eth0")
assert store.load(MAC) == TWO
""",
    )


@needs_root
def test_no_inodes_left() -> None:
    in_mount(
        "nr_inodes=3",
        """
store = AddressStore(where)
store.save(MAC, ONE, "eth0")
assert "No space left" in problem(lambda: store.save(MAC, TWO, "eth0"))
assert store.load(MAC) == ONE
""",
    )


@needs_root
def test_read_only_file_system() -> None:
    in_mount(
        "size=64k",
        """
store = AddressStore(where)
store.save(MAC, ONE, "eth0")
subprocess.run(["mount", "-o", "remount,ro", "/mnt"], check=True)
assert "Read-only" in problem(lambda: store.save(MAC, TWO, "eth0"))
assert store.load(MAC) == ONE
store.save(MAC, ONE, "eth0")
assert "Read-only" in problem(lambda: AddressStore(Path("/mnt/new")).save(MAC, TWO, "eth0"))
assert AddressStore(Path("/mnt/new")).load(MAC) is None
""",
    )


@needs_root
def test_unwritable_and_unreadable() -> None:
    in_mount(
        "size=64k",
        """
store = AddressStore(where)
store.save(MAC, ONE, "eth0")
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
assert store.load(MAC) == ONE
assert "Permission denied" in problem(lambda: store.save(MAC, TWO, "eth0"))
assert store.load(MAC) == ONE
""",
    )
    in_mount(
        "size=64k",
        """
store = AddressStore(where)
store.save(MAC, ONE, "eth0")
os.chmod(where, 0o700)
os.setresuid(65534, 65534, 65534)
assert "Permission denied" in problem(lambda: store.load(MAC))
assert "Permission denied" in problem(lambda: store.save(MAC, TWO, "eth0"))
""",
    )


# --- what avahi-autoipd has saved ---

AVAHI_NAME = "02:00:00:00:00:ab"


@pytest.mark.parametrize("text", [b"169.254.20.20\n", b"169.254.20.20", b" 169.254.20.20 \r\n"])
def test_sel_memory_avahi(text: bytes, tmp_path: Path) -> None:
    (tmp_path / AVAHI_NAME).write_bytes(text)
    assert AddressStore(tmp_path / "ours", tmp_path).load_avahi(MAC) == ADDRESS
    assert AddressStore(tmp_path / "ours", tmp_path).load_avahi(bytes(6)) is None
    assert AddressStore(tmp_path / "ours", tmp_path / "none").load_avahi(MAC) is None
    assert AddressStore(None, tmp_path).load_avahi(MAC) is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"169.254.20.20 169.254.20.21",
        b"169.254.20",
        b"169.254.20.020",
        b"fe80::1",
        b"2851995668",
        b"\xff\xfe",
        b"169.254.0.255\n",
        b"169.254.255.0\n",
        b"10.0.0.1\n",
        b"169.254.20.20\n" + b" " * 100_000,
    ],
)
def test_avahis_file_is_not_trusted(text: bytes, tmp_path: Path) -> None:
    (tmp_path / AVAHI_NAME).write_bytes(text)
    if len(text) > address_store.MAX_SIZE:
        assert (
            AddressStore(tmp_path / "ours", tmp_path).load_avahi(MAC) == ADDRESS
        )  # read no further
        return
    with pytest.raises(StateProblem):
        AddressStore(tmp_path / "ours", tmp_path).load_avahi(MAC)


def test_avahis_file_may_be_anything(tmp_path: Path) -> None:
    keeper = AddressStore(tmp_path / "ours", tmp_path)
    path = tmp_path / AVAHI_NAME
    path.mkdir()
    with pytest.raises(StateProblem):
        keeper.load_avahi(MAC)
    path.rmdir()
    path.symlink_to("/etc/hostname")
    with pytest.raises(StateProblem):
        keeper.load_avahi(MAC)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StateProblem):
        keeper.load_avahi(MAC)
