"""doctor: each check on facts, what is read of files, the bound of time, and what the command prints."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from autoip.commands import doctor, main
from autoip.commands.diagnosis import checks, gather
from autoip.commands.diagnosis.checks import CHECKS, Finding, Result, findings
from autoip.commands.diagnosis.facts import Configuration, Facts, Hooks, NetworkFile, Node
from autoip.control import protocol
from autoip.control.protocol import socket_name
from autoip.daemon import rivals
from autoip.daemon.networkmanager.device import INFINITE, Device, configured_timeout, devices
from autoip.daemon.rivals import Process
from autoip.dhcp.clients import CLIENTS, MARK, SHARED
from autoip.errors import KernelRefused, UsageError
from autoip.kernel.arp_broadcast import ETH_P_ALL, HANDLE, PRIORITY, Filter
from autoip.kernel.model import (
    IFF_DORMANT,
    IFF_LOWER_UP,
    IFF_NOARP,
    IFF_RUNNING,
    IFF_UP,
    PROTOCOL,
    Address,
    Link,
    Neighbour,
    Route,
)
from autoip.kernel.survey import Egress, Survey, Tables
from autoip.paths import network_namespace
from tests.require import requires_program

from .fake_networkmanager import FakeNetworkManager, PrivateBus
from .virtual_time import START, VirtualLoop

READY = IFF_UP | IFF_RUNNING | IFF_LOWER_UP
ETH0 = Link(2, "eth0", b"\2\0\0\0\0\2", 1, READY, None, None, None)
ETH1 = Link(3, "eth1", b"\2\0\0\0\0\3", 1, READY, None, None, None)
OURS = Address(2, IPv4Address("169.254.7.7"), 16, 253, "eth0:autoip", PROTOCOL)
THEIRS = Address(2, IPv4Address("169.254.8.8"), 16, 253, "eth0", None)
LINK_LOCAL = IPv4Address("169.254.0.0")
FILE, FOLDER, STICKY = 0o100755, 0o040755, 0o041777
MASK = IPv4Address("169.254.169.254")


def to_link_local(index: int, metric: int = 0, **others: Any) -> Route:
    fields = {"prefixlen": 16, "table": 254, "proto": 2, "destination": LINK_LOCAL, **others}
    return Route(index=index, metric=metric, **fields)


ROUTES = (
    Route(2, 0, 254, 16, via="192.0.2.1"),
    to_link_local(2, 1002, source=OURS.address),
    to_link_local(3, 1003, source=OURS.address),
)
HEALTHY = Facts(
    kernel=Survey(
        links=(ETH0, ETH1),
        addresses=(OURS, replace(OURS, index=3, label="eth1:autoip")),
        egress={2: Egress((Filter(PRIORITY, HANDLE),)), 3: Egress()},
    ),
    tables=Tables(ROUTES),
    settings={name: {"rp_filter": 2, "proxy_arp": 0} for name in ("all", "eth0", "eth1")},
)
"""Two interfaces that are served, as they are when nothing is wrong."""


def with_kernel(**changes: Any) -> Facts:
    return replace(HEALTHY, kernel=replace(HEALTHY.kernel, **changes))


def with_tables(**changes: Any) -> Facts:
    return replace(HEALTHY, tables=Tables(**{"routes": ROUTES, **changes}))


def with_addresses(*of_eth0: Address) -> Facts:
    return with_kernel(addresses=(*of_eth0, HEALTHY.kernel.addresses[1]))


def with_egress(egress: Egress) -> Facts:
    return with_kernel(egress={2: egress, 3: Egress()})


def with_link(**changes: Any) -> Facts:
    return with_kernel(links=(replace(ETH0, **changes), ETH1))


def with_device(device: Device, timeout: int = 45) -> Facts:
    files = Configuration(timeouts={"eth0": timeout}, networkmanager=True)
    return replace(HEALTHY, networkmanager={"eth0": device}, configuration=files)


def running(*arguments: str, **files: Any) -> Facts:
    processes = (Process(77, arguments),)
    return replace(HEALTHY, processes=processes, configuration=Configuration(**files))


def with_hooks(*, clients: Any = None, **fields: Any) -> Facts:
    sound = Hooks({"dhclient": True}, True, "/usr/bin/autoip", True, ())
    changed = replace(sound, **({"clients": clients} if clients else {}), **fields)
    return replace(HEALTHY, hooks=changed)


def troubles(facts: Facts) -> list[Finding]:
    """All that is found of eth0 and of the host and is not ok."""
    [link] = [link for link in facts.kernel.links if link.name == "eth0"]
    return [found for found in findings(facts, [link]) if found.result is not Result.OK]


def test_nothing_is_wrong() -> None:
    found = findings(HEALTHY, [ETH0, ETH1])
    assert {finding.result for finding in found} == {Result.OK}
    of_links = [check.name for check in CHECKS if check.of_link is not None]
    of_host = [check.name for check in CHECKS if check.of_host is not None]
    assert [finding.check for finding in found] == of_links * 2 + of_host
    assert [finding.interface for finding in found] == (
        ["eth0"] * len(of_links) + ["eth1"] * len(of_links) + [None] * len(of_host)
    )
    assert not any(finding.cure for finding in found)


WARNING, FAILURE = Result.WARNING, Result.FAILURE
OUR_FILTER = Filter(PRIORITY, HANDLE)
FOREIGN = Filter(1, 1, "bpf", "theirs")
DHCPCD = ("dhcpcd: [manager] [ip4]",)
TO_ETH1 = to_link_local(3)
TABLE_100 = Route(3, 32, 100, 4, destination=MASK, via="192.0.2.9")
PROXIED = tuple(Neighbour(2, IPv4Address(f"169.254.9.{n}"), b"\2\0\0\0\0\xee") for n in (1, 2, 3))
MODIFY = "nmcli connection modify 'my wire'"


@pytest.mark.parametrize(
    ("facts", "check", "result", "what", "cure"),
    [
        (with_link(flags=READY | IFF_NOARP), "ethernet", FAILURE, "speak ARP", "ip link"),
        (with_link(flags=0), "up", FAILURE, "is down", "ip link set eth0 up"),
        (with_link(flags=IFF_UP), "carrier", FAILURE, "no carrier", "put the cable in"),
        (
            with_link(flags=READY | IFF_DORMANT),
            *("carrier", FAILURE, "802.1X", "authenticate"),
        ),
        (
            with_link(master=3, port_kind="bridge"),
            *("master", FAILURE, "belongs to eth1", "ip link set eth0 nomaster"),
        ),
        (
            with_device(Device(30)),
            *("networkmanager", FAILURE, "in state disconnected", "nmcli device set eth0 managed"),
        ),
        (
            with_device(Device(110)),
            *("networkmanager", FAILURE, "in state deactivating", "nmcli device set eth0 managed"),
        ),
        (
            with_device(Device(70, "my wire", "auto")),
            *("networkmanager", WARNING, "failed for 45 s", f"{MODIFY} ipv4.dhcp-timeout 300"),
        ),
        (
            with_device(Device(100, "my wire", "auto", timeout=90), INFINITE),
            *("networkmanager", WARNING, "failed for 90 s", "ipv4.dhcp-timeout"),
        ),
        (
            with_device(Device(100, "my wire", "auto"), 299),
            *("networkmanager", WARNING, "failed for 299 s", "autoconnect-retries 0"),
        ),
        (
            replace(with_device(Device(10)), networkmanager={}, jeepney=False),
            *("networkmanager", WARNING, "jeepney is missing", "pip install"),
        ),
        (
            with_addresses(OURS, THEIRS),
            *("rival", WARNING, "169.254.8.8/16", "ip address del 169.254.8.8/16 dev eth0"),
        ),
        (
            with_addresses(OURS, replace(THEIRS, label="eth1:autoip")),
            *("rival", WARNING, "169.254.8.8/16", "ip address del 169.254.8.8/16 dev eth0"),
        ),
        (
            with_device(Device(100, "my wire", "link-local")),
            *("rival", WARNING, "method link-local", f"{MODIFY} ipv4.method auto"),
        ),
        (
            with_device(Device(100, "my wire", "manual", 3)),
            *("rival", WARNING, "ipv4.link-local enabled", f"{MODIFY} ipv4.link-local disabled"),
        ),
        (
            with_device(Device(100, "my wire", "manual", 4)),
            *("rival", WARNING, "ipv4.link-local fallback", "ipv4.link-local disabled"),
        ),
        (
            running("avahi-autoipd: [eth0] bound 169.254.7.7"),
            *("rival", WARNING, "avahi-autoipd serves it (process 77)", "kill 77"),
        ),
        (
            running("busybox", "zcip", "eth0", "/etc/zcip"),
            *("rival", WARNING, "zcip serves it (process 77)", "kill 77"),
        ),
        (
            running("/usr/sbin/connmand"),
            *("rival", WARNING, "ConnMan (process 77)", "NetworkInterfaceBlacklist=eth0"),
        ),
        (
            running("/usr/sbin/connmand", connman="[General]\nNetworkInterfaceBlacklist =\n"),
            *("rival", WARNING, "ConnMan (process 77)", "NetworkInterfaceBlacklist=eth0"),
        ),
        *(
            (
                running(
                    "/lib/systemd/systemd-networkd", networkd={"eth0": NetworkFile("/etc/x", value)}
                ),
                *("rival", WARNING, f"LinkLocalAddressing={value} in /etc/x", "LinkLocalAddressing=ipv6"),
            )
            for value in ("yes", "true", "on", "1", "ipv4", "fallback", "ipv4-fallback")
        ),
        (running(*DHCPCD), "dhcpcd", WARNING, "noipv4ll", "echo noipv4ll > /etc/dhcpcd.conf"),
        (
            running(*DHCPCD, dhcpcd="duid\n"),
            *("dhcpcd", WARNING, "noipv4ll", "sed -i 1inoipv4ll /etc/dhcpcd.conf"),
        ),
        (
            running(*DHCPCD, dhcpcd="interface eth1\nnoipv4ll\n"),
            *("dhcpcd", WARNING, "noipv4ll", "dhcpcd --rebind"),
        ),
        (
            running(*DHCPCD, dhcpcd="denyinterfaces wl* # not eth*\n"),
            *("dhcpcd", WARNING, "noipv4ll", "dhcpcd --rebind"),
        ),
        *(
            (
                running(*DHCPCD, dhcpcd=f"interface eth0\n{section} x\nnoipv4ll\n"),
                *("dhcpcd", WARNING, "noipv4ll", "dhcpcd --rebind"),
            )
            for section in ("ssid", "profile")
        ),
        (
            with_addresses(replace(OURS, prefixlen=24)),
            *("mask", WARNING, "169.254.7.7/24", "169.254.7.7/16 scope link dev eth0"),
        ),
        (
            with_tables(routes=(Route(2, 0, 254, 3, metric=1002),)),
            *("default-route", WARNING, "default route", "ip route del default dev eth0 metric 1002"),
        ),
        (
            with_tables(routes=(Route(2, 0, 7, 3),)),
            *("default-route", WARNING, "default route", "metric 0 table 7"),
        ),
        (
            with_tables(neighbours=PROXIED),
            *("proxy-arp", WARNING, "02:00:00:00:00:ee answers for 169.254.9.1", "off there"),
        ),
        (
            replace(HEALTHY, settings={"all": {}, "eth0": {"proxy_arp": 1}}),
            *("proxy-arp", WARNING, "addresses of others", "net/ipv4/conf/eth0/proxy_arp=0"),
        ),
        (
            replace(HEALTHY, settings={"all": {"proxy_arp": 1}}),
            *("proxy-arp", WARNING, "addresses of others", "net/ipv4/conf/all/proxy_arp=0"),
        ),
        (
            with_egress(Egress(programs=2)),
            *("egress", WARNING, "2 BPF programs of tcx", "bpftool net show dev eth0"),
        ),
        (
            with_egress(Egress((FOREIGN,), by_tcx=True, programs=1)),
            *("egress", WARNING, "1 BPF programs of tcx", "bpftool net show dev eth0"),
        ),
        (
            with_egress(Egress(other_hook=True)),
            *("egress", WARNING, "qdisc ingress", "tc qdisc del dev eth0 ingress"),
        ),
        (
            with_egress(Egress((replace(FOREIGN, handle=0, name=None), FOREIGN, OUR_FILTER))),
            *("egress", WARNING, "bpf theirs of priority 1", "tc filter del dev eth0 egress pref 1"),
        ),
        (
            with_egress(Egress((replace(FOREIGN, protocol=ETH_P_ALL, name=None),))),
            *("egress", WARNING, "bpf of priority 1", "egress pref 1"),
        ),
        (
            with_tables(routes=(*ROUTES[:2], to_link_local(3, 1))),
            *("routes", WARNING, "eth1 (metric 1) wins over eth0 (metric 1002)", "dev eth1 metric 1"),
        ),
        (
            replace(
                with_kernel(addresses=(OURS,)),
                tables=Tables((*ROUTES[:2], to_link_local(3, 1, source=OURS.address))),
            ),
            *("routes", WARNING, "eth1 (metric 1) wins over eth0 (metric 1002)", "dev eth1 metric 1"),
        ),
        (
            with_tables(routes=(to_link_local(2, proto=4), to_link_local(3, proto=4))),
            *("routes", WARNING, "eth0 (metric 0) wins over eth1", "dev eth1 metric 0"),
        ),
        (
            with_tables(routes=(*ROUTES, TABLE_100)),
            *("metadata", WARNING, "has a route in table 100", f"{MASK}/32 via 192.0.2.9 dev eth1"),
        ),
        (
            replace(HEALTHY, cloud="Google"),
            *("metadata", WARNING, "is Google's", f"{MASK}/32 via 192.0.2.1 dev eth0"),
        ),
        (
            replace(HEALTHY, beyond=("CAP_NET_RAW",)),
            *("capabilities", FAILURE, "CAP_NET_RAW", "--cap-add NET_RAW"),
        ),
        (
            replace(HEALTHY, beyond=("CAP_BPF",)),
            *("capabilities", WARNING, "by unicast", "--cap-add BPF"),
        ),
        (with_hooks(shared=False), "hooks", FAILURE, "script", "autoip hooks install"),
        (
            with_hooks(program_there=False),
            *("hooks", FAILURE, "/usr/bin/autoip, which cannot be run", "hooks install --client dhclient"),
        ),
        (
            with_hooks(clients={"dhclient": False}),
            *("hooks", WARNING, "dhclient, which is gone", "remove --client dhclient"),
        ),
        *(
            (
                with_hooks(nodes=(node,)),
                *("hooks", FAILURE, "others than root may write /x y", "chmod go-w '/x y'"),
            )
            for node in (
                Node("/x y", 0, 0, FILE | 0o002),
                Node("/x y", 0, 5, FILE | 0o020),
                Node("/x y", 1000, 0, FILE),
                Node("/x y", 1000, 0, STICKY),
                Node("/x y", 0, 0, FOLDER | 0o002),
            )
        ),
    ],
)  # fmt: skip
def test_each_trouble(facts: Facts, check: str, result: Result, what: str, cure: str) -> None:
    """One thing is wrong, one finding names it and what cures it, and all else is ok."""
    [found] = troubles(facts)
    assert (found.check, found.result) == (check, result)
    assert found.interface == ("eth0" if found.check not in OF_HOST else None)
    assert what in found.what
    assert cure in found.cure


OF_HOST = [check.name for check in CHECKS if check.of_host is not None]


@pytest.mark.parametrize(
    "facts",
    [
        with_link(master=3, port_kind="vrf"),
        with_device(Device(10, "my wire")),
        with_device(Device(100, "my wire", "auto"), INFINITE),
        with_device(Device(70, "my wire", "auto", timeout=300)),
        with_device(Device(100, "my wire", "manual")),
        replace(with_device(Device(10)), networkmanager={}),
        with_addresses(replace(OURS, proto=None)),  # before Linux 5.18
        running("avahi-autoipd: [eth1] bound 169.254.7.7"),
        running("/usr/sbin/connmand", connman="[General]\nNetworkInterfaceBlacklist = vm, eth\n"),
        running("/lib/systemd/systemd-networkd", networkd={"eth0": NetworkFile("/x", "ipv6")}),
        running("true", networkd={"eth0": NetworkFile("/x", "ipv4")}),
        running(*DHCPCD, dhcpcd="noipv4ll # no\n"),
        running(*DHCPCD, dhcpcd="noipv4\n"),
        running(*DHCPCD, dhcpcd="interface eth0\n noipv4ll\ninterface eth1\n"),
        running(*DHCPCD, dhcpcd="denyinterfaces wl* eth*\n"),
        running("/sbin/dhcpcd", "--noipv4ll"),
        with_addresses(OURS, Address(2, IPv4Address("192.0.2.5"), 24, 0, "eth0", None)),
        with_addresses(OURS, replace(THEIRS, index=3, prefixlen=24)),
        with_tables(routes=(Route(2, 0, 254, PROTOCOL),)),
        with_tables(routes=(Route(2, 0, 254, 3, unicast=False),)),
        with_tables(routes=(Route(3, 0, 254, 3),)),
        with_tables(routes=(to_link_local(2, proto=4),)),
        with_tables(routes=(to_link_local(2, proto=4), to_link_local(2, 7, proto=4))),
        with_tables(routes=(to_link_local(2, proto=4), to_link_local(3, proto=4, table=7))),
        with_egress(Egress((Filter(PRIORITY, HANDLE), replace(FOREIGN, priority=40)))),
        with_egress(Egress((replace(FOREIGN, protocol=0x0800), Filter(PRIORITY, HANDLE)))),
        with_egress(Egress((replace(FOREIGN, priority=2),))),
        with_egress(Egress(programs=None)),
        with_egress(Egress((replace(FOREIGN, protocol=ETH_P_ALL),), by_tcx=True, other_hook=True)),
        with_egress(Egress((FOREIGN,), by_tcx=True, programs=None)),
        replace(with_tables(routes=(Route(2, 0, 254, 3, via="192.0.2.1"),)), cloud="Google"),
        with_tables(routes=(*ROUTES, replace(TABLE_100, table=255))),
        with_tables(routes=(Route(2, 0, 254, PROTOCOL), TABLE_100)),
        replace(
            with_tables(routes=(*ROUTES, Route(3, 32, 254, 4, destination=MASK))), cloud="Google"
        ),
        with_tables(neighbours=(*PROXIED[:2], replace(PROXIED[2], index=3))),
        replace(
            with_tables(routes=(*ROUTES, replace(TABLE_100, table=254))),
            cloud="Google",
        ),
        with_tables(
            neighbours=tuple(
                Neighbour(2, IPv4Address(f"192.0.2.{n}"), b"\2\0\0\0\0\1") for n in range(5)
            )
        ),
        with_hooks(),
        with_hooks(nodes=(Node("/tmp", 0, 0, STICKY), Node("/x", 0, 0, FILE | 0o020))),
    ],
)
def test_what_is_no_trouble(facts: Facts) -> None:
    assert troubles(facts) == []


@pytest.mark.parametrize("name", ["vmnet1", "vboxnet0", "virbr0", "ifb0", "ve-web", "vb-web"])
def test_what_connman_leaves_alone_by_default(name: str) -> None:
    left = replace(ETH0, name=name)
    facts = running("/usr/sbin/connmand")
    facts = replace(facts, kernel=replace(facts.kernel, links=(left, ETH1)))
    assert [one.check for one in findings(facts, [left]) if one.result is not Result.OK] == []


def test_of_routes_that_are_all_foreign_the_one_that_wins_stays() -> None:
    routes = [to_link_local(index, proto=4, metric=metric) for index, metric in ((3, 9), (2, 4))]
    [found] = troubles(with_tables(routes=tuple(routes)))
    assert "eth0 (metric 4) wins over eth1 (metric 9)" in found.what
    assert found.cure == "ip route del 169.254.0.0/16 dev eth1 metric 9"


@pytest.mark.parametrize(
    ("all_", "own", "strict"),
    [(0, 0, False), (0, 1, True), (1, 0, True), (1, 2, False), (2, 1, False), (1, 1, True)],
)
def test_strict_rp_filter_counts_where_the_route_is_by_another_link(
    all_: int, own: int, strict: bool
) -> None:
    settings = {"all": {"rp_filter": all_}, "eth0": {"rp_filter": own}, "eth1": {"rp_filter": own}}
    found = findings(replace(HEALTHY, settings=settings), [ETH0, ETH1])
    wrong = [one for one in found if one.result is not Result.OK]
    assert [one.interface for one in wrong] == (["eth1"] if strict else [])
    for one in wrong:
        assert (one.check, one.result) == ("rp-filter", Result.WARNING)
        assert "the route to them is by eth0" in one.what
        assert one.cure == "sysctl -w net/ipv4/conf/eth1/rp_filter=2"


@pytest.mark.parametrize(
    ("missing", "lines"),
    [
        ("tables", {"default-route", "rp-filter", "proxy-arp", "routes", "metadata"}),
        ("settings", {"rp-filter", "proxy-arp"}),
        ("processes", {"rival", "dhcpcd"}),
        ("networkmanager", {"networkmanager", "rival"}),
        ("configuration", {"networkmanager", "rival", "dhcpcd"}),
        ("beyond", {"capabilities"}),
        ("cloud", {"metadata"}),
        ("hooks", {"hooks"}),
    ],
)
def test_what_was_not_read_is_not_called_ok(missing: str, lines: set[str]) -> None:
    unread: dict[str, Any] = {missing: None}
    found = findings(replace(HEALTHY, **unread), [ETH0])
    assert {check.name for check in CHECKS} - {finding.check for finding in found} == lines


def test_what_was_found_before_counts_although_the_rest_was_not_read() -> None:
    facts = replace(with_addresses(OURS, THEIRS), processes=None)
    [found] = troubles(facts)
    assert (found.check, found.result) == ("rival", Result.WARNING)


def test_of_an_interface_without_arp_nothing_else_is_judged() -> None:
    link = replace(ETH0, flags=READY | IFF_NOARP)
    found = findings(HEALTHY, [link])
    assert [one.check for one in found if one.interface == "eth0"] == ["ethernet"]


def test_of_an_interface_that_is_down_the_carrier_is_not_judged() -> None:
    found = findings(HEALTHY, [replace(ETH0, flags=0)])
    assert "carrier" not in [one.check for one in found]


# --- files -----------------------------------------------------------------------------------------


def put(root: Path, path: str, text: str, mode: int = 0o644) -> Path:
    """Writes a file below the root."""
    full = root / path.lstrip("/")
    full.parent.mkdir(parents=True, exist_ok=True)
    full.write_text(text)
    full.chmod(mode)
    return full


def read(root: Path, **environ: str) -> Facts:
    """The facts about eth0, with the files of a folder. No bus unless the environment names one."""

    async def facts() -> Facts:
        environ.setdefault("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={root}/no-bus")
        until = asyncio.get_running_loop().time() + 30
        return await gather.facts(HEALTHY.kernel, [ETH0], environ, until, str(root))

    return asyncio.run(facts())


def test_an_empty_root(tmp_path: Path) -> None:
    facts = read(tmp_path)
    assert facts.settings == {} and facts.cloud == "" and facts.hooks == Hooks()
    assert facts.configuration == Configuration(timeouts={"eth0": 45})
    assert facts.processes and facts.beyond is not None and facts.jeepney
    assert facts.kernel is HEALTHY.kernel
    assert facts.networkmanager is None
    [line] = facts.unread
    assert line.startswith("NetworkManager: D-Bus system bus: ")


def test_files_of_others(tmp_path: Path) -> None:
    for key in ("proxy_arp", "rp_filter"):
        put(tmp_path, f"/proc/sys/net/ipv4/conf/eth0/{key}", "1\n")
    put(tmp_path, "/proc/sys/net/ipv4/conf/all/rp_filter", "2\n")
    put(tmp_path, "/etc/dhcpcd.conf", "noipv4ll\n")
    put(tmp_path, "/etc/connman/main.conf", "[General]\n")
    put(tmp_path, "/run/NetworkManager/x", "")
    facts = read(tmp_path)
    assert facts.settings == {
        "all": {"rp_filter": 2},
        "eth0": {"proxy_arp": 1, "rp_filter": 1},
    }
    assert facts.configuration == Configuration(
        "noipv4ll\n", "[General]\n", timeouts={"eth0": 45}, networkmanager=True
    )


def test_the_files_of_networkd(tmp_path: Path) -> None:
    """The file that networkd names, and after it the changes to it, by name, wherever they are."""
    path = "/etc/systemd/network/10-x.network"
    put(tmp_path, "/run/systemd/netif/links/2", f"ADMIN_STATE=configured\nNETWORK_FILE={path}\n")

    def found() -> NetworkFile:
        configuration = read(tmp_path).configuration
        assert configuration is not None
        return configuration.networkd["eth0"]

    assert found() == NetworkFile(path)
    text = (
        "[Match]\nName=eth0\nLinkLocalAddressing=no\n[Network]\n# x\nLinkLocalAddressing = IPv4\n"
    )
    put(tmp_path, path, text)
    assert found() == NetworkFile(str(tmp_path) + path, "ipv4")
    put(tmp_path, f"{path}.d/50.conf", "[Network]\nLinkLocalAddressing=ipv6\n")
    assert found().link_local == "ipv6"
    change = put(
        tmp_path, "/usr/lib/systemd/network/10-x.network.d/60.conf", "[Network]\nLinkLocalAddressing=yes\n"
    )  # fmt: skip
    assert found() == NetworkFile(str(change), "yes")


def test_networkmanagers_configuration(tmp_path: Path) -> None:
    """The file that is read last goes before; of two with one name that in /etc counts."""

    def timeout() -> int:
        configuration = read(tmp_path).configuration
        assert configuration is not None
        return configuration.timeouts["eth0"]

    lines = "[connection-x]\nmatch-device=interface-name:eth*\nipv4.dhcp-timeout="
    put(tmp_path, "/usr/lib/NetworkManager/conf.d/50-a.conf", f"{lines}50\n")
    assert timeout() == 50
    put(tmp_path, "/etc/NetworkManager/NetworkManager.conf", f"{lines}60\n")
    assert timeout() == 60
    put(tmp_path, "/etc/NetworkManager/conf.d/10-b.conf", f"{lines}70\n")
    assert timeout() == 70
    put(tmp_path, "/etc/NetworkManager/conf.d/50-a.conf", "")
    (tmp_path / "etc/NetworkManager/conf.d/10-b.conf").unlink()
    (tmp_path / "etc/NetworkManager/NetworkManager.conf").unlink()
    assert timeout() == 45


@pytest.mark.parametrize(
    ("texts", "seconds"),
    [
        ([], 45),
        (["[connection]\nipv4.dhcp-timeout=infinity\n"], INFINITE),
        (["[connection]\nipv4.dhcp-timeout=30\n[connection-a]\nipv4.dhcp-timeout=20\n"], 20),
        (["[connection-a]\nipv4.dhcp-timeout=20\n", "[connection]\nipv4.dhcp-timeout=30\n"], 20),
        (["[connection]\nipv4.dhcp-timeout=20\n", "[connection]\nipv4.dhcp-timeout=30\n"], 30),
        (["[connection-a]\nmatch-device=interface-name:wl*\nipv4.dhcp-timeout=20\n"], 45),
        (["[connection-a]\nmatch-device=*;except:interface-name:eth0\nipv4.dhcp-timeout=20\n"], 45),
        (["[connection-a]\nmatch-device=mac:02:00:00:00:00:02\nipv4.dhcp-timeout=20\n"], 45),
        (["[connection-a]\nipv4.dhcp-timeout=soon\n"], 45),
        (["nonsense"], 45),
        (["[device]\nipv4.dhcp-timeout=20\n"], 45),
    ],
)
def test_the_time_for_dhcp(texts: list[str], seconds: int) -> None:
    assert configured_timeout("eth0", texts) == seconds


@pytest.mark.parametrize(
    ("file", "text", "cloud"),
    [
        ("sys_vendor", "Amazon EC2\n", "Amazon EC2"),
        ("sys_vendor", "Microsoft Corporation\n", ""),
        ("product_name", "Google Compute Engine\n", "Google Compute Engine"),
        ("chassis_asset_tag", "OracleCloud.com\n", "a cloud (OracleCloud.com)"),
    ],
)
def test_the_cloud(tmp_path: Path, file: str, text: str, cloud: str) -> None:
    put(tmp_path, f"/sys/class/dmi/id/{file}", text)
    assert read(tmp_path).cloud == cloud


HOOK = MARK.decode()


def test_the_hooks(tmp_path: Path) -> None:
    """What is there of ours, the program that it starts, and all directories on the way to both."""
    put(tmp_path, SHARED, f"#!/bin/sh\n{HOOK}AUTOIP='/opt/a b/autoip'\n", 0o755)
    paths = CLIENTS["dhclient"].paths
    for path in paths:
        put(tmp_path, path, HOOK)
    put(tmp_path, "/etc/NetworkManager/dispatcher.d/90-autoip", "#!/bin/sh\n# somebody's\n")
    facts = read(tmp_path).hooks
    assert facts is not None
    assert facts.clients == {"dhclient": False}
    assert (facts.shared, facts.program, facts.program_there) == (True, "/opt/a b/autoip", False)
    root = os.path.realpath(tmp_path)
    folders = map(os.path.dirname, paths)
    expected = {"", "/etc", "/etc/autoip", SHARED, "/etc/dhcp", *paths, *folders}
    assert {node.path for node in facts.nodes} == {root + name for name in expected}
    put(tmp_path, "/sbin/dhclient", "", 0o755)
    put(tmp_path, "/opt/a b/autoip", "", 0o664)
    facts = read(tmp_path).hooks
    assert facts is not None and not facts.program_there
    program = put(tmp_path, "/opt/a b/autoip", "", 0o775)
    facts = read(tmp_path).hooks
    assert facts is not None
    assert facts.clients == {"dhclient": True} and facts.program_there
    [node] = [node for node in facts.nodes if node.path == os.path.realpath(program)]
    assert (node.uid, node.mode) == (os.geteuid(), 0o100775)


def test_a_file_without_end_is_read_in_part_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    put(tmp_path, "/etc/dhcpcd.conf", "x" * (gather._FILE_MAX + 1))
    (tmp_path / "etc/connman").mkdir()
    os.mkfifo(tmp_path / "etc/connman/main.conf")
    configuration = read(tmp_path).configuration
    assert configuration is not None
    assert (len(configuration.dhcpcd), configuration.connman) == (gather._FILE_MAX, "")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *arguments: Any, **others: Any) -> int:
        if path == f"{tmp_path}/etc/dhcpcd.conf":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(path, *arguments, **others)

    opened = os.open
    monkeypatch.setattr(os, "open", refuse)
    facts = read(tmp_path)
    assert facts.configuration is None
    assert (
        f"files of other programs: {tmp_path}/etc/dhcpcd.conf: Permission denied; run it as root"
        in facts.unread
    )


# --- time ------------------------------------------------------------------------------------------


def in_virtual_time(root: Path, **environ: str) -> tuple[Facts, float]:
    """The facts, and the seconds that were waited for them by the event loop's own clock."""
    loop = VirtualLoop()
    try:
        until = loop.time() + gather.LIMIT
        found = gather.facts(HEALTHY.kernel, [ETH0], environ, until, str(root))
        return loop.run_until_complete(found), loop.time() - START
    finally:
        loop.close()


