"""The checks: from facts to findings, without input and output.

`CHECKS` is the one table of them; the manual's and docs/operation.md's are made from it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from ipaddress import IPv4Address

from autoip.commands.diagnosis.facts import Facts
from autoip.core.arp import format_mac
from autoip.core.constants import LINK_LOCAL_NETWORK
from autoip.core.proxy_arp import CANDIDATES
from autoip.daemon import rivals
from autoip.daemon.networkmanager.gate import ACTIVATED, IP_CONFIG, STATES, UNMANAGED
from autoip.dhcp.clients import DHCP_TIMEOUT
from autoip.dhcp.trust import others_may_write
from autoip.kernel.arp_broadcast import ETH_P_ALL, ETH_P_ARP, Filter, place
from autoip.kernel.model import IFF_LOWER_UP, Address, Link, Route
from autoip.kernel.network import LABEL_SUFFIX
from autoip.kernel.rtnetlink import RT_TABLE_LOCAL, RT_TABLE_MAIN
from autoip.kernel.survey import Tables

METADATA_ADDRESS = IPv4Address("169.254.169.254")
"""Where clouds serve instance metadata."""


class Result(Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found."""

    check: str
    interface: str | None
    """None: it is about the whole host."""
    result: Result
    what: str
    cure: str = ""
    """The command that cures it, or in words what does; empty if there is nothing to cure."""


Trouble = tuple[Result, str, str]
"""Result, what was found, and its cure."""
Troubles = Iterator[Trouble]


class Unread(Exception):
    """A fact that the check needs could not be read."""


@dataclass(frozen=True, slots=True)
class Check:
    """A row of the table.

    Args:
        name: one word.
        finds: what is wrong where it finds something.
        cure: of what it finds, in general.
        fine: what is right where it finds nothing.
        of_link: yields the troubles of an interface.
        of_host: yields the troubles of the whole host; one of the two is given.
    """

    name: str
    finds: str
    cure: str
    fine: str
    of_link: Callable[[Facts, Link], Troubles] | None = None
    of_host: Callable[[Facts], Troubles] | None = None


def findings(facts: Facts, links: Iterable[Link]) -> list[Finding]:
    """Return what all checks find, those of each interface first, then those of the whole host."""
    found: list[Finding] = []
    for link in links:
        for check in CHECKS:
            if check.of_link is not None:
                found += _judged(check, link.name, check.of_link(facts, link))
                if not link.speaks_arp:
                    break  # the first check says so, and the others are about links that do
    for check in CHECKS:
        if check.of_host is not None:
            found += _judged(check, None, check.of_host(facts))
    return found


def _judged(check: Check, interface: str | None, troubles: Troubles) -> list[Finding]:
    found: list[Finding] = []
    try:
        # What is found before something cannot be read counts.
        found.extend(Finding(check.name, interface, *trouble) for trouble in troubles)
    except Unread:
        return found  # `Facts.unread` has the reason
    return found or [Finding(check.name, interface, Result.OK, check.fine)]


def _warning(what: str, cure: str) -> Trouble:
    return Result.WARNING, what, cure


def _failure(what: str, cure: str) -> Trouble:
    return Result.FAILURE, what, cure


# --- the link --------------------------------------------------------------------------------------


def _ethernet(_: Facts, link: Link) -> Troubles:
    if not link.speaks_arp:
        yield _failure(
            "it does not speak ARP over Ethernet", "name an interface that does: ip link"
        )


def _up(_: Facts, link: Link) -> Troubles:
    if not link.up:
        yield _failure("it is down", f"ip link set {_q(link.name)} up")


def _carrier(_: Facts, link: Link) -> Troubles:
    if not link.up:
        raise Unread  # an interface that is down has none
    if not link.flags & IFF_LOWER_UP:
        yield _failure(
            "it has no carrier: no cable, or the other side is off",
            "put the cable in, or switch the other side on",
        )
    elif not link.ready:
        yield _failure(
            "it has a carrier and waits for 802.1X or Wi-Fi", "authenticate, or associate with it"
        )


