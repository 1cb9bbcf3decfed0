"""Scripts written for avahi-autoipd and zcip, run by the real daemon."""

from __future__ import annotations

import json
import os
import re
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab import Daemon, Port, frames

from .conftest import MakeDaemon, MakeHost
from .helpers import (
    NETNS,
    PATIENCE,
    RIVAL,
    A,
    B,
    bind,
    claim,
    configuration,
    wait_until,
)

pytestmark = NETNS

DEBIANS = Path("/etc/avahi/avahi-autoipd.action")
NOBODY = 65534

RECORDER = """\
#!/bin/sh
# One line a call: the arguments, and zcip's variables.
echo "$* ip=$ip interface=$interface" >>{log}
{more}
"""

# In the manner of the example that comes with BusyBox.
ZCIP = """\
#!/bin/sh
echo "$* ip=$ip interface=$interface" >>{log}
[ -n "$interface" ] || exit 1
case "$1" in
    init) exit {init} ;;
    config) [ -n "$ip" ] && exec ip address add dev "$interface" scope link local "$ip/16" broadcast + ;;
    deconfig) [ -n "$ip" ] && exec ip address del dev "$interface" local "$ip/16" ;;
esac
exit 1
"""


class Script:
    """A script in the daemon's folder, and the calls that it had."""

    def __init__(self, daemon: Daemon, text: str, **words: object) -> None:
        self.path = daemon.folder / "script"
        self.log = daemon.folder / "calls"
        # The script is run by the daemon's user, who is not root.
        daemon.folder.chmod(0o777)
        self.log.touch()
        self.log.chmod(0o666)
        self.path.write_text(text.format(log=self.log, **{"more": "", **words}))
        self.path.chmod(0o755)
        self.arguments = ("--script", str(self.path))

    def calls(self) -> list[str]:
        return [line.partition(" ip=")[0] for line in self.log.read_text().splitlines()]

    def wait(self, count: int) -> list[str]:
        """The calls, once there are so many; no more than that."""
        wait_until(lambda: len(self.calls()) >= count, f"{count} calls of the script")
        assert len(self.calls()) == count, self.calls()
        return self.calls()


def _owned(port: Port, address: IPv4Address) -> dict[str, object]:
    """What belongs to the address, as `ip` tells it."""
    ip = port.host.ip
    [link] = json.loads(ip(f"-j -d addr show dev {port.name}"))
    entries = [a for a in link["addr_info"] if a.get("local") == str(address)]
    index = link["ifindex"]
    return {
        "addresses": [
            {key: entry.get(key) for key in ("prefixlen", "broadcast", "scope", "protocol")}
            for entry in entries
        ],
        "rules": [r for r in json.loads(ip("-j rule")) if r.get("src") == str(address)],
        "own table": json.loads(ip(f"-j route show table {169254000 + index}")),
        "metrics": [
            r.get("metric")
            for r in json.loads(ip(f"-j route show dev {port.name}"))
            if r["dst"] == "169.254.0.0/16"
        ],
    }


def _announced(port: Port, daemon: Daemon, *arguments: str) -> None:
    """Starts autoip and waits for its first announcement.  The script may have the address off just then."""
    since = port.sniffer.mark()
    daemon.start(*arguments)
    port.sniffer.wait_announcement(A, timeout=PATIENCE, since=since)


def _quiet(daemon: Daemon) -> None:
    """Nothing that a script did was taken for the removal by somebody else, or failed."""
    assert "removed by somebody else" not in daemon.output
    assert "internal error" not in daemon.output


# --- avahi-autoipd's contract ----------------------------------------------------------------


def test_a_life_in_calls(port: Port, make_autoip: MakeDaemon) -> None:
    """BIND, CONFLICT for a lost dispute, UNBIND for a lost carrier, STOP at the end; in this order."""
    daemon = make_autoip(port, "--delay", "100", "--ip", str(A), "--abandon")
    script = Script(daemon, RECORDER)
    bind(port, daemon, *script.arguments)
    assert script.wait(1) == [f"BIND eth0 {A}"]
    since = port.sniffer.mark()
    port.send(frames.conflict_request(RIVAL, A))
    second = port.sniffer.wait_announcement(timeout=PATIENCE, since=since).spa
    assert script.wait(3)[1:] == [f"CONFLICT eth0 {A}", f"BIND eth0 {second}"]
    since = port.sniffer.mark()
    port.carrier(False)
    assert script.wait(4)[3] == f"UNBIND eth0 {second}"
    port.carrier(True)
    assert port.sniffer.wait_announcement(timeout=PATIENCE, since=since).spa == second
    assert script.wait(5)[4] == f"BIND eth0 {second}"
    assert daemon.stop() == 0
    assert script.wait(6)[5] == f"STOP eth0 {second}"
    # avahi-autoipd gives its scripts no variables.
    assert set(re.findall(" ip=.*", script.log.read_text())) == {" ip= interface="}