def test_a_bus_that_never_answers(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "bus"))
        listener.listen()
        address = f"unix:path={tmp_path}/bus"
        facts, seconds = in_virtual_time(tmp_path, DBUS_SYSTEM_BUS_ADDRESS=address)
    assert seconds == pytest.approx(gather.LIMIT)
    assert facts.networkmanager is None
    assert "NetworkManager: no answer within 1.5 s" in facts.unread


def test_processes_that_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc/PID/cmdline of a process in the kernel's hands waits; nothing waits for that thread."""
    go_on = threading.Event()
    monkeypatch.setattr(rivals, "running", lambda: [go_on.wait()])
    address = f"unix:path={tmp_path}/no-bus"
    try:
        facts, seconds = in_virtual_time(tmp_path, DBUS_SYSTEM_BUS_ADDRESS=address)
        waiting = [thread for thread in threading.enumerate() if thread.daemon]
    finally:
        go_on.set()
    assert seconds == pytest.approx(gather.LIMIT)
    assert facts.processes is None
    assert "processes: no answer within 1.5 s" in facts.unread
    assert waiting


def test_a_table_of_routes_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    async def hangs() -> Tables:
        go_on.wait()
        return Tables()

    monkeypatch.setattr(gather, "tables", hangs)
    address = f"unix:path={tmp_path}/no-bus"
    try:
        facts, seconds = in_virtual_time(tmp_path, DBUS_SYSTEM_BUS_ADDRESS=address)
    finally:
        go_on.set()
    assert seconds == pytest.approx(gather.LIMIT)
    assert facts.tables is None
    assert "routes and neighbours: no answer within 1.5 s" in facts.unread