def _master(facts: Facts, link: Link) -> Troubles:
    if link.is_port:
        names = {other.index: other.name for other in facts.kernel.links}
        master = names.get(link.master or 0, f"interface {link.master}")
        yield _failure(
            f"it belongs to {master}, which gets its frames (or serve {master} instead)",
            f"ip link set {_q(link.name)} nomaster",
        )


# --- other programs --------------------------------------------------------------------------------


def _networkmanager(facts: Facts, link: Link) -> Troubles:
    if facts.networkmanager is None or facts.configuration is None:
        raise Unread
    if facts.configuration.networkmanager and not facts.jeepney:
        yield _warning(
            "NetworkManager is not followed: the Python package jeepney is missing",
            "pip install 'autoip[networkmanager]'",
        )
    device = facts.networkmanager.get(link.name)
    if device is None or device.state == UNMANAGED:
        return
    if not IP_CONFIG <= device.state <= ACTIVATED:
        yield _failure(
            f"NetworkManager has it in state {STATES.get(device.state, device.state)}: no address is"
            f" held (or have it connected: nmcli device connect {_q(link.name)})",
            f"nmcli device set {_q(link.name)} managed no",
        )
    timeout = device.timeout or facts.configuration.timeouts.get(link.name, 0)
    if device.method == "auto" and timeout < DHCP_TIMEOUT:
        profile = _q(device.profile)
        yield _warning(
            f"NetworkManager takes all addresses off it when DHCP has failed for {timeout} s",
            f"nmcli connection modify {profile} ipv4.dhcp-timeout {DHCP_TIMEOUT}"
            " connection.autoconnect-retries 0"
            f" && nmcli connection up {profile}",
        )


def _rival(facts: Facts, link: Link) -> Troubles:
    name = _q(link.name)
    for address in _foreign(facts, link):
        yield _warning(
            rivals.warning(address, link.name, facts.processes or ()),
            f"ip address del {address.address}/{address.prefixlen} dev {name}",
        )
    if facts.networkmanager is None or facts.processes is None or facts.configuration is None:
        raise Unread
    device = facts.networkmanager.get(link.name)
    if device is not None and device.method == "link-local":
        yield _warning(
            f"NetworkManager's profile {device.profile} has ipv4.method link-local",
            f"nmcli connection modify {_q(device.profile)} ipv4.method auto"
            f" && nmcli connection up {_q(device.profile)}",
        )
    elif device is not None and device.link_local in _NM_ENABLED:
        yield _warning(
            f"NetworkManager's profile {device.profile} has ipv4.link-local"
            f" {_NM_ENABLED[device.link_local]}",
            f"nmcli connection modify {_q(device.profile)} ipv4.link-local disabled"
            f" && nmcli connection up {_q(device.profile)}",
        )
    found = rivals.programs(link.name, facts.processes)
    for program in ("avahi-autoipd", "zcip"):
        if program in found:
            pid = found[program].pid
            yield _warning(f"{program} serves it (process {pid})", f"kill {pid}")
    if "ConnMan" in found and not _connman_leaves(facts.configuration.connman, link.name):
        yield _warning(
            f"ConnMan (process {found['ConnMan'].pid}) gives it a link-local address when DHCP fails",
            f"NetworkInterfaceBlacklist={link.name} below [General] in /etc/connman/main.conf,"
            " then systemctl restart connman",
        )
    file = facts.configuration.networkd.get(link.name)
    if file is not None and "systemd-networkd" in found and file.link_local in _NETWORKD_ENABLED:
        yield _warning(
            f"systemd-networkd gives it a link-local address: LinkLocalAddressing={file.link_local}"
            f" in {file.path}",
            f"sed -i 's/^LinkLocalAddressing=.*/LinkLocalAddressing=ipv6/' {_q(file.path)}"
            f" && networkctl reload && networkctl reconfigure {name}",
        )


