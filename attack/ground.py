"""The ground of an attack: a host on a cable, with autoip on it, and what has to be true there before and after."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
import time
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from autoip.kernel import tcx
from lab import Daemon, Namespace, Port, Switch
from tests.netns.helpers import PATIENCE, autoip_command

if TYPE_CHECKING:
    from typing_extensions import Self

QUICK = ("--delay", "1")
"""Probes within milliseconds: an address is claimed as soon as the program has started."""


SOON = 2.0
"""Seconds for the kernel and autoip to finish what they have begun."""
LISTS = {
    "addresses": "ip -j -4 addr show dev eth0",
    "rules": "ip -j -4 rule",
    "routes": "ip -j -4 route show table all",
    "queueing": "tc -j qdisc show dev eth0",
    "filters": "tc -j filter show dev eth0 egress",
}
"""All that autoip may change, by kind, and the command that lists it."""


class Wrong(AssertionError):
    """Something of autoip's is left over, missing, or twice."""


class Ground:
    """A host with one interface, `eth0`. What is true of it before the first start has to be true after each end."""

    def __init__(self, name: str, seed: int) -> None:
        self.random = random.Random(f"{seed}-{name}")
        self._closing = contextlib.ExitStack()
        self.switch = self._closing.enter_context(Switch())
        self.host = self._closing.enter_context(Namespace(name))
        self.port: Port = self.switch.attach(self.host, sniff=False)
        self.daemon = self.autoip()
        self._before = self._configuration()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.close()

    def autoip(self, *prefix: str) -> Daemon:
        """autoip for the interface, with the folders of the ground's first one; `prefix` runs it."""
        command = [*prefix, *autoip_command(), "run", "eth0"]
        made = self._closing.enter_context(Daemon(self.host, "eth0", command))
        if prefix:
            made.env |= {
                key: self.daemon.env[key] for key in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY")
            }
        return made

    # What happens

    def start(self, *options: str) -> None:
        """Start the ground's autoip, and return at once."""
        self.daemon.start(*(options or QUICK))

    def claimed(self, *, since: int = 0) -> IPv4Address:
        """Wait until autoip has claimed an address, after line number `since` of its output. Raises LabError."""
        line = self.daemon.wait_line(r"eth0: claimed ", PATIENCE, since=since)
        return IPv4Address(re.split(r"claimed ", line)[1].split()[0])

    def start_and_claim(self, *options: str) -> IPv4Address:
        """Start the ground's autoip and wait for its address."""
        since = len(self.daemon.lines)
        self.start(*options)
        return self.claimed(since=since)

    def stop(self) -> None:
        """End autoip as a service manager does. Raises Wrong if it does not end well."""
        status = self.daemon.stop()
        if status != 0:
            raise Wrong(f"autoip ended with status {status}")

    # What has to be true

    def _configuration(self) -> dict[str, list[str]]:
        """All that autoip may change, by kind."""
        output = self.host.run("sh", "-c", "; echo =; ".join(LISTS.values())).split("=\n")
        found = {kind: json.loads(text or "[]") for kind, text in zip(LISTS, output, strict=True)}
        found["addresses"] = [one for link in found["addresses"] for one in link["addr_info"]]
        found["programs"] = self.host.call(self._programs)
        return {kind: sorted(map(json.dumps, entries)) for kind, entries in found.items()}

    def _programs(self) -> list[dict[str, Any]]:
        """Those of tcx, at both sides of the interface; where the kernel has no tcx, none."""
        index = socket.if_nametoindex("eth0")
        found: list[dict[str, Any]] = []
        for side in ("ingress", "egress"):
            with contextlib.suppress(OSError):
                count, _ = tcx.programs(index, egress=side == "egress")
                found += [{"side": side, "place": place} for place in range(count)]
        return found

    def _new(self) -> dict[str, list[dict[str, Any]]]:
        """What was added to the first configuration. Raises Wrong if some of that is gone."""
        new: dict[str, list[dict[str, Any]]] = {}
        for kind, entries in self._configuration().items():
            left = list(entries)
            for entry in self._before[kind]:
                if entry not in left:
                    raise Wrong(f"{kind}: gone: {entry}")
                left.remove(entry)
            new[kind] = [json.loads(entry) for entry in left]
        return new

    def _files(self, *, runtime: Sequence[str]) -> None:
        names = sorted(name.partition("-")[2] for name in os.listdir(self.daemon.runtime))
        if names != sorted(runtime):
            raise Wrong(f"in the run-time directory: {names}, not {sorted(runtime)}")
        if strange := [
            n for n in os.listdir(self.daemon.state) if not re.fullmatch(r"\w+\.json", n)
        ]:
            raise Wrong(f"in the state directory: {strange}")

    def whole(self, address: IPv4Address, *, more_routes: int = 0) -> None:
        """autoip holds this address: all that belongs to it is there, once, within SOON. Raises Wrong.

        Args:
            address: the one that was claimed.
            more_routes: routes besides those of the address.
        """
        until = time.monotonic() + SOON
        while True:
            try:
                return self._check_whole(address, more_routes)
            except Wrong:
                if time.monotonic() > until:
                    raise
            time.sleep(0.05)

    def _check_whole(self, address: IPv4Address, more_routes: int) -> None:
        new = self._new()
        text = str(address)
        wanted = {
            "addresses": [one.get("local") == text for one in new["addresses"]],
            "rules": [one.get("src") == text for one in new["rules"]],
        }
        at_egress = [True for one in new["programs"] if one["side"] == "egress"]
        if new["queueing"]:  # then the filter is there, and nothing by tcx
            wanted["queueing"] = [one.get("kind") == "clsact" for one in new["queueing"]]
            wanted["filters"] = [True for f in new["filters"] if f.get("options", {}).get("handle")]
            wanted["programs"] = [not at_egress]
        else:
            wanted["programs"] = at_egress
        for kind, right in wanted.items():
            if right != [True]:
                raise Wrong(f"{kind}: not once what {text} needs: {new[kind]}")
        routes = [one for one in new["routes"] if one.get("dev") == "eth0"]
        # The kernel's three, and that of the address's own table.
        own = [one for one in routes if one.get("prefsrc") == text]
        if len(own) != 4 + more_routes or len(new["routes"]) != len(own):
            raise Wrong(f"routes: not what {text} needs: {new['routes']}")
        self._files(runtime=["eth0.lock", "eth0.sock"])

    def clean(self) -> None:
        """autoip has ended: nothing of it is left. Raises Wrong."""
        for kind, entries in self._new().items():
            if entries:
                raise Wrong(f"{kind}: left over: {entries}")
        self._files(runtime=[])
        if pids := self.host.processes():
            raise Wrong(f"processes {pids} still run")