def test_a_kernel_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    async def hangs() -> Survey:
        go_on.wait()
        return Survey()

    monkeypatch.setattr(gather, "survey", hangs)
    loop = VirtualLoop()
    try:
        with pytest.raises(KernelRefused, match="ETIMEDOUT"):
            loop.run_until_complete(gather.kernel(loop.time() + gather.LIMIT))
        assert loop.time() - START == pytest.approx(gather.LIMIT)
    finally:
        go_on.set()
        loop.close()


# --- NetworkManager --------------------------------------------------------------------------------


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[PrivateBus]:
    bus = PrivateBus(tmp_path)
    bus.start()
    yield bus
    bus.stop()


def asked(bus: PrivateBus, manager: dict[str, Any] | None, *names: str) -> dict[str, Device]:
    """What is found on the bus; `manager`: attributes of the fake NetworkManager, None: it does not run."""

    async def ask() -> dict[str, Device]:
        if manager is None:
            return await devices(names, {"DBUS_SYSTEM_BUS_ADDRESS": bus.address})
        async with FakeNetworkManager(bus) as fake:
            for name, value in manager.items():
                setattr(fake, name, value)
            await fake.own_name()
            serving = asyncio.create_task(fake.serve())
            try:
                return await devices(names, {"DBUS_SYSTEM_BUS_ADDRESS": bus.address})
            finally:
                serving.cancel()

    return asyncio.run(asyncio.wait_for(ask(), 120))