def test_surroundings_of_a_call(port: Port, make_autoip: MakeDaemon) -> None:
    """No descriptors of ours, a session of its own, a clean environment, the root directory."""
    daemon = make_autoip(port, "--delay", "50")
    daemon.env["SECRET"] = "x"
    probe = (
        "{{ ls -l /proc/$$/fd | sed 1d | wc -l; readlink /proc/$$/fd/0; pwd; umask;"
        " env | grep -c SECRET; cut -d' ' -f6 /proc/$$/stat; echo $$; ls /proc/$$/fd; }} >{log}.more"
    )
    script = Script(daemon, RECORDER.replace("{more}", probe))
    claim(port, daemon, *script.arguments)
    more = Path(f"{script.log}.more")
    wait_until(lambda: more.exists() and len(more.read_text().splitlines()) >= 10, "the script")
    _, stdin, folder, umask, secrets, session, pid, *descriptors = more.read_text().split()
    assert (stdin, folder, umask, secrets) == ("/dev/null", "/", "0022", "0")
    assert session == pid
    # The shell's own: 10 keeps the script's or the saved standard output.
    assert {"0", "1", "2"} <= set(descriptors) <= {"0", "1", "2", "10", "11", "255"}


def test_each_interface_has_its_own_queue(
    port: Port, make_autoip: MakeDaemon, stack: ExitStack
) -> None:
    """A script that hangs for one interface is not waited for by the other."""
    other = port.switch.attach(port.host, "eth1")
    daemon = make_autoip(port, "eth1", "--delay", "50")
    script = Script(daemon, RECORDER, more='[ "$2" = eth0 ] && sleep 600')
    daemon.start(*script.arguments)
    wait_until(lambda: any(" eth0 " in call for call in script.calls()), "BIND of eth0")
    wait_until(lambda: any("BIND eth1 " in call for call in script.calls()), "BIND of eth1")
    other.down()
    wait_until(lambda: any("UNBIND eth1 " in call for call in script.calls()), "UNBIND of eth1")
    assert [call.split()[0] for call in script.calls() if " eth0 " in call] == ["BIND"]
    daemon.kill()


# --- scripts that configure the address themselves -------------------------------------------


@pytest.mark.skipif(not DEBIANS.exists(), reason="needs Debian package avahi-autoipd")
def test_debians_action_script(make_host: MakeHost, make_autoip: MakeDaemon) -> None:
    """Unchanged, it does all that it does for avahi-autoipd, and what is ours stays as it was."""
    port = make_host()
    before = configuration(port.host)
    plain = make_autoip(port, "--delay", "50", "--ip", str(A))
    claim(port, plain)
    ours = _owned(port, A)
    assert ours["addresses"] and ours["rules"] and ours["own table"]
    assert plain.stop() == 0

    daemon = make_autoip(port, "--delay", "50", "--ip", str(A), "--debug")
    _announced(port, daemon, "--script", str(DEBIANS))
    metric = 1000 + port.host.index("eth0")
    wait_until(lambda: port.host.ip("route show default"), "the script's default route")
    assert f"default dev eth0 scope link metric {metric}" in port.host.ip("route show default")
    wait_until(lambda: _owned(port, A) == ours, f"what is ours\n{ours}\n{_owned(port, A)}")
    assert "eth0:avahi" in port.host.ip("addr show dev eth0")
    daemon.wait_line("announcing -> bound")
    # One of the claim that was stopped, two of this one: the next is a defence.
    port.sniffer.wait_count(lambda frame: frame.is_announcement, 3, PATIENCE)
    _quiet(daemon)
    # Still defended, by the one that put it there.
    since = port.sniffer.mark()
    port.send(frames.conflict_request(RIVAL, A))
    port.sniffer.wait_announcement(A, since=since, timeout=PATIENCE)
    # Another address follows a lost one.
    since = port.sniffer.mark()
    port.send(frames.conflict_request(RIVAL, A))
    second = port.sniffer.wait_announcement(timeout=PATIENCE, since=since).spa
    assert second != A
    wait_until(lambda: port.host.ip("route show default"), "the default route again")
    wait_until(lambda: _owned(port, second)["own table"], "what is ours again")
    wait_until(lambda: daemon.addresses() == [second], "the script to have put it on again")
    _quiet(daemon)
    assert daemon.stop() == 0
    failed = [line for line in daemon.lines if "exit status" in line]
    # The address that is lost to another host is off before the script hears of it.
    assert all("script CONFLICT" in line for line in failed), failed
    assert configuration(port.host) == before


@pytest.mark.skipif(not DEBIANS.exists(), reason="needs Debian package avahi-autoipd")
def test_debians_action_script_without_root(port: Port, make_autoip: MakeDaemon) -> None:
    """As a user with two capabilities, the script has them as well."""
    daemon = make_autoip(port, "--delay", "50", "--ip", str(A))
    for folder in (daemon.runtime, daemon.state):
        os.chown(folder, NOBODY, NOBODY)
    daemon.command = [
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        *("--inh-caps=-all,+net_raw,+net_admin", "--ambient-caps=-all,+net_raw,+net_admin", "--"),
        *daemon.command,
    ]
    _announced(port, daemon, "--script", str(DEBIANS))
    wait_until(lambda: port.host.ip("route show default"), "the script's default route")
    assert daemon.stop() == 0
    assert "exit status" not in daemon.output
    assert port.host.ip("route show default") == ""
    assert daemon.addresses() == []