_NM_ENABLED = {3: "enabled", 4: "fallback"}
_NETWORKD_ENABLED = ("yes", "true", "on", "1", "ipv4", "fallback", "ipv4-fallback")


def _connman_leaves(text: str, name: str) -> bool:
    """Return whether ConnMan leaves the interface alone: the list has the beginnings of names."""
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "NetworkInterfaceBlacklist":
            words = (word.strip() for word in value.split(","))
            return any(word and name.startswith(word) for word in words)
    return any(name.startswith(word) for word in ("vmnet", "vboxnet", "virbr", "ifb", "ve-", "vb-"))


def _dhcpcd(facts: Facts, link: Link) -> Troubles:
    if facts.processes is None or facts.configuration is None:
        raise Unread
    process = rivals.programs(link.name, facts.processes).get("dhcpcd")
    if process is None or {"-L", "--noipv4ll"}.intersection(process.arguments):
        return
    text = facts.configuration.dhcpcd
    if not _dhcpcd_leaves(text, link.name):
        # At the start of the file: what stands after a line `interface` is for that one alone.
        write = f"{'sed -i 1inoipv4ll' if text else 'echo noipv4ll >'} /etc/dhcpcd.conf"
        yield _warning(
            f"dhcpcd (process {process.pid}) has link-local addresses of its own:"
            " /etc/dhcpcd.conf does not say noipv4ll",
            f"{write} && dhcpcd --rebind {_q(link.name)}",
        )


def _dhcpcd_leaves(text: str, name: str) -> bool:
    """Return whether dhcpcd gives the interface no link-local address, by its configuration file."""
    section = ""
    for line in text.splitlines():
        word, *rest = line.split("#")[0].split() or [""]
        if word in ("interface", "ssid", "profile"):
            section = rest[0] if word == "interface" and rest else word
        denied = word == "denyinterfaces" and any(fnmatchcase(name, pattern) for pattern in rest)
        if denied or (word in ("noipv4ll", "noipv4") and section in ("", name)):
            return True
    return False


# --- addresses and routes --------------------------------------------------------------------------


def _mask(facts: Facts, link: Link) -> Troubles:
    for address in facts.kernel.addresses:
        wrong = address.prefixlen != LINK_LOCAL_NETWORK.prefixlen
        if address.index == link.index and address.address in LINK_LOCAL_NETWORK and wrong:
            old = f"{address.address}/{address.prefixlen}"
            name = _q(link.name)
            yield _warning(
                f"{old} has another mask than /{LINK_LOCAL_NETWORK.prefixlen}: hosts of its link are"
                " taken for hosts elsewhere",
                f"ip address del {old} dev {name} && ip address add"
                f" {address.address}/{LINK_LOCAL_NETWORK.prefixlen} scope link dev {name}",
            )


def _default_route(facts: Facts, link: Link) -> Troubles:
    for route in _tables(facts).routes:
        default = route.prefixlen == 0 and route.unicast and not route.via
        if default and route.index == link.index and not route.ours:
            yield _warning(
                "somebody's default route takes every host for one on this link",
                f"ip route del {_route(facts, route)}",
            )


def _routes(facts: Facts) -> Troubles:
    routes = _to_link_local(facts)
    foreign = [route for route in routes if not _is_ours(facts, route)]
    if len({route.index for route in routes}) < 2 or not foreign:
        return
    places = [f"{_name(facts, route.index)} (metric {route.metric})" for route in routes]
    excess = [route for route in foreign if len(foreign) < len(routes) or route is not routes[0]]
    yield _warning(
        f"several routes to {LINK_LOCAL_NETWORK}: {places[0]} wins over {', '.join(places[1:])}",
        " && ".join(f"ip route del {_route(facts, route)}" for route in excess),
    )


