"""The cost of hooks for dhclient: the time of one, the time to a probe, and whether a lease is later."""

from __future__ import annotations

import contextlib
import pwd
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from lab import Dhclient, Dhcpd, Frame, LabError, Namespace, Port, Switch, machine

from . import samples
from .report import Result, Target, number
from .setting import AUTOIP, Setting

NAME = "hooks"

EXIT_HOOK = "/etc/dhcp/dhclient-exit-hooks.d/autoip"
AVAHI_HOOK = Path("/etc/dhcp/dhclient-exit-hooks.d/zzz_avahi-autoipd")
"""The hook of Debian's avahi-autoipd; the machine's own file is read, never changed."""
CONFIG = "[*]\ndelay = 1\n"
LATER_MS = 1.0
"""A smaller difference of two medians counts as none: the spread of either is larger."""


def measure(setting: Setting) -> Result:
    head = ("", "samples", "min", "median", "p90", "p99", "max")
    result = Result(NAME, "hooks of dhclient (milliseconds)", head)
    found: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(Switch())

        def host(*, hooks: bool) -> Port:
            port = switch.attach(stack.enter_context(Namespace("host")), plugged=True)
            machine.give_own_files(port.host)
            if hooks:
                machine.write(port.host, "/etc/autoip.conf", CONFIG)
                port.host.run(*AUTOIP, "hooks", "install", "--client", "dhclient")
            return port

        ours, plain, avahi = host(hooks=True), host(hooks=False), host(hooks=False)
        found.update(_calls(setting, ours))
        found.update(_avahi(setting, avahi))
        found["FAIL to first probe"] = _failures(setting, ours)
        server = stack.enter_context(
            Dhcpd(switch.attach(stack.enter_context(Namespace("server")), plugged=True))
        )
        found.update(_leases(setting, server, {"autoip": ours, "nothing": plain}))
    for name, values in found.items():
        shares = (number(samples.quantile(values, share)) for share in (0.0, 0.5, 0.9, 0.99, 1.0))
        result.rows.append((name, str(len(values)), *shares))
        result.numbers[name] = samples.summary(values)
    result.targets = _targets(found)
    result.notes = [
        (
            "A hook is timed from the fork to the end of a dash that reads it as dhclient-script does;"
            " 'nothing' is a dash that reads an empty one. The daemon runs, as it does at all failures but the"
            " first. Pauses of 100 ms, in which what the hook has left behind comes to its end."
        ),
        (
            "avahi-autoipd's hook waits for the address. Its claim has the times of RFC 3927; it returns no"
            " sooner."
        ),
        (
            "FAIL to first probe: from dhclient's log line before it calls its script, to the kernel's stamp of"
            " the probe. autoip is started by the hook, without systemd, and with delay = 1."
        ),
        (
            "DHCPACK to bound: from the kernel's stamp of the server's packet to the end of dhclient's script, as"
            " its last hook tells it. With autoip the interface has a link-local address all along. The two"
            " alternate."
        ),
    ]
    return result