def test_capabilities_of_a_script(port: Port, make_autoip: MakeDaemon) -> None:
    """Root's script: the two that are needed, and no way to more."""
    daemon = make_autoip(port, "--delay", "50")
    script = Script(daemon, RECORDER, more='grep -E "^(Cap|NoNew)" /proc/self/status >"$0.caps"')
    claim(port, daemon, *script.arguments)
    path = Path(f"{script.path}.caps")
    wait_until(lambda: path.exists() and "NoNewPrivs" in path.read_text(), "the script")
    found = dict(re.findall(r"(\w+):\s+(\w+)", path.read_text()))
    two = f"{1 << 12 | 1 << 13:016x}"
    assert (found["CapPrm"], found["CapEff"], found["CapBnd"]) == (two, two, two)
    assert found["NoNewPrivs"] == "1"


def test_a_script_may_take_its_time_to_put_the_address_on(
    port: Port, make_autoip: MakeDaemon
) -> None:
    """Off and on again during BIND is no removal by somebody else; afterwards all is ours again."""
    daemon = make_autoip(port, "--delay", "50", "--ip", str(A))
    anew = (
        # Within GRACE, of 1 s.
        '[ "$1" = BIND ] || exit 0; ip addr flush dev eth0; sleep 0.1;'
        " ip addr add $3/16 brd + label eth0:avahi scope link dev eth0; touch $0.done"
    )
    script = Script(daemon, RECORDER, more=anew)
    _announced(port, daemon, *script.arguments)
    wait_until(Path(f"{script.path}.done").exists, "the end of the script")
    wait_until(lambda: _owned(port, A)["own table"], "what is ours")
    assert _owned(port, A)["metrics"] == [1000 + port.host.index("eth0")]
    daemon.wait_line("announcing -> bound")
    _quiet(daemon)
    assert len(port.sniffer.probes()) == 3
    assert daemon.stop() == 0
    assert script.calls() == [f"{word} eth0 {A}" for word in ("BIND", "STOP")]


def test_a_script_that_takes_the_address_off_for_good(port: Port, make_autoip: MakeDaemon) -> None:
    """What is gone after BIND comes back; it was defended meanwhile, so it is not probed again."""
    daemon = make_autoip(port, "--delay", "50", "--ip", str(A))
    once = (
        '[ "$1" = BIND ] && [ ! -e "$0.once" ] && touch "$0.once" && ip addr flush dev eth0; exit 0'
    )
    script = Script(daemon, RECORDER, more=once)
    _announced(port, daemon, *script.arguments)
    assert script.wait(3) == [f"{word} eth0 {A}" for word in ("BIND", "UNBIND", "BIND")]
    daemon.wait_line("announcing -> bound")
    assert daemon.addresses() == [A]
    assert len(port.sniffer.probes(A)) == 3


# --- zcip's contract -------------------------------------------------------------------------


def test_zcip_script(port: Port, make_autoip: MakeDaemon) -> None:
    before = configuration(port.host)
    daemon = make_autoip(port, "--delay", "50", "--ip", str(A), "--script-style", "zcip")
    script = Script(daemon, ZCIP, init=0)
    bind(port, daemon, *script.arguments)
    # It finds the address there already: told, and nothing else comes of it.
    daemon.wait_line(f"script config {A}: exit status 2")
    assert daemon.addresses() == [A]
    assert _owned(port, A)["own table"]
    assert daemon.stop() == 0
    assert script.log.read_text().splitlines() == [
        "init eth0 ip= interface=eth0",
        f"config eth0 ip={A} interface=eth0",
        f"deconfig eth0 ip={A} interface=eth0",
    ]
    assert "deconfig" not in daemon.output  # it did take the address off
    _quiet(daemon)
    assert configuration(port.host) == before


# --- what avahi-autoipd has saved ------------------------------------------------------------


def _avahis(port: Port, daemon: Daemon, text: str, mode: int = 0o644) -> None:
    """A file as avahi-autoipd writes it, for this host alone."""
    folder = daemon.folder / "avahi"
    folder.mkdir(mode=0o755)
    path = folder / port.mac
    path.write_text(text)
    os.chown(path, NOBODY, NOBODY)
    path.chmod(mode)
    place = "/var/lib/avahi-autoipd"
    if not os.path.isdir(place):
        pytest.skip("needs Debian package avahi-autoipd")
    port.host.run("mount", "--bind", str(folder), place)


def test_the_address_that_avahi_autoipd_saved(port: Port, make_autoip: MakeDaemon) -> None:
    """First candidate of the first start; from then on our own memory counts."""
    daemon = make_autoip(port, "--delay", "50")
    _avahis(port, daemon, f"{A}\n")
    assert bind(port, daemon) == A  # from then on it is saved
    assert f"eth0: tries {A} first, which avahi-autoipd saved" in daemon.output
    assert daemon.stop() == 0
    (daemon.folder / "avahi" / port.mac).write_text(f"{B}\n")
    assert claim(port, daemon) == A
