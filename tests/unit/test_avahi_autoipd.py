"""The command lines of avahi-autoipd and zcip: what they mean in autoip's own words, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autoip.commands import arguments, avahi_autoipd, main
from autoip.commands.run import parse

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
