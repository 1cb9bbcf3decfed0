"""However autoip is started, the process is not root's and has two capabilities."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autoip.kernel import users
from lab import Daemon, Port

from .conftest import MakeDaemon
from .helpers import NETNS, claim
from .hooked import MakeHooked

pytestmark = NETNS

FAST = ("--delay", "50")
TWO = 1 << 12 | 1 << 13
NOBODY = 65534


def ids(pid: int) -> set[int]:
    """Check what every daemon must have, in every thread. Return all its user and group ids."""
    found: set[int] = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            lines = (thread / "status").read_text().splitlines()
        except OSError:  # it has ended
            continue
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == TWO
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert status["Groups"].split() == []
        found |= {int(word) for word in (status["Uid"] + " " + status["Gid"]).split()}
    return found


def service() -> set[int]:
    return set(users._service_ids())


def caps(*names: str) -> list[str]:
    only = ",".join(f"+{name}" for name in names)
    return ["setpriv", f"--bounding-set=-all,{only}", "--inh-caps=-all", "--"]


WAYS = {
    "by hand": [],
    "with a supplementary group": ["setpriv", "--groups=0,4", "--"],
    "in a container": caps("net_raw", "net_admin", "setuid", "setgid", "chown"),
}


@pytest.mark.parametrize("way", WAYS)
def test_started_by_root(port: Port, make_autoip: MakeDaemon, way: str) -> None:
    daemon = make_autoip(port, *FAST)
    daemon.command[:0] = WAYS[way]
    address = claim(port, daemon)
    assert 0 not in service()
    assert ids(daemon.pid) == service()
    report = port.host.run(*_command(daemon, "refresh"))
    assert report == ""
    assert daemon.stop() == 0
    assert address not in port.host.link_local("eth0")
    assert list(daemon.runtime.iterdir()) == []


def _command(daemon: Daemon, name: str) -> list[str]:
    autoip = daemon.command[daemon.command.index("run") - 3 : daemon.command.index("run")]
    return ["env", f"RUNTIME_DIRECTORY={daemon.runtime}", *autoip, name, "eth0"]


def test_started_by_a_hook(port: Port, make_hooked: MakeHooked) -> None:
    host = make_hooked(port.host)
    host.install("--client", "udhcpc")
    host.call("start", "eth0")
    host.wait_address(port)
    [pid] = host.daemons("eth0")
    assert ids(pid) == service()
    host.call("stop", "eth0")
    host.wait_ended("eth0")
    assert not host.complaints()


def test_started_with_two_capabilities(port: Port, make_autoip: MakeDaemon) -> None:
    daemon = make_autoip(port, *FAST)
    for folder in (daemon.runtime, daemon.state):
        os.chown(folder, NOBODY, NOBODY)
    both = "+net_raw,+net_admin"
    ids_of_nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    daemon.command[:0] = [*ids_of_nobody, f"--inh-caps={both}", f"--ambient-caps={both}", "--"]
    claim(port, daemon)
    assert ids(daemon.pid) == {NOBODY}


def test_user_of_a_name(port: Port, make_autoip: MakeDaemon) -> None:
    daemon = make_autoip(port, *FAST, "--user", "nobody")
    claim(port, daemon)
    assert ids(daemon.pid) == {NOBODY}


def test_user_root(port: Port, make_autoip: MakeDaemon) -> None:
    """The one way to stay root's; the files are the service's even then, so that the next daemon finds them."""
    daemon = make_autoip(port, *FAST, "--user", "root")
    address = claim(port, daemon)
    assert 0 in ids(daemon.pid)
    assert {path.stat().st_uid for path in daemon.runtime.iterdir()} <= service()
    daemon.kill()
    second = make_autoip(port, *FAST)
    second.env.update(RUNTIME_DIRECTORY=str(daemon.runtime), STATE_DIRECTORY=str(daemon.state))
    assert claim(port, second) == address


@pytest.mark.parametrize("missing", ["setuid", "setgid"])
def test_root_that_may_not_change(port: Port, make_autoip: MakeDaemon, missing: str) -> None:
    """It serves, and reports that it is root's."""
    daemon = make_autoip(port, *FAST)
    have = {"net_raw", "net_admin", "setuid", "setgid"} - {missing}
    daemon.command[:0] = caps(*have)
    claim(port, daemon)
    assert "the process is root's: it cannot become user" in daemon.output


def test_only_root_becomes_another_user(port: Port, make_autoip: MakeDaemon) -> None:
    daemon = make_autoip(port, *FAST, "--user", "root")
    both = "+net_raw,+net_admin"
    nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    daemon.command[:0] = [*nobody, f"--inh-caps={both}", f"--ambient-caps={both}", "--"]
    daemon.start()
    assert daemon.wait() == 2
    assert daemon.lines == ["autoip: --user root: only root may become another user"]