@requires_program("dbus-daemon", "dbus")
def test_devices_of_networkmanager(bus: PrivateBus) -> None:
    profile = {
        "connection": {"id": ("s", "my wire")},
        "ipv4": {"method": ("s", "auto"), "dhcp-timeout": ("i", 90), "link-local": ("i", 3)},
    }
    odd = {"connection": {"id": ("i", 7)}, "ipv4": {"dhcp-timeout": ("s", "soon")}}
    there = {"/d/1": ("eth0", 100), "/d/2": ("eth1", 30), "/d/3": ("eth2", 70)}
    fake = {"devices": there, "profiles": {"/d/1": profile, "/d/3": odd}}
    assert asked(bus, fake, "eth0", "eth1", "eth2", "eth3") == {
        "eth0": Device(100, "my wire", "auto", 3, 90),
        "eth1": Device(30),
        "eth2": Device(70),
    }
    assert asked(bus, {**fake, "nonsense": True}, "eth0") == {}
    assert asked(bus, None, "eth0") == {}


# --- the command -----------------------------------------------------------------------------------

WRONG = with_link(flags=0)
RISKY = replace(HEALTHY, beyond=("CAP_BPF",), unread=("hooks: gone",))


@pytest.fixture
def fact(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`fact(facts)`: what the command finds, of eth0."""

    def has(facts: Facts) -> None:
        async def gathered(*_: Any) -> tuple[Facts, list[Link]]:
            return facts, [facts.kernel.links[0]]

        monkeypatch.setattr(doctor, "_gathered", gathered)

    return has


@pytest.mark.parametrize(("facts", "status"), [(HEALTHY, 0), (RISKY, 0), (WRONG, 1)])
@pytest.mark.parametrize("style", [[], ["-j"]])
def test_exit_status(facts: Facts, status: int, style: list[str], fact: Any) -> None:
    fact(facts)
    assert main.main(["doctor", "eth0", *style]) == status


def test_lines_for_people(fact: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fact(RISKY)
    main.main(["doctor"])
    header, *lines, unread = capsys.readouterr().out.splitlines()
    assert header.split() == ["RESULT", "INTERFACE", "CHECK", "WHAT"]
    assert lines[0].split()[:3] == ["ok", "eth0", "ethernet"]
    [place] = [number for number, line in enumerate(lines) if line.startswith("warning")]
    assert lines[place].split()[:3] == ["warning", "-", "capabilities"]
    assert lines[place + 1].lstrip().startswith("cure: docker run --cap-add BPF")
    assert all(line.startswith("ok ") for line in lines[:place] + lines[place + 2 :])
    assert unread == "not read: hooks: gone"


def test_no_name_commands_the_terminal(fact: Any, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"a\x1b[2J\xff")
    facts = with_link(name=name, flags=0)
    fact(replace(facts, unread=("x\x07",)))
    assert main.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "a?[2J?" in text and "not read: x?" in text
    assert all(char.isprintable() or char == "\n" for char in text)


def test_objects_for_scripts(fact: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """They have the fields that are documented, and no others."""
    fact(RISKY)
    main.main(["doctor", "--json=short"])
    [line] = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert set(report) == set(protocol.DOCTOR)
    assert report["unread"] == ["hooks: gone"]
    assert all(set(finding) == set(protocol.FINDING) for finding in report["findings"])
    by_check = {finding["check"]: finding for finding in report["findings"]}
    assert by_check["up"]["result"] == "ok"
    assert by_check["up"]["interface"] == "eth0" and by_check["up"]["cure"] is None
    assert by_check["capabilities"]["result"] == "warning"
    assert by_check["capabilities"]["interface"] is None and by_check["capabilities"]["cure"]


PORT = replace(ETH1, index=4, name="port", master=3, port_kind="bridge", altnames=("enp3s0",))
LO = Link(1, "lo", bytes(6), 772, READY | 8, None, None, None)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["eth0", "eth1"]),
        (["port"], ["port"]),
        (["enp3s0"], ["port"]),
        (["eth*"], ["eth0", "eth1"]),
        (["eth1", "*"], ["eth1", "lo", "eth0", "port"]),
        (["lo"], ["lo"]),
    ],
)
def test_which_interfaces(words: list[str], names: list[str]) -> None:
    assert [link.name for link in doctor._chosen([LO, ETH0, ETH1, PORT], words, [])] == names


def test_without_a_name_what_is_served_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the veth of a container, which is nobody's default."""
    veth = replace(ETH1, kind="veth")
    seen: list[str] = []

    async def kernel(_: float) -> Any:
        return replace(HEALTHY.kernel, links=(LO, ETH0, veth))

    async def facts(_: Any, links: Sequence[Link], *__: Any) -> Facts:
        seen.extend(link.name for link in links)
        return HEALTHY

    monkeypatch.setattr(gather, "kernel", kernel)
    monkeypatch.setattr(gather, "facts", facts)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    assert main.main(["doctor"]) == 0
    assert seen == ["eth0"]
    (tmp_path / socket_name(network_namespace(), "eth1")).touch()
    seen.clear()
    assert main.main(["doctor"]) == 0
    assert seen == ["eth0", "eth1"]


@pytest.mark.parametrize(
    ("word", "told"), [("eth7", "the nearest is: eth"), ("wl*", "there is no such"), ("x", "lo")]
)
def test_an_interface_that_is_not_there(word: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        doctor._chosen([LO, ETH0, ETH1], ["eth0", word], [])


def test_a_check_is_of_an_interface_or_of_the_host() -> None:
    assert all((check.of_link is None) != (check.of_host is None) for check in checks.CHECKS)
    assert len({check.name for check in checks.CHECKS}) == len(checks.CHECKS)
