"""Command lines as people mistype them: one clear line, a documented exit status, and nothing is changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoip.commands import main, mistyped, query
from autoip.control.server import Server
from autoip.daemon.lock_file import LockFile
from autoip.kernel import interface_names
from autoip.kernel.arp_socket import ArpListener
from autoip.option_table import interface_name, is_pattern

PRESENT = ("eth0", "eth1", "lo", "usb0")

CLUMSY: dict[str, tuple[int, str]] = {
    # What is no command and no interface: the nearest command line.
    "stauts eth0": (2, "the nearest is: autoip status eth0"),
    "stauts eth0 --json": (2, "the nearest is: autoip status eth0"),
    "Status": (2, "the nearest is: autoip status"),
    "start eth0": (2, "the nearest is: autoip run eth0"),
    "up eth0": (2, "the nearest is: autoip run eth0"),
    "down eth0": (2, "the nearest is: autoip stop eth0"),
    "restart eth0": (2, "the nearest is: autoip refresh eth0"),
    "show": (2, "the nearest is: autoip status"),
    "monitor": (2, "the nearest is: autoip watch"),
    "hook install": (2, "the nearest is: autoip hooks install"),
    "--delay 200 stauts eth0": (2, "the nearest is: autoip status eth0"),
    "etho": (2, "the nearest is: autoip eth0; 'autoip run etho' waits for"),
    "eht0 --delay 200": (2, "the nearest is: autoip eth0 --delay 200;"),
    "wlan7": (2, "interfaces are eth0, eth1, lo, usb0, commands: autoip help"),
    "eth0 wlan7": (2, "'autoip run wlan7' waits for"),
    "eth0 eth2": (2, "the nearest is: autoip eth0 eth1; 'autoip run eth2' waits for"),
    "eth0 status": (2, "'status': a command comes first: autoip status eth0"),
    "eth9 status": (2, "a command comes first: autoip status eth9"),
    "eth0 --debug wait": (2, "autoip wait eth0"),
    "169.254.7.7": (2, "neither a command nor an interface"),
    "-- stauts": (2, "the nearest is: autoip status"),
    # What is no name.
    "eth0,eth1": (2, "'eth0,eth1': a comma separates no names, blanks do: eth0 eth1"),
    "run eth0,eth1": (2, "a comma separates no names, blanks do: eth0 eth1"),
    "status eth0,eth1": (2, "a comma separates no names, blanks do: eth0 eth1"),
    "stop eth0,eth1": (2, "a comma separates no names, blanks do: eth0 eth1"),
    "eth*": (2, "'autoip run eth*' serves the interfaces that match, as they appear"),
    "run eth* --ip 169.254.7.7": (2, "--ip is for one interface"),
    "run --configured eth0": (2, "--configured goes without interfaces"),
    "run --hook eth*": (2, "--hook is for one interface"),
    "refresh eth[01]": (2, "a pattern; allowed are names"),
    "probe eth* 192.0.2.1": (2, "a pattern; allowed are names"),
    "eth/0": (2, "1 to 15 bytes"),
    "run eth0:1": (2, "1 to 15 bytes"),
    # What does nothing, or is missing.
    "eth0 --linger 5": (2, "--linger is for --policy fallback; the policy of eth0 is alongside"),
    "run eth0 --after 5 --policy alongside": (2, "--after is for --policy fallback"),
    "run eth0 --after 5 --route-only": (2, "the policy of eth0 is route-only"),
    "eth0 --linger 5 --dry-run": (2, "--linger is for --policy fallback"),
    "eth0 --config /nowhere": (2, "cannot read /nowhere: No such file or directory"),
    "hooks": (2, "hooks: ACTION is missing; allowed are install, remove, list"),
    "hooks instal": (2, "instal: allowed are install, remove, list"),
    "stop": (2, "stop: IFACE is missing"),
    "wait": (2, "wait: IFACE is missing"),
    "probe eth0": (2, "probe: ADDRESS is missing"),
    "probe eth0 fe80::1": (2, "fe80::1"),
    "probe eth0 169.254.1": (2, "169.254.1"),
    "probe eth0 169.254.1.1/16": (2, "169.254.1.1/16"),
    "probe eth0 0.0.0.0": (2, "0.0.0.0"),
    "probe eth0 127.0.0.1": (2, "127.0.0.1"),
    "probe eth0 224.0.0.1": (2, "224.0.0.1"),
    "probe eth0 255.255.255.255": (2, "255.255.255.255"),
    "probe eth0 192.0.2.1 --delay 0": (2, "1 to 8000"),
    "probe eth0 192.0.2.1 --delay 8001": (2, "1 to 8000"),
    "probe eth0 192.0.2.1 extra": (2, "extra"),
    "wait eth0 --for lease": (2, "allowed are link-local, routable, any"),
    "help wiat": (2, "the nearest is: autoip help wait"),
    "help nonsense": (2, "allowed are run, status, "),
    "version eth0": (2, "unrecognized arguments: eth0"),
    "status --json=long": (2, "--json long: allowed are short and pretty"),
    "status usb*": (3, "usb*: no autoip runs here for an interface of such a name"),
    "wait eth* --timeout 0": (3, "eth*: no autoip runs"),
    "refresh eth0": (3, "eth0: no autoip runs for it here"),
}


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with these interfaces."""
    monkeypatch.setattr(interface_names, "names", lambda: list(PRESENT))
    monkeypatch.setattr(interface_names, "exists", PRESENT.__contains__)


