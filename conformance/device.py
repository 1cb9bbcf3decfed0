"""The device under test: a command, in a machine of its own.

The command's words may hold `{netns}` and `{ifname}`. `{netns}` is the name of the network namespace, for `ip netns
exec NAME` or `nsenter --net=/run/netns/NAME`; it is known in the machine alone, and the command is inside already. A
word that is just `{ifname}` becomes several words if the program shall look after several interfaces.

The machine is a network, a mount and a PID namespace: the next command in there finds the mounts and processes of the
one before, and nobody else does; /run is empty. The command's other arguments are in its environment:

    STATE_DIR   a folder, the same for every start in this machine, for what the program keeps over restarts
    CANDIDATE   the first candidate, only if the program takes one ("candidate")
    OPTIONS     words, of those that the program supports ("abandon", "default-route", "route-only"...)

A JSON file, named after the command's first word with `.json` added, or in `--about`, describes the program:

    name      of the program, as the reports have it
    version   a command that prints its version
    can       words of CAPABILITIES
    always    words, with the reason: it behaves so, without an option
    cannot    words, with the reason

Without the file the suite only starts the program. SIGTERM to the command's process stops it.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, final

from lab import AddressMonitor, Daemon, LabError, Namespace, Port, Switch
from lab.daemon import TEMPORARY_PREFIX

CAPABILITIES: Mapping[str, str] = {
    "candidate": "it cannot be told a first candidate",
    "abandon": "it has no option to give up at the first conflict",
    "default-route": "it has no option for a default route on the link",
    "route-only": "it has no option for the route without an address",
    "fallback": "it has no option to give way to a routable address",
    "several": "it looks after one interface",
}
"""The capabilities of programs, each with the text for a program that lacks it."""

SLOW_START = 60.0
"""Seconds for a program to start and claim, on a busy machine."""


@dataclass(frozen=True, slots=True)
class About:
    """The description of the program."""

    name: str
    version: str = "unknown"
    can: tuple[str, ...] = ()
    always: Mapping[str, str] = field(default_factory=dict)
    cannot: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        return asdict(self)


def read_about(command: str, file: str | None) -> About:
    """Read the file, or the one beside the command. Raises ValueError for unknown content."""
    first = shlex.split(command)[0]
    path = Path(file) if file else Path(f"{first}.json")
    if not path.exists():
        if file:
            raise ValueError(f"{file}: no such file")
        return About(Path(first).name)
    facts = json.loads(path.read_text(encoding="utf-8"))
    unknown = facts.keys() - {"name", "version", "can", "always", "cannot"}
    words = {*facts.get("can", ()), *facts.get("always", {}), *facts.get("cannot", {})}
    if unknown or words - CAPABILITIES.keys():
        raise ValueError(f"{path}: unknown: {sorted(unknown | (words - CAPABILITIES.keys()))}")
    asked = subprocess.run(
        ["sh", "-c", facts.get("version", "echo unknown")],
        cwd=path.resolve().parent,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    return About(
        facts["name"],
        asked.stdout.strip() or "unknown",
        tuple(facts.get("can", ())),
        facts.get("always", {}),
        facts.get("cannot", {}),
    )


@final
class Device(Daemon):
    """One start of the command; its `pid` is the command's own, as it is seen from outside of the machine."""

    label = "program"

    @property
    def pid(self) -> int:
        outer = self.process.pid
        try:
            return int(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0])
        except (OSError, IndexError):
            raise LabError("the program does not run") from None

    def close(self) -> None:
        # The whole machine is about to end: no need to be polite.
        if self.running:
            self.process.kill()
            self.process.wait(10)
        super().close()


@final
class Machine:
    """A host on a cable to the case's switch (`port`, its interface is `port.name`), and the program on it."""

    def __init__(
        self,
        switch: Switch,
        command: str,
        folder: Path,
        *,
        name: str = "eth0",
        mac: str | None = None,
        up: bool = True,
        plugged: bool = False,
    ) -> None:
        self._words = shlex.split(command)
        self._switch = switch
        self.host = Namespace("dut")
        self._state = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX))
        self._state.chmod(0o755)
        self.devices: list[Device] = []
        try:
            # Not in this machine's /run: a namespace of the laboratory has one of its own.
            self.host.run(
                *("sh", "-c", 'mkdir /run/netns && : >"$1" && mount --bind "$2" "$1"', "-"),
                *(f"/run/netns/{self.host.name}", self.host.path),
            )
            self._init = self.host.popen(
                [
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                    *("sh", "-c", "echo; while :; do sleep 600 & wait $!; done"),
                ],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
            assert self._init.stdout is not None
            self._init.stdout.readline()
            outer = self._init.pid
            self._pid = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0]
            self.port: Port = switch.attach(self.host, name, mac=mac, up=up, plugged=plugged)
            self.monitor = AddressMonitor(self.host)
        except BaseException:
            self.host.close()
            shutil.rmtree(self._state, ignore_errors=True)
            raise

    def device(
        self,
        *,
        candidate: IPv4Address | None = None,
        options: Sequence[str] = (),
        interfaces: Sequence[str] = (),
    ) -> Device:
        """Return the program for `interfaces` (the port's own, if none is named), not started yet."""
        names = list(interfaces) or [self.port.name]
        words: list[str] = []
        for word in self._words:
            if word == "{ifname}":
                words += names
            else:
                word = word.replace("{netns}", self.host.name)
                words.append(word.replace("{ifname}", " ".join(names)))
        env = {"STATE_DIR": str(self._state), "OPTIONS": " ".join(options)}
        if candidate is not None:
            env["CANDIDATE"] = str(candidate)
        inside = ["nsenter", "--target", self._pid, "--pid", "--mount", "--wd", "--"]
        made = Device(self.host, names[0], [*inside, *words], env=env)
        self.devices.append(made)
        return made

    def start(self, **settings: Any) -> Device:
        """Return `device`, started."""
        made = self.device(**settings)
        made.start()
        return made

    def forget(self) -> None:
        """Empty the folder that the program keeps over restarts."""
        for path in self._state.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def link_local(self) -> list[IPv4Address]:
        return self.host.link_local(self.port.name)

    def close(self) -> None:
        """End all processes of the machine. May be called twice."""
        self.monitor.close()
        for device in self.devices:
            device.close()
        if self._init.poll() is None:
            self._init.send_signal(signal.SIGKILL)
        self.host.close()
        shutil.rmtree(self._state, ignore_errors=True)