def _metadata(facts: Facts) -> Troubles:
    if facts.cloud is None:
        raise Unread

    def matching(routes: Iterable[Route]) -> list[Route]:
        found = [route for route in routes if METADATA_ADDRESS in route.network]
        return sorted(found, key=lambda route: (-route.prefixlen, route.metric))

    now = matching(_main(_tables(facts).routes))
    if not now or now[0].via or not 0 < now[0].prefixlen < 32:
        return
    others = [
        route
        for route in matching(_tables(facts).routes)
        if route.unicast
        and route.index is not None
        and route.table not in (RT_TABLE_MAIN, RT_TABLE_LOCAL)
        and route.prefixlen > now[0].prefixlen
    ]
    where = f"has a route in table {others[0].table}" if others else f"is {facts.cloud}'s"
    if facts.cloud:
        others += [route for route in now if route.prefixlen == 0 and route.via]
    for route in others[:1]:
        via = f"via {route.via} " if route.via else ""
        yield _warning(
            f"{METADATA_ADDRESS}, which {where}, is looked for on the link of"
            f" {_name(facts, now[0].index)} ({now[0].network})",
            f"ip route add {METADATA_ADDRESS}/32 {via}dev {_q(_name(facts, route.index))}",
        )


def _rp_filter(facts: Facts, link: Link) -> Troubles:
    if facts.settings is None:
        raise Unread
    order = list(dict.fromkeys(route.index for route in _to_link_local(facts)))
    if link.index in order[1:] and _setting(facts.settings, link.name, "rp_filter") == _STRICT:
        yield _warning(
            f"strict rp_filter: broadcasts and multicasts of link-local hosts that have no route of"
            f" their own are dropped here, because the route to them is by {_name(facts, order[0])}",
            f"sysctl -w net/ipv4/conf/{_q(link.name)}/rp_filter=2",
        )


_STRICT = 1


def _proxy_arp(facts: Facts, link: Link) -> Troubles:
    if facts.settings is None:
        raise Unread
    for where in ("all", link.name):
        if facts.settings.get(where, {}).get("proxy_arp", 0):
            yield _warning(
                "this host answers ARP for the addresses of others (proxy_arp)",
                f"sysctl -w net/ipv4/conf/{_q(where)}/proxy_arp=0",
            )
    taken: dict[bytes, set[str]] = {}
    for neighbour in _tables(facts).neighbours:
        if neighbour.index == link.index and neighbour.address in LINK_LOCAL_NETWORK:
            taken.setdefault(neighbour.mac, set()).add(str(neighbour.address))
    for mac, addresses in taken.items():
        if len(addresses) >= CANDIDATES:
            yield _warning(
                f"{format_mac(mac)} answers for {', '.join(sorted(addresses)[:CANDIDATES])}: proxy ARP"
                " there?",
                f"switch it off there for {LINK_LOCAL_NETWORK}",
            )


# --- what the kernel and the administrator allow ---------------------------------------------------


def _egress(facts: Facts, link: Link) -> Troubles:
    egress = facts.kernel.egress.get(link.index)
    if egress is None:
        raise Unread
    name = _q(link.name)
    if egress.programs:
        yield _warning(
            f"{egress.programs} BPF programs of tcx run before autoip's filter and may decide that it"
            " does not run",
            f"whoever attached them must detach them: bpftool net show dev {name}",
        )
    if egress.by_tcx:
        if egress.programs is None:
            raise Unread
        return  # it runs before all filters of tc, and needs no qdisc
    if egress.other_hook:
        yield _warning(
            "a qdisc ingress is in the place of the clsact for autoip's filter: ARP leaves by unicast",
            f"tc qdisc del dev {name} ingress",
        )
    for found in _before(egress.filters):
        yield _warning(
            f"a filter of tc, {found.kind} {found.name or ''}".rstrip()
            + f" of priority {found.priority}, runs before autoip's and may decide that it does not run",
            f"tc filter del dev {name} egress pref {found.priority}",
        )


def _before(filters: Sequence[Filter]) -> list[Filter]:
    """Return the filters that ARP passes before ours, where ours is or would be; one of each priority."""
    ours = place(filters)
    found = {
        other.priority: other  # the kernel lists the priority itself as well, before its filters
        for other in filters
        if not other.ours
        and other.priority < ours.priority
        and other.protocol in (ETH_P_ALL, ETH_P_ARP)
    }
    return list(found.values())


