"""The command line: what is understood, and what is refused before anything is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network

import pytest

from autoip import __version__
from autoip.commands import main
from autoip.commands.run import Arguments, parse
from autoip.core.acd import Defence
from autoip.core.policy import Kind
from autoip.errors import UsageError

DEFAULTS = Arguments(
    interfaces=(),
    choices={},
    debug=False,
    keep_state=True,
    to_syslog=False,
    script=None,
    script_style="avahi",
    user=None,
    hook=False,
    early=False,
    configured=False,
    config=None,
    trace=None,
    dry_run=False,
)


def different(line: str) -> dict[str, object]:
    """What a command line changes."""
    found = parse(line.split())
    return {
        name: getattr(found, name)
        for name in Arguments.__slots__
        if getattr(found, name) != getattr(DEFAULTS, name)
    }


def test_defaults() -> None:
    assert parse([]) == DEFAULTS
    assert parse(["run"]) == DEFAULTS


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--trace eth0.trace", {"trace": "eth0.trace"}),
        ("eth0", {"interfaces": ("eth0",)}),
        ("run eth0", {"interfaces": ("eth0",)}),
        ("run run", {"interfaces": ("run",)}),
        ("eth0 eth1 eth0", {"interfaces": ("eth0", "eth1")}),
        ("eth0 --delay 200 eth1", {"interfaces": ("eth0", "eth1"), "choices": {"delay": 200}}),
        ("--ip 169.254.1.0", {"choices": {"ip": (IPv4Address("169.254.1.0"),)}}),
        ("--ip 169.254.254.255", {"choices": {"ip": (IPv4Address("169.254.254.255"),)}}),
        ("--delay 1", {"choices": {"delay": 1}}),
        ("--delay=8000", {"choices": {"delay": 8000}}),
        ("--abandon --debug", {"choices": {"defence": Defence.ABANDON}, "debug": True}),
        ("--up --no-state", {"choices": {"bring_up": True}, "keep_state": False}),
        ("--syslog", {"to_syslog": True}),
        ("--script /bin/true", {"script": "/bin/true"}),
        ("--script /dev/../bin/true", {"script": "/bin/true"}),
        ("--script /bin/true --script-style zcip", {"script": "/bin/true", "script_style": "zcip"}),
        ("-o debug", {"debug": True, "to_syslog": True}),
        (
            "-o if=eth0,ip=169.254.20.20,debug,delay=200,abandon",
            {
                "interfaces": ("eth0",),
                "choices": {
                    "ip": (IPv4Address("169.254.20.20"),),
                    "delay": 200,
                    "defence": Defence.ABANDON,
                },
                "debug": True,
                "to_syslog": True,
            },
        ),
        (
            "eth0 -o abandon -o if=eth1 --up",
            {
                "interfaces": ("eth0", "eth1"),
                "choices": {"defence": Defence.ABANDON, "bring_up": True},
            },
        ),
        (
            "--ip 169.254.3.3,mac -o ip=169.254.3.4",
            {"choices": {"ip": (IPv4Address("169.254.3.3"), "mac", IPv4Address("169.254.3.4"))}},
        ),
        ("eth0 eth1 --ip mac", {"interfaces": ("eth0", "eth1"), "choices": {"ip": ("mac",)}}),
        ("--range 169.254.10.0/24", {"choices": {"network": IPv4Network("169.254.10.0/24")}}),
        ("--exclude none", {"choices": {"excluded": ()}}),
        (
            "--exclude 169.254.7.0/24,169.254.9.9 --exclude 169.254.7.0/24",
            {"choices": {"excluded": (IPv4Network("169.254.7.0/24"), IPv4Network("169.254.9.9"))}},
        ),
        ("--delay 200 -o delay=200", {"choices": {"delay": 200}}),
        ("--policy fallback", {"choices": {"policy": Kind.FALLBACK}}),
        ("--policy alongside", {"choices": {"policy": Kind.ALONGSIDE}}),
        ("--after 0 --linger 86400", {"choices": {"after": 0.0, "linger": 86400.0}}),
        ("--after 2.5", {"choices": {"after": 2.5}}),
        ("--route-only", {"choices": {"policy": Kind.ROUTE_ONLY}}),
        ("--policy route-only", {"choices": {"policy": Kind.ROUTE_ONLY}}),
        ("--default-route", {"choices": {"default_route": True}}),
        ("eth0 --hook", {"interfaces": ("eth0",), "hook": True}),
        ("eth0 --hook --early", {"interfaces": ("eth0",), "hook": True, "early": True}),
        ("--config /etc/autoip.conf", {"config": "/etc/autoip.conf"}),
        ("--dry-run", {"dry_run": True}),
        ("--configured", {"configured": True}),
        ("eth* usb0 --ip mac", {"interfaces": ("eth*", "usb0"), "choices": {"ip": ("mac",)}}),
    ],
)
def test_understood(line: str, expected: dict[str, object]) -> None:
    assert different(line) == expected


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--ip 10.0.0.1", "169.254.1.0 to 169.254.254.255"),
        ("--ip 169.254.0.5", "169.254.1.0 to 169.254.254.255"),
        ("--ip 169.254.255.0", "169.254.1.0 to 169.254.254.255"),
        ("--ip 169.254.20.20,", "169.254.1.0 to 169.254.254.255, and mac"),
        ("--ip Mac", "169.254.1.0 to 169.254.254.255, and mac"),
        ("--range 169.254.0.0/20", "not a network within 169.254.1.0 to 169.254.254.255"),
        ("--range 169.254.254.0/23", "not a network within 169.254.1.0 to 169.254.254.255"),
        ("--range 10.0.0.0/24", "not a network within 169.254.1.0 to 169.254.254.255"),
        ("--range 169.254.10.1/24", "not a network within 169.254.1.0 to 169.254.254.255"),
        ("--range 169.254.10.0/24,169.254.11.0/24", "not a network within"),
        ("--range 169.254.10.0/24 --range 169.254.11.0/24", "give one value"),
        ("--exclude 10.0.0.0/8", "not an address or a network of 169.254.0.0/16"),
        ("--exclude 169.254.7.0/24,x", "exclude x: not an address or a network"),
        ("--ip 169.254.1", "169.254.1.0 to 169.254.254.255"),
        ("--ip", "expected one argument"),
        ("-o ip=169.254.0.5", "169.254.1.0 to 169.254.254.255"),
        ("--delay 0", "1 to 8000"),
        ("--delay 9000", "1 to 8000"),
        ("--delay -5", "1 to 8000"),
        ("--delay 1.5", "1 to 8000"),
        ("--delay ٣", "1 to 8000"),
        ("-o delay=x", "1 to 8000"),
        ("-o foo", "if=IFACE, ip=ADDRESS, delay=MS, debug, abandon"),
        ("-o if=eth0,", "allowed are if=IFACE"),
        ("-o if", "if needs a value"),
        ("-o debug=1", "debug takes no value"),
        ("-o IF=eth0", "no such option 'IF'"),
        ("--delay 200 --delay 300", "200 and 300"),
        ("eth0 eth1 --ip mac,169.254.3.3", "one interface"),
        ("--deb", "unrecognized arguments: --deb"),
        ("a/b", "1 to 15 bytes"),
        ("eth0:1", "1 to 15 bytes"),
        ("sixteen-letters0", "1 to 15 bytes"),
        ("..", "1 to 15 bytes"),
        ("-o if=", "1 to 15 bytes"),
        ("--script /nowhere", "no such file"),
        ("--script /bin", "no such file"),
        ("--script /etc/passwd", "not executable"),
        ("--script /bin/true --script /bin/false", "/bin/true and /bin/false"),
        ("--script-style dhclient", "avahi and zcip"),
        ("--policy never", "alongside, fallback, route-only"),
        ("--policy fallback --policy alongside", "fallback and alongside"),
        ("--policy fallback --route-only", "fallback and route-only"),
        ("--route-only --default-route", "with route-only there is none"),
        ("--after -1", "0 to 86400"),
        ("--after 1e3", "0 to 86400"),
        ("--linger 86401", "0 to 86400"),
        ("--linger nan", "0 to 86400"),
        ("--linger 1 --linger 2", "1 and 2"),
        ("--hook", "one interface"),
        ("--hook eth0 eth1", "one interface"),
        ("--early eth0", "goes with --hook"),
    ],
)
def test_refused(line: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(line.split())
    assert says in str(caught.value)
    assert main.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("autoip: ")


def test_reader_that_has_read_enough() -> None:
    """`autoip hooks list | head -1`: no complaint, whatever the pipe holds."""
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "autoip", "hooks", "list", "--root", "/"]
    try:
        ended = subprocess.run(
            command,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    finally:
        os.close(theirs)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--version", f"autoip {__version__}\n"),
        ("version", f"autoip {__version__}\n"),
        ("--help", "examples:"),
        ("help", "examples:"),
        ("help run", "examples:"),
        ("help wait", "usage: autoip wait [--timeout S] "),
        ("help help", "usage: autoip help [COMMAND]\n"),
        ("status -h", "usage: autoip status [--json[=STYLE]] [IFACE ...]\n"),
    ],
)
def test_version_and_help(line: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(line.split()) == 0
    assert text in capsys.readouterr().out


@pytest.mark.parametrize("line", ["--version", "version", "--help", "help wait", "hooks list"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written(line: str, unbuffered: str) -> None:
    """One line and status 1, not Python's own complaint at the end."""
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "autoip", *line.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            text=True,
        )
    message = "autoip: cannot write to standard output: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, message)


@pytest.mark.parametrize("command", ["run nosuch0 --dry-run", "doctor nosuch0"])
def test_the_program_loads_no_tls(command: str) -> None:
    """asyncio would load it."""
    code = "from autoip.__main__ import main; main(); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True)
    loaded = done.stdout.split()
    assert b"asyncio" in loaded
    assert b"_ssl" not in loaded


def test_a_user_of_the_library_has_tls() -> None:
    code = "import autoip.daemon.daemon, ssl; print(ssl.SSLContext.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "SSLContext\n"


def test_user() -> None:
    assert different("eth0 --user nobody") == {"interfaces": ("eth0",), "user": "nobody"}
    with pytest.raises(UsageError, match="--user nobody-here: no such user"):
        parse(["eth0", "--user", "nobody-here"])
