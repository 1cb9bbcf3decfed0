"""The command lines of avahi-autoipd and zcip: what they mean in autoip's own words, and what is refused."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from autoip.commands import arguments, avahi_autoipd, main
from autoip.commands.run import parse
from autoip.errors import AlreadyRunning

USUAL = "--up --policy fallback --after 0 --linger 0"
WITHOUT_SCRIPT = f"{USUAL} --default-route"


def words(line: str) -> str:
    """What autoip is started with, after the interface."""
    given = arguments.texts("avahi-autoipd", avahi_autoipd.OPTIONS, line.split(), prog="-")
    found = arguments.values(avahi_autoipd.OPTIONS, given)
    made = avahi_autoipd._words("eth0", found)
    parse(made)
    assert made[:2] == ["run", "eth0"]
    return " ".join(made[2:])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("eth0", WITHOUT_SCRIPT),
        ("-wD eth0", f"{WITHOUT_SCRIPT} --syslog"),
        ("eth0 --syslog --no-chroot --no-proc-title", f"{WITHOUT_SCRIPT} --syslog"),
        ("--force-bind eth0", "--up --policy alongside --default-route"),
        ("-S169.254.9.9 eth0", f"{USUAL} --ip 169.254.9.9 --default-route"),
        ("--start=169.254.9.9 eth0", f"{USUAL} --ip 169.254.9.9 --default-route"),
        ("-S 10.0.0.1 eth0", WITHOUT_SCRIPT),
        ("-S 169.254.169.254 eth0", WITHOUT_SCRIPT),
        ("-t /bin/true eth0", f"{USUAL} --script /bin/true"),
        ("--no-drop-root --debug eth0", f"{WITHOUT_SCRIPT} --user root --debug"),
    ],
)
def test_what_it_means(line: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avahi_autoipd, "SCRIPT", "/nowhere")
    assert words(line) == expected


def test_the_script_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avahi_autoipd, "SCRIPT", "/bin/true")
    assert words("eth0") == f"{USUAL} --script /bin/true"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "avahi-autoipd: IFACE is missing"),
        ("--bogus eth0", "unrecognized arguments: --bogus"),
        ("-S nonsense eth0", "--start nonsense: not an IPv4 address"),
        ("eth0 eth1", "unrecognized arguments: eth1"),
        ("nosuch", "nosuch: no such interface"),
        ("-k nosuch", "nosuch: no autoip runs for it here"),
        ("-r nosuch", "nosuch: no autoip runs for it here"),
    ],
)
def test_each_failure_is_status_1(
    line: str, why: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/sbin/avahi-autoipd", *line.split()])
    assert main.main() == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"autoip: {why}")


def test_a_pid_file_of_a_process_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pid"
    monkeypatch.setattr(avahi_autoipd, "pid_file", lambda interface: str(file))
    for text, pid in ((f"{os.getpid()}\n", os.getpid()), ("4194305\n", None), ("no\n", None)):
        file.write_text(text)
        assert avahi_autoipd.daemon_of("eth0") == pid
    avahi_autoipd._remove("eth0", 7)
    assert file.exists()
    file.write_text("7\n")
    avahi_autoipd._remove("eth0", 7)
    assert not file.exists()


def test_of_two_starts_the_second_one_leaves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one looks once more when it is alone: the file may have come after its first look."""
    file = tmp_path / "pid"
    monkeypatch.setattr(avahi_autoipd, "pid_file", lambda interface: str(file))
    raised: list[AlreadyRunning] = []

    def second() -> None:
        try:
            avahi_autoipd._write_pid_file("eth0")
        except AlreadyRunning as error:
            raised.append(error)

    first = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(first, fcntl.LOCK_EX)
    thread = threading.Thread(target=second)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    file.write_text("1\n")
    os.close(first)
    thread.join(20)
    assert [str(error) for error in raised] == ["eth0: already running (pid 1)"]
    assert file.read_text() == "1\n"
    assert os.listdir(tmp_path) == ["pid"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("eth0", "zcip: SCRIPT is missing"),
        ("-q eth0 /bin/true", "unrecognized arguments: -q"),
        ("-l 10.0.0.0 eth0 /bin/true", "-l 10.0.0.0: allowed are 169.254.0.0"),
        ("-r 10.0.0.1 eth0 /bin/true", "ip 10.0.0.1: not an address to claim"),
        ("eth0 /nowhere", "--script /nowhere: no such file"),
    ],
)
def test_what_zcip_refuses(
    line: str, why: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["zcip", *line.split()])
    assert main.main() == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"autoip: {why}")