def _capabilities(facts: Facts) -> Troubles:
    if facts.beyond is None:
        raise Unread
    for name in facts.beyond:
        short = name.removeprefix("CAP_")
        cure = f"docker run --cap-add {short}, or what gives it in another container"
        if name == "CAP_BPF":
            yield _warning(f"no program can have {name} here: ARP leaves by unicast", cure)
        else:
            yield _failure(f"no program can have {name} here: autoip cannot run", cure)


def _hooks(facts: Facts) -> Troubles:
    hooks = facts.hooks
    if hooks is None:
        raise Unread
    for node in hooks.nodes:
        if others_may_write(node.path, node.uid, node.gid, node.mode):
            yield _failure(
                f"others than root may write {node.path}, which hooks run as root",
                f"chown root:root {_q(node.path)} && chmod go-w {_q(node.path)}",
            )
    if not hooks.clients:
        return
    again = f"autoip hooks install{''.join(f' --client {client}' for client in hooks.clients)}"
    if not hooks.shared:
        yield _failure("hooks are installed and the script that they call is gone", again)
    elif not hooks.program_there:
        yield _failure(f"hooks are installed for {hooks.program}, which cannot be run", again)
    for client, there in hooks.clients.items():
        if not there:
            yield _warning(
                f"hooks are installed for {client}, which is gone",
                f"autoip hooks remove --client {client}",
            )


# --- what several share ----------------------------------------------------------------------------


def _q(word: str) -> str:
    return shlex.quote(word)


def _name(facts: Facts, index: int | None) -> str:
    names = {link.index: link.name for link in facts.kernel.links}
    return names.get(index or 0, f"interface {index}")


def _setting(settings: Mapping[str, Mapping[str, int]], name: str, key: str) -> int:
    """Return the value in force of a setting that counts for all and for each: the greater one."""
    return max(settings.get(where, {}).get(key, 0) for where in ("all", name))


def _tables(facts: Facts) -> Tables:
    """Return routes and neighbours. Raises Unread."""
    if facts.tables is None:
        raise Unread
    return facts.tables


def _main(routes: Iterable[Route]) -> list[Route]:
    """Return the routes of the main table by one interface."""
    return [
        route
        for route in routes
        if route.table == RT_TABLE_MAIN and route.unicast and route.index is not None
    ]


def _to_link_local(facts: Facts) -> list[Route]:
    """Return the routes to link-local destinations, the one that wins first."""
    routes = _main(_tables(facts).routes)
    # Of two with one metric the first wins, as in the kernel.
    return sorted(
        (route for route in routes if route.network == LINK_LOCAL_NETWORK),
        key=lambda route: route.metric,
    )


def _is_autoips(address: Address, links: Iterable[Link]) -> bool:
    """Return whether autoip has put the address there; a kernel before 5.18 knows the label alone."""
    labels = {f"{link.name}:{LABEL_SUFFIX}" for link in links if link.index == address.index}
    return not rivals.is_rival(address) or address.label in labels


def _foreign(facts: Facts, link: Link) -> list[Address]:
    """Return the link-local addresses of the interface that autoip has not put there."""
    return [
        address
        for address in facts.kernel.addresses
        if address.index == link.index and not _is_autoips(address, facts.kernel.links)
    ]


def _is_ours(facts: Facts, route: Route) -> bool:
    """Return whether a route is autoip's, or came with an address of autoip's."""
    return route.ours or any(
        address.index == route.index
        and address.address == route.source
        and _is_autoips(address, facts.kernel.links)
        for address in facts.kernel.addresses
    )


def _route(facts: Facts, route: Route) -> str:
    """Return the words by which `ip route del` removes this route and no other one."""
    words = [
        "default" if route.prefixlen == 0 else str(route.network),
        f"dev {_q(_name(facts, route.index))}",
        f"metric {route.metric}",
    ]
    if route.source is not None:
        words.append(f"src {route.source}")
    if route.table != RT_TABLE_MAIN:
        words.append(f"table {route.table}")
    return " ".join(words)


