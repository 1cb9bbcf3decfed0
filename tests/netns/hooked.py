"""Hosts on which the hooks of a DHCP client are installed, as `autoip hooks install` does it."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from lab import Namespace, Port, Syslog, machine
from lab.daemon import REPOSITORY

from .helpers import LINK_LOCAL, autoip_command, wait_until

LINGER = 3
"""Seconds for which an address stays beside a lease, by the configuration of these hosts."""
CONFIG = f"[*]\ndelay = 100\nlinger = {LINGER}\n"


@dataclass(frozen=True, slots=True)
class Hooked:
    """A host with files of its own, and autoip as a DHCP client's hooks find it."""

    host: Namespace
    program: Path
    """What the hooks start: autoip; each start is noted in `starts`."""
    log: Path
    syslog: Syslog

    def install(self, *words: str) -> None:
        """`autoip hooks install WORDS`."""
        self.hooks("install", "--program", str(self.program), *words)

    def hooks(self, *words: str) -> str:
        """`autoip hooks WORDS`; what it says."""
        return self.host.run(*autoip_command(), "hooks", *words)

    def before_path(self, folder: str) -> None:
        """Have the script find programs in a folder first. It takes no PATH from outside."""
        self.host.run("sed", "-i", f"s|^PATH=|&{folder}:|", "/etc/autoip/hook")

    def call(self, action: str, interface: str) -> None:
        """As a client's hook does; it has to return, with 0 and without a word."""
        command = f"/etc/autoip/hook {action} {shlex.quote(interface)} 2>&1"
        assert self.host.run("sh", "-c", command) == ""

    def autoip(self, *words: str) -> str:
        """A command of autoip; what it says, also if its status is not 0."""
        return self.host.run(*autoip_command(), *words, check=False)

    def complaints(self) -> list[str]:
        """What the hooks and autoip have told syslog that is a warning or worse.

        Without the loss of an address, a warning too, which is what the tests bring about.
        """
        found = [
            re.match(r"<(\d+)>.*?\bautoip(\[\d+\])?: (.*)", line) for line in self.syslog.lines
        ]
        told = [line[3] for line in found if line is not None and int(line[1]) % 8 <= 4]
        return [line for line in told if not re.match(r"\S+: (announcing|bound) -> ", line)]

    def starts(self) -> list[str]:
        """The words of each `run` of the program by a hook so far."""
        return [words for words in self._calls() if words.startswith("run ")]

    def stops(self) -> list[str]:
        """The words of each `stop`. A daemon that is slow to answer may be told again."""
        return [words for words in self._calls() if words.startswith("stop ")]

    def _calls(self) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.partition(" ")[2] for line in lines]

    def daemons(self, interface: str) -> list[int]:
        """Pids of the daemons that serve the interface."""
        ours = re.compile(rf"(?!/bin/sh\0).*\0run\0--hook\0(--early\0)?{interface}\0".encode())
        found = []
        for pid in self.host.processes():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if ours.fullmatch(words):
                found.append(pid)
        return found

    def workers(self) -> list[int]:
        """Pids of the hooks that have not done all they were called for; a daemon's supervisor is none of them."""
        found = []
        for pid in self.host.processes():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"/etc/autoip/hook" in words and b"supervise" not in words:
                    found.append(pid)
        return found

    def wait_acted(self) -> None:
        """Until all calls of hooks so far have had their effect."""
        wait_until(lambda: not self.workers(), "the end of all hooks")

    def state(self, interface: str) -> str:
        """As `autoip status` has it."""
        rows = self.autoip("status", interface).splitlines()
        return rows[1].split()[1] if len(rows) > 1 else "?"

    def wait_state(self, interface: str, state: str, timeout: float = 60) -> None:
        wait_until(lambda: self.state(interface) == state, f"{interface} {state}", timeout)

    def wait_address(self, port: Port, timeout: float = 60) -> IPv4Address:
        """The one link-local address of the interface, once it has one."""
        wait_until(lambda: len(self.host.link_local(port.name)) == 1, "an address", timeout)
        return self.host.link_local(port.name)[0]

    def wait_no_address(self, port: Port, timeout: float = 60) -> None:
        wait_until(lambda: not self.host.link_local(port.name), "no address", timeout)

    def wait_ended(self, interface: str, timeout: float = 60) -> None:
        """Until no daemon is left."""
        wait_until(lambda: not self.daemons(interface), f"the end of {interface}'s daemon", timeout)


def routable(port: Port) -> list[IPv4Address]:
    """The addresses of the interface that are not link-local."""
    found = [entry.address for entry in port.host.addresses(port.name)]
    return [address for address in found if address not in LINK_LOCAL]


MakeHooked = Callable[[Namespace], Hooked]
"""`make_hooked(host)`: that host with files of its own; no hooks yet."""


def hooked(host: Namespace, folder: Path, *, config: str = CONFIG) -> Hooked:
    """Gives the host files of its own and a program for its hooks; no hooks yet."""
    machine.give_own_files(host)
    machine.write(host, "/etc/autoip.conf", config)
    log = folder / "starts"
    program = folder / "autoip"
    command = shlex.join(autoip_command())
    program.write_text(f'#!/bin/sh\necho "$$ $*" >>{log}\ncd {REPOSITORY} && exec {command} "$@"\n')
    program.chmod(0o755)
    return Hooked(host, program, log, Syslog(host))