@pytest.fixture
def untouched(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directories that do not exist yet, and nothing that may be opened."""

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("something was opened")

    folder = tmp_path_factory.mktemp("untouched")  # its name is short enough for a socket
    for kind, name in ((LockFile, "acquire"), (Server, "open"), (ArpListener, "open")):
        monkeypatch.setattr(kind, name, opened)
    for name in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY"):
        monkeypatch.setenv(name, str(folder / name))
    return folder


@pytest.mark.usefixtures("present")
@pytest.mark.parametrize("line", CLUMSY)
def test_one_clear_line_and_nothing_is_changed(
    line: str, untouched: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, says = CLUMSY[line]
    assert main.main(line.split()) == status
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("autoip: ")
    assert says in err
    assert list(untouched.iterdir()) == []


@pytest.mark.usefixtures("present")
@pytest.mark.parametrize(
    "line", ["eth0", "eth0 usb0", "--delay 200 eth0", "-o if=wlan7", "--debug", "-o if=x eth0", ""]
)
def test_what_is_right_is_not_refused(line: str) -> None:
    from autoip.options import RUN

    mistyped.check(line.split(), RUN)


def test_what_exists_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux allows these names: an interface that is called so can be served."""
    from autoip.options import RUN

    strange = ["stauts", "eth0,eth1", "eth*"]
    monkeypatch.setattr(interface_names, "exists", strange.__contains__)
    mistyped.check(strange, RUN)
    assert [interface_name(name) for name in strange] == strange
    assert not is_pattern("eth*")
    assert is_pattern("eth?")


def test_the_interfaces_of_this_machine() -> None:
    assert "lo" in interface_names.names()
    assert interface_names.exists("lo")
    assert interface_names.proper("lo") == "lo"
    for name in ("no-such-one", "", "a\0b", "x" * 40):
        assert not interface_names.exists(name)
        assert interface_names.proper(name) == name


# --- nothing typed at all --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "expected"), [(True, ["status"]), (False, ["run", "--help"])], ids=["runs", "none"]
)
def test_bare_on_a_terminal(
    runs: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "_on_terminal", lambda: True)
    monkeypatch.setattr(query, "running", lambda _: runs)
    asked: list[list[str]] = []
    dispatch = main._dispatch

    def dispatched(words: list[str]) -> int:
        asked.append(words)
        return dispatch(words) if not words else 0

    monkeypatch.setattr(main, "_dispatch", dispatched)
    assert main.main([]) == 0
    assert asked == [[], expected]


def test_bare_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[list[str]] = []

    def run(words: list[str]) -> int:
        served.append(words)
        return 0

    monkeypatch.setattr(main, "_on_terminal", lambda: False)
    monkeypatch.setattr(main, "_run", run)
    assert main.main([]) == 0
    assert served == [[]]


# --- Ctrl-C ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_at_any_moment_of_the_start(tmp_path: Path, number: signal.Signals) -> None:
    """From exec on: no traceback, and it ends; started as the installed program is."""
    command = [
        "env",
        "--block-signal=SIGINT,SIGTERM",
        sys.executable,
        "-m",
        "autoip",
        "wait",
        "no-such0",
    ]
    # A start that is cut off must leave no half-written bytecode in the source tree.
    env = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    for step in range(25):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
        time.sleep(step * 0.01)
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
        assert (out, err) == (b"", b""), step
        assert child.returncode in (-number, main.INTERRUPTED), step


def test_an_ignored_interrupt_stays_ignored() -> None:
    """A background job of a script is not ended by the Ctrl-C that is meant for another one."""
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import autoip.__main__;"
        "print(signal.getsignal(signal.SIGINT).name)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout == "SIG_IGN\n", ended.stderr