CHECKS: Sequence[Check] = (
    Check(
        "ethernet", "failure: the interface does not speak ARP over Ethernet",
        "name one that does", "it speaks ARP over Ethernet", _ethernet,
    ),
    Check("up", "failure: it is down", "`ip link set IFACE up`", "it is up", _up),
    Check(
        "carrier", "failure: no carrier, or 802.1X or Wi-Fi has not authenticated yet",
        "a cable, or the other side", "frames can be sent and received", _carrier,
    ),
    Check(
        "master", "failure: it is a port of a bridge, bond or team, which gets its frames",
        "`ip link set IFACE nomaster`, or serve the master", "it is not a port of another interface",
        _master,
    ),
    Check(
        "networkmanager", "failure: NetworkManager has not activated it; warning: NetworkManager takes all"
        f" addresses off when DHCP has failed for less than {DHCP_TIMEOUT} s, or is not followed",
        f"`nmcli device set IFACE managed no`; `ipv4.dhcp-timeout {DHCP_TIMEOUT}`",
        "NetworkManager is not in the way", _networkmanager,
    ),
    Check(
        "rival", "warning: another program manages link-local addresses there, by an address, its process"
        " or its configuration",
        "have that program leave the interface alone", "no other program manages link-local addresses there",
        _rival,
    ),
    Check(
        "dhcpcd", "warning: dhcpcd runs without `noipv4ll`", "`noipv4ll` in `/etc/dhcpcd.conf`",
        "dhcpcd has no link-local addresses of its own", _dhcpcd,
    ),
    Check(
        "mask", "warning: a link-local address with another mask than /16",
        "add it with /16", "link-local addresses have the mask /16", _mask,
    ),
    Check(
        "default-route", "warning: somebody's default route on the link, without a router",
        "`ip route del`", "nobody else has a default route on the link", _default_route,
    ),
    Check(
        "rp-filter", "warning: strict rp_filter on a second link with link-local addresses",
        "`sysctl -w net/ipv4/conf/IFACE/rp_filter=2`",
        "rp_filter drops nothing of link-local hosts", _rp_filter,
    ),
    Check(
        "proxy-arp", "warning: this host answers ARP for others (proxy_arp), or one machine has answered for"
        f" {CANDIDATES} link-local addresses or more",
        "`sysctl -w net/ipv4/conf/IFACE/proxy_arp=0`; on that machine", "nobody is known to do proxy ARP",
        _proxy_arp,
    ),
    Check(
        "egress", "warning: somebody's tc filter or tcx program runs before autoip's filter, or a qdisc"
        " `ingress` is in its place",
        "`tc filter del`, `tc qdisc del`", "nothing runs before autoip's filter", _egress,
    ),
    Check(
        "routes", f"warning: several routes to {LINK_LOCAL_NETWORK} of which one is not autoip's; which one wins",
        "`ip route del`", f"nobody else's route to {LINK_LOCAL_NETWORK} is beside another one",
        of_host=_routes,
    ),
    Check(
        "metadata", f"warning: {METADATA_ADDRESS}, a cloud's metadata host, is looked for on a link and its"
        " route is elsewhere",
        f"`ip route add {METADATA_ADDRESS}/32`", "no link-local route hides a cloud's metadata host",
        of_host=_metadata,
    ),
    Check(
        "capabilities", "failure: no program can have CAP_NET_RAW or CAP_NET_ADMIN here; warning: nor CAP_BPF",
        "what starts the container", "the capabilities can be had here", of_host=_capabilities,
    ),
    Check(
        "hooks", "failure: hooks for an autoip that is gone, or that others than root may write; warning: for"
        " a DHCP client that is gone",
        "`autoip hooks install`, `autoip hooks remove`; `chmod go-w`",
        "hooks are sound, or none are installed", of_host=_hooks,
    ),
)  # fmt: skip
"""In the order in which they are shown."""
