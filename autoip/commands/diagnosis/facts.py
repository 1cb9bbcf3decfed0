"""What the checks judge: values alone, no input and no output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoip.daemon.networkmanager.device import Device
from autoip.daemon.rivals import Process
from autoip.kernel.survey import Survey, Tables


@dataclass(frozen=True, slots=True)
class NetworkFile:
    """What systemd-networkd was told of an interface."""

    path: str
    link_local: str = ""
    """LinkLocalAddressing=, in lower case; empty: not set."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the files of other programs say."""

    dhcpcd: str = ""
    """Text of dhcpcd.conf."""
    connman: str = ""
    """Text of ConnMan's main.conf."""
    networkd: Mapping[str, NetworkFile] = field(default_factory=dict)
    """By interface."""
    timeouts: Mapping[str, int] = field(default_factory=dict)
    """By interface: ipv4.dhcp-timeout of NetworkManager's configuration, in seconds."""
    networkmanager: bool = False
    """NetworkManager has run since the boot."""


@dataclass(frozen=True, slots=True)
class Node:
    """A file or directory."""

    path: str
    uid: int
    gid: int
    mode: int
    """st_mode."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks of `autoip hooks install` that are there."""

    clients: Mapping[str, bool] = field(default_factory=dict)
    """DHCP clients with hooks of ours, and whether their own program is installed."""
    shared: bool = False
    """The script that the hooks call is there."""
    program: str = ""
    """The program that this script starts."""
    program_there: bool = False
    nodes: tuple[Node, ...] = ()
    """Files of ours, the program, and the directories on the way to each."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is judged; None: it could not be read, and `unread` has the reason."""

    kernel: Survey = field(default_factory=Survey)
    tables: Tables | None = field(default_factory=Tables)
    settings: Mapping[str, Mapping[str, int]] | None = field(default_factory=dict)
    """By interface, and for `all`: some of net.ipv4.conf."""
    processes: tuple[Process, ...] | None = ()
    """The programs of this network namespace."""
    networkmanager: Mapping[str, Device] | None = field(default_factory=dict)
    """By interface; those that NetworkManager does not know are missing."""
    jeepney: bool = True
    """Whether the package is there by which NetworkManager is followed."""
    configuration: Configuration | None = field(default_factory=Configuration)
    beyond: tuple[str, ...] | None = ()
    """Capabilities that a daemon uses and that no program can have here."""
    cloud: str | None = ""
    """The cloud that this machine is in, by its firmware; empty: in none that is known."""
    hooks: Hooks | None = field(default_factory=Hooks)
    unread: tuple[str, ...] = ()
    """What could not be read and why, one line each."""