def _run(host: Namespace, command: list[str]) -> float:
    """Return milliseconds from fork to exit. Raises LabError if it fails."""
    start = time.monotonic()
    process = host.popen(
        command,
        die_with_us=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    status = process.wait(60)
    took = (time.monotonic() - start) * 1e3
    if status != 0:
        raise LabError(f"{command}: exit status {status}")
    return took


def _reads(setting: Setting, hook: str, reason: str) -> list[str]:
    return setting.command("dash", "-c", f"reason={reason} interface=eth0; . {hook}")


def _calls(setting: Setting, port: Port) -> dict[str, list[float]]:
    """Measure the hook for each reason, with a daemon that runs."""
    found: dict[str, list[float]] = {}
    port.host.run("sh", "-c", f"reason=FAIL interface=eth0; . {EXIT_HOOK}")
    _wait(lambda: port.host.link_local("eth0"), "an address")
    for _ in range(setting.times(200, 30)):
        for name, hook, reason in (
            ("nothing", "/dev/null", "FAIL"),
            ("autoip's hook: BOUND", EXIT_HOOK, "BOUND"),
            ("autoip's hook: FAIL", EXIT_HOOK, "FAIL"),
        ):
            took = _run(port.host, _reads(setting, hook, reason))
            found.setdefault(name, []).append(took)
            time.sleep(0.1)
    for _ in range(setting.times(20, 5)):
        took = _run(port.host, _reads(setting, EXIT_HOOK, "RELEASE"))
        found.setdefault("autoip's hook: RELEASE", []).append(took)
        time.sleep(0.1)
    _end(port)
    return found


def _avahi(setting: Setting, port: Port) -> dict[str, list[float]]:
    try:
        account = pwd.getpwnam("avahi-autoipd")
        text = AVAHI_HOOK.read_text()
    except (KeyError, OSError):
        return {}
    machine.write(port.host, "/etc/avahi-hook", text)
    owner = f"{account.pw_uid}:{account.pw_gid}"
    port.host.run("install", "-d", "/var/lib/avahi-autoipd")
    port.host.run("chown", owner, "/var/lib/avahi-autoipd")
    found = []
    for _ in range(setting.times(8, 2)):
        found.append(_run(port.host, _reads(setting, "/etc/avahi-hook", "FAIL")))
        port.host.run("avahi-autoipd", "-k", "eth0", check=False)
        _wait(lambda: not port.host.processes(), "its end")
    return {"avahi-autoipd's hook: FAIL": found}


def _failures(setting: Setting, port: Port) -> list[float]:
    """Run one dhclient that no server answers; end the daemon after each of its failures."""
    found = []
    failure = "No working leases in persistent database"
    with Dhclient(port, timeout=1, retry=4) as client:
        client.command = setting.command(*client.command)
        client.start()
        for turn in range(setting.times(20, 4) + 1):
            lines = len(client.stamped)
            since = port.sniffer.mark()
            client.wait_line(failure, 60, since=lines)
            failed = next(ns for ns, text in client.stamped[lines:] if failure in text)
            probe = port.sniffer.wait_probe(timeout=30, since=since)
            if turn:  # the first start writes the byte code of the modules
                found.append((probe.ns - failed) / 1e6)
            _end(port)
    return found


def _leases(setting: Setting, server: Dhcpd, hosts: dict[str, Port]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    server.start()
    for _ in range(setting.times(20, 4)):
        for name, port in hosts.items():
            if name == "autoip":
                port.host.run("/etc/autoip/hook", "start", "eth0")
                _wait(lambda: port.host.link_local("eth0"), "an address")  # noqa: B023
            since = port.sniffer.mark()
            with Dhclient(port) as client:
                client.command = setting.command(*client.command)
                client.start()
                bound = client.wait_reason("BOUND")
                # The last of the server before that is a DHCPACK; dhclient may have asked twice.
                answers = [f.ns for f in port.sniffer.frames(since) if _from_server(f)]
                took = (bound - max(ns for ns in answers if ns < bound)) / 1e6
                found.setdefault(f"DHCPACK to bound, {name}", []).append(took)
                client.ask("-r")
            if name == "autoip":
                _end(port)
    return found


def _from_server(frame: Frame) -> bool:
    """Return whether it is an IPv4 packet without options from the port of DHCP servers."""
    return not frame.from_host and frame.ethertype == 0x0800 and frame.data[34:36] == b"\0\x43"


def _end(port: Port) -> None:
    """Wait until there is neither a daemon nor an address."""
    port.host.run("/etc/autoip/hook", "stop", "eth0")
    _wait(lambda: not port.host.addresses("eth0"), "no address")
    lock = f"/run/autoip-hooks/{port.host.inode}-eth0.daemon"
    port.host.run("flock", lock, "true")


def _wait(true: Callable[[], object], what: str) -> None:
    until = time.monotonic() + 30
    while not true():
        if time.monotonic() > until:
            raise LabError(f"not within 30 s: {what}")
        time.sleep(0.01)


def _targets(found: dict[str, list[float]]) -> list[Target]:
    calls = found["autoip's hook: FAIL"]
    later = samples.median(found["DHCPACK to bound, autoip"]) - samples.median(
        found["DHCPACK to bound, nothing"]
    )
    first = samples.median(found["FAIL to first probe"])
    return [
        Target("the hook at FAIL, median", 10, samples.median(calls), "ms"),
        Target("the hook at FAIL, p99", 25, samples.quantile(calls, 0.99), "ms"),
        Target("FAIL to first probe, median", 400, first, "ms"),
        Target("DHCPACK to bound, later than without hooks by", LATER_MS, later, "ms"),
    ]
