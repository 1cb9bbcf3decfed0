"""The service under systemd 252 and 257, on Debian 12 and 13, from boot to power-off."""

from __future__ import annotations

import re
import signal

import pytest

from lab import Sniffer, frames
from lab.booted import Booted

from .helpers import (
    BOOTED,
    PATIENCE,
    REPOSITORY,
    RIVAL,
    addresses,
    drop_in,
    send,
    show,
    wait_announced,
    wait_bound,
    wait_log,
    wait_no_address,
    wait_show,
)

pytestmark = BOOTED

NO_CARRIER = "eth0: no-link (waits: no carrier)"


def main_pid(guest: Booted, unit: str = "autoip@eth0") -> str:
    return show(guest, unit, "MainPID")


def start(guest: Booted, name: str = "eth0") -> None:
    guest.run("systemctl", "start", f"autoip@{name}")


def crash(guest: Booted, number: signal.Signals, unit: str = "autoip@eth0") -> None:
    """Sends the service's main process a signal. The kill is the shell's own: a minimal Debian has no other."""
    guest.run("sh", "-c", f"kill -{int(number)} {main_pid(guest, unit)}")


def test_what_the_readme_installs(machine: Booted) -> None:
    """The README's block, in the fixture, has set the interface up and given it an address."""
    assert show(machine, "autoip@eth0", "ActiveState") == "active"
    assert machine.run("systemctl", "is-enabled", "autoip@eth0").strip() == "enabled"
    address = wait_bound(machine)
    assert f" {address} " in machine.run("autoip", "status")
    for unit, limit in (("autoip@eth0", 2.0), ("autoip-wait@eth0", 1.5)):
        text = machine.run("systemd-analyze", "security", "--no-pager", f"{unit}.service")
        found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)
        assert found and float(found[1]) <= limit, text
        assert machine.run("systemd-analyze", "verify", "--man=no", f"{unit}.service") == ""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("eht0", "waits: there is no such interface yet"),
        ("eth0", "waits: it is down; 'ip link set eth0 up' brings it up"),
        ("eth1", "waits: no carrier"),
    ],
    ids=["misspelt", "down", "unplugged"],
)
def test_enable_now_returns_without_an_address(guest: Booted, name: str, why: str) -> None:
    guest.cable(False, "peer1")
    if name == "eth0":
        drop_in(guest, "autoip@eth0", "[Service]\nEnvironment=AUTOIP_UP=\n")
    guest.run("systemctl", "enable", "--now", f"autoip@{name}")
    try:
        # systemctl has returned: so there is nothing left to be waited for.
        assert "No jobs" in guest.run("systemctl", "list-jobs")
        assert show(guest, f"autoip@{name}", "ActiveState") == "active"
        wait_show(guest, f"autoip@{name}", "StatusText", re.escape(f"{name}: no-link ({why})"))
        assert why in guest.run("systemctl", "status", "--no-pager", f"autoip@{name}")
    finally:
        guest.run("systemctl", "disable", f"autoip@{name}")


