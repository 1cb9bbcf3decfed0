"""A laboratory for programs that speak ARP: namespaces, cables, sniffers, scripted hosts, real programs.

It uses nothing of autoip's inside. Standard library only.
"""

from . import frames, journal, machine
from .daemon import Daemon, Usage, leftover_folders, usage
from .dhclient import Dhclient
from .dhcp import Dhcpd
from .frames import ArpFrame, Frame, gaps
from .link import Port, Switch
from .namespace import PATIENCE, LabError, Namespace, leftovers
from .neighbour import (
    Neighbour,
    Rule,
    answers_probes,
    echoes,
    probes_too,
)
from .networkmanager import NetworkManager, SystemBus
from .python import python_for_all
from .sniffer import AddressMonitor, Sniffer
from .syslog import Syslog

__all__ = [
    "PATIENCE",
    "AddressMonitor",
    "ArpFrame",
    "Daemon",
    "Dhclient",
    "Dhcpd",
    "Frame",
    "LabError",
    "Namespace",
    "Neighbour",
    "NetworkManager",
    "Port",
    "Rule",
    "Sniffer",
    "Switch",
    "Syslog",
    "SystemBus",
    "Usage",
    "answers_probes",
    "echoes",
    "frames",
    "gaps",
    "journal",
    "leftover_folders",
    "leftovers",
    "machine",
    "probes_too",
    "python_for_all",
    "usage",
]