def test_what_the_unit_allows_is_enough(guest: Booted, wire: Sniffer) -> None:
    """def-broadcast, a script, and not one line of a library that misses something; and no more is allowed."""
    guest.write("/opt/script", '#!/bin/sh\necho "script: $*" >&2\n')
    guest.run("chmod", "755", "/opt/script")
    options = "--delay 50 --script /opt/script"
    drop_in(guest, "autoip@eth0", f'[Service]\nEnvironment="AUTOIP_OPTIONS={options}"\n')
    # By unit: the journal may read a line when the process that wrote it and the unit's invocation are gone.
    unit = "_SYSTEMD_UNIT=autoip@eth0.service"
    command = ["journalctl", "-b", "--no-pager", "-o", "cat", unit]
    before = len(guest.run(*command).splitlines())
    start(guest)
    address = wait_bound(guest)
    status = guest.run("cat", f"/proc/{main_pid(guest)}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert "0" not in fields["Uid"].split()
    assert int(fields["CapPrm"], 16) == int(fields["CapEff"], 16) == 1 << 12 | 1 << 13
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    since = wire.mark()
    asked = frames.arp(frames.REQUEST, sha=RIVAL, spa="169.254.77.77", tpa=address)
    send(guest, asked)
    assert wire.wait_for(lambda f: f.op == frames.REPLY, PATIENCE, since=since).broadcast
    guest.run("systemctl", "stop", "autoip@eth0")
    wait_log(guest, "^script: STOP")
    guest.run("journalctl", "--sync")
    lines = guest.run(*command).splitlines()[before:]
    script = [line for line in lines if line.startswith("script: ")]
    assert script == [f"script: {word} eth0 {address}" for word in ("BIND", "STOP")]
    assert [line for line in lines if not line.startswith(("eth0: ", "script: "))] == []
    assert "by unicast" not in "".join(lines)


def test_the_end_of_the_service_does_not_end_its_script(guest: Booted) -> None:
    """The service manager ends the daemon; a call of the script that runs meanwhile is completed, and STOP follows."""
    guest.write(
        "/opt/script", '#!/bin/sh\necho "$*" >>/run/calls\nsleep 2\necho "$1 done" >>/run/calls\n'
    )
    guest.run("chmod", "755", "/opt/script")
    guest.run("install", "-m", "666", "/dev/null", "/run/calls")
    drop_in(
        guest,
        "autoip@eth0",
        '[Service]\nEnvironment="AUTOIP_OPTIONS=--delay 50 --script /opt/script"\n',
    )
    start(guest)
    guest.run(
        "sh", "-c", "for i in $(seq 600); do test -s /run/calls && exit; sleep 0.1; done; exit 1"
    )
    guest.run("systemctl", "stop", "autoip@eth0")
    address = guest.run("cat", "/run/calls").split()[2]
    assert guest.run("cat", "/run/calls").splitlines() == [
        f"BIND eth0 {address}",
        "BIND done",
        f"STOP eth0 {address}",
        "STOP done",
    ]


def test_who_sets_it_down_is_obeyed(guest: Booted) -> None:
    start(guest)
    wait_bound(guest)
    guest.run("ip", "link", "set", "eth0", "down")
    down = re.escape("eth0: no-link (waits: it is down; 'ip link set eth0 up' brings it up)")
    wait_show(guest, "autoip@eth0", "StatusText", down)
    guest.run("autoip", "refresh", "eth0")
    assert "UP" not in guest.run("ip", "-br", "link", "show", "eth0").split("<")[1]


def test_cold_boot_without_a_cable_and_the_same_address_after_it(guest: Booted) -> None:
    guest.run("systemctl", "enable", "--now", "autoip@eth0")
    # Not the address that its MAC gives: so it can only come back from what was saved.
    first = wait_bound(guest)
    for _ in range(2):
        send(guest, frames.conflict_request(RIVAL, first))
    wait_show(guest, "autoip@eth0", "StatusText", rf"eth0: bound (?!{first} ).*")
    address = wait_bound(guest)
    guest.reboot(cable=False)
    # All units of a bare Debian can be started here: none is degraded for the laboratory's sake.
    assert guest.run("systemctl", "is-system-running", "--wait").strip() == "running"
    assert "No jobs" in guest.run("systemctl", "list-jobs")
    wait_show(guest, "autoip@eth0", "StatusText", re.escape(NO_CARRIER))
    assert addresses(guest) == []
    guest.cable(True)
    assert wait_bound(guest) == address
    guest.cable(False)
    wait_show(guest, "autoip@eth0", "StatusText", re.escape(NO_CARRIER))
    wait_no_address(guest)


def test_conflicts(guest: Booted, wire: Sniffer) -> None:
    """The first one is defended, the second one yielded to; both leave the service as it is."""
    start(guest)
    address, pid = wait_bound(guest), main_pid(guest)
    since = wait_announced(wire, address)
    send(guest, frames.conflict_request(RIVAL, address))
    wire.wait_announcement(address, PATIENCE, since=since)
    assert addresses(guest) == [address]
    send(guest, frames.conflict_request(RIVAL, address))
    other = wire.wait_for(
        lambda f: f.is_announcement and f.spa != address, PATIENCE, since=since
    ).spa
    assert wait_bound(guest, which=re.escape(str(other))) == other
    assert len(wire.announcements(address, since)) == 1
    assert (main_pid(guest), show(guest, "autoip@eth0", "ActiveState")) == (pid, "active")
    assert show(guest, "autoip@eth0", "NRestarts") == "0"


def test_reload_keeps_address_and_process(guest: Booted, wire: Sniffer) -> None:
    start(guest)
    address, pid = wait_bound(guest), main_pid(guest)
    since = wait_announced(wire, address)
    for _ in range(3):
        guest.run("systemctl", "reload", "autoip@eth0")
        # systemctl has returned: so the new program serves, and systemd knows.
        assert show(guest, "autoip@eth0", "ActiveState") == "active"
    assert (wait_bound(guest), main_pid(guest)) == (address, pid)
    send(guest, frames.conflict_request(RIVAL, address))
    wire.wait_announcement(address, PATIENCE, since=since)
    assert wire.probes(address, since) == []
    wait_log(guest, "defended by the reflex")
    assert show(guest, "autoip@eth0", "NRestarts") == "0"


def test_reload_is_refused(guest: Booted) -> None:
    """`systemctl reload` fails, the journal has the line of the configuration, and the service goes on."""
    start(guest)
    address, pid = wait_bound(guest), main_pid(guest)
    guest.write("/etc/autoip.conf", "[eth0]\npolicy = sometimes\n")
    try:
        guest.run("sh", "-c", "! systemctl reload autoip@eth0")
    finally:
        guest.run("rm", "/etc/autoip.conf")
    wait_log(guest, "reload refused, all goes on as before: /etc/autoip.conf:2: policy")
    assert show(guest, "autoip@eth0", "ActiveState") == "active"
    guest.run("systemctl", "reload", "autoip@eth0")
    assert (wait_bound(guest), main_pid(guest)) == (address, pid)


def test_upgrade_by_reload(guest: Booted, wire: Sniffer) -> None:
    """The program in the same place has another version: it goes on, with address and process of the old one."""
    start(guest)
    address, pid = wait_bound(guest), main_pid(guest)
    since = wait_announced(wire, address)
    file = "/usr/local/lib/autoip/autoip/__init__.py"
    guest.run("cp", file, "/root/version")
    guest.run("sed", "-i", 's/__version__ = .*/__version__ = "7.8.9"/', file)
    try:
        guest.run("systemctl", "reload", "autoip@eth0")
    finally:
        guest.run("cp", "/root/version", file)
    wait_log(guest, "reloaded: version 7.8.9 goes on for 0.1.0")
    assert (wait_bound(guest), main_pid(guest)) == (address, pid)
    assert wire.arp(since) == []
    guest.run("systemctl", "stop", "autoip@eth0")
    assert addresses(guest) == []


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_crash_and_hang(guest: Booted, wire: Sniffer, how: str) -> None:
    """It is started again, after kill -9 or by the watchdog, and claims the same address by three probes."""
    # Short for the one that must be missed alone: a busy machine may be late as well.
    drop_in(guest, "autoip@eth0", f"[Service]\nWatchdogSec={5 if how == 'stopped' else 0}\n")
    start(guest)
    address, pid = wait_bound(guest), main_pid(guest)
    since = wait_announced(wire, address)
    crash(guest, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    wire.wait_announcement(address, PATIENCE, since=since)
    assert len(wire.probes(address, since)) == 3
    assert wait_bound(guest) == address
    assert main_pid(guest) != pid
    assert show(guest, "autoip@eth0", "NRestarts") == "1"
    wait_log(guest, f"takes over {address} from an instance that died")
    result = "signal" if how == "killed" else "watchdog"
    wait_log(guest, f"(?s)Failed with result '{result}'(?!.*Failed with result)")


def test_interface_that_is_plugged_in_and_replugged(guest: Booted) -> None:
    """The example of a udev rule, by name, as a virtual interface is on no USB port."""
    rule = (REPOSITORY / "share" / "90-autoip.rules").read_text()
    by_name = re.sub(r"^#(KERNEL)", r"\1", rule, flags=re.MULTILINE)
    assert by_name != rule
    guest.write("/etc/udev/rules.d/90-autoip.rules", by_name)
    guest.run("udevadm", "control", "--reload")
    plug = "link add usb0 address 02:00:00:00:00:07 type veth peer name far0"
    guest.run("ip", *plug.split())
    guest.run("ip", "link", "set", "far0", "up")
    wait_show(guest, "autoip@usb0", "ActiveState", "active")
    address, pid = wait_bound(guest, "usb0"), main_pid(guest, "autoip@usb0")
    guest.run("ip", "link", "del", "usb0")
    gone = re.escape("usb0: no-link (waits: there is no such interface yet)")
    wait_show(guest, "autoip@usb0", "StatusText", gone)
    guest.run("ip", *plug.split())
    guest.run("ip", "link", "set", "far0", "up")
    assert wait_bound(guest, "usb0") == address
    assert main_pid(guest, "autoip@usb0") == pid
    guest.run("systemctl", "stop", "autoip@usb0")
    assert addresses(guest, "usb0") == []
    guest.run("ip", "link", "del", "usb0")


NEEDS = """
[Unit]
Requires=autoip-wait@eth0.service
After=autoip-wait@eth0.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip -4 -br addr show eth0 >/run/needs'
"""


def test_unit_that_needs_the_address(guest: Booted) -> None:
    """It pulls in the service, starts when the address is there, and ends when the service is stopped."""
    guest.cable(False)
    guest.write("/etc/systemd/system/needs.service", NEEDS)
    guest.run("rm", "-f", "/run/needs")
    guest.run("systemctl", "daemon-reload")
    guest.run("systemctl", "start", "--no-block", "needs")
    wait_show(guest, "autoip-wait@eth0", "ActiveState", "activating")
    wait_show(guest, "autoip@eth0", "StatusText", re.escape(NO_CARRIER))
    assert show(guest, "needs", "ActiveState") == "inactive"
    guest.cable(True)
    wait_show(guest, "needs", "ActiveState", "active")
    assert guest.run("cat", "/run/needs").split()[2] == f"{wait_bound(guest)}/16"
    assert show(guest, "autoip-wait@eth0", "ActiveState") == "active"
    # A crash is none of its business: both start anew, when the address is there again.
    started = show(guest, "needs", "ActiveEnterTimestampMonotonic")
    crash(guest, signal.SIGKILL)
    wait_show(guest, "needs", "ActiveEnterTimestampMonotonic", f"(?!{started}$)[1-9][0-9]*")
    assert guest.run("cat", "/run/needs").split()[2] == f"{wait_bound(guest)}/16"
    guest.run("systemctl", "stop", "autoip@eth0")
    for unit in ("autoip@eth0", "autoip-wait@eth0", "needs"):
        wait_show(guest, unit, "ActiveState", "inactive")


def test_network_online_waits_if_it_is_asked_to(guest: Booted) -> None:
    """`systemctl enable autoip-wait@eth0`, and a time after which it gives up."""
    guest.cable(False)
    guest.run("systemctl", "enable", "autoip-wait@eth0")
    drop_in(guest, "autoip-wait@eth0", "[Service]\nTimeoutStartSec=1\n")
    guest.run("systemctl", "start", "network-online.target")
    assert show(guest, "autoip-wait@eth0", "Result") == "timeout"
    assert show(guest, "network-online.target", "ActiveState") == "active"
    guest.run("systemctl", "stop", "network-online.target")
    drop_in(guest, "autoip-wait@eth0", "")
    guest.cable(True)
    guest.run("systemctl", "start", "network-online.target")
    assert len(addresses(guest)) == 1


def test_power_off(guest: Booted, wire: Sniffer) -> None:
    """The address is taken off, after what comes After=network.target has ended and before the power is."""
    guest.write(
        "/etc/systemd/system/needs-network.service",
        "[Unit]\nAfter=network.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\n"
        "ExecStop=sh -c 'sleep 1; ip -4 -br addr show eth0 >/var/lib/needs-network'\n",
    )
    guest.run("systemctl", "daemon-reload")
    start(guest)
    address = wait_bound(guest)
    guest.run("systemctl", "start", "needs-network")
    guest.power_off()
    guest.boot()
    command = ["journalctl", "-b", "-1", "--no-pager", "-o", "cat", "-u", "autoip@eth0"]
    log = guest.run(*command)
    # Since the claim: the journal has the lines of the daemon and of systemd in any order.
    last = log[log.rindex("-> bound") :]
    assert "Stopping " in last
    assert "bound -> no-link: stopped" in last
    assert "autoip@eth0.service: Deactivated successfully." in last
    assert "imed out" not in last and "Failed" not in last
    assert guest.run("cat", "/var/lib/needs-network").split()[2] == f"{address}/16"


def test_root_beside_the_service(guest: Booted) -> None:
    """Both use the same directories: neither serves what the other serves, and each takes over what the other left."""
    by_hand = ("systemd-run", "-q", "--unit=by-hand", "autoip", "run", "eth1", "--up", "--delay=50")
    start(guest)
    wait_bound(guest)
    guest.run(*by_hand)
    guest.run("autoip", "wait", "eth1", "--timeout", "50")
    (address,) = addresses(guest, "eth1")
    user = guest.run("id", "-u", "autoip").strip()
    ids = "\t".join(["Uid:", *[user] * 4])
    assert ids in guest.run("cat", f"/proc/{main_pid(guest, 'by-hand')}/status")
    # The kernel forgets the saved user id: root's daemon goes on as that user, who can take off all that is there.
    guest.run("autoip", "reload", "eth1")
    assert addresses(guest, "eth1") == [address]
    guest.run("sh", "-c", "autoip run eth0; test $? = 3")
    guest.run("systemctl", "stop", "autoip@eth0")
    assert f" {address} " in guest.run(
        "autoip", "status", "eth1"
    )  # the last service took nothing of root's away

    crash(guest, signal.SIGKILL, "by-hand")
    wait_show(guest, "by-hand", "ActiveState", "failed")
    assert addresses(guest, "eth1") == [address]
    drop_in(guest, "autoip@eth1", "[Service]\nRestart=no\n")
    start(guest, "eth1")
    assert wait_bound(guest, "eth1") == address
    guest.run("sh", "-c", "autoip run eth1; test $? = 3")
    crash(guest, signal.SIGKILL, "autoip@eth1")
    wait_show(guest, "autoip@eth1", "ActiveState", "failed")
    assert addresses(guest, "eth1") == [address]
    guest.run("systemctl", "reset-failed", "by-hand")
    guest.run(*by_hand)
    guest.run("autoip", "wait", "eth1", "--timeout", "50")
    assert addresses(guest, "eth1") == [address]
    guest.run("systemctl", "stop", "by-hand")
    assert addresses(guest, "eth1") == []
