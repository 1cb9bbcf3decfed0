"""What autoip reports of an interface: the fields of `autoip status` and the events of `autoip watch`.

The manual's tables of names, types, units and meanings are made from this file. Fields are only added,
never removed; `VERSION` grows with each.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # `status` must answer fast, and `typing` takes milliseconds to import
    from collections.abc import Mapping
    from typing import Any

VERSION = 1
"""The version of the objects below, and of the control socket's requests."""


class Field:
    """A field of a JSON object.

    Attributes:
        type: JSON type; ``or null`` where the value may be unknown or absent.
        unit: of a number; empty for other types.
        meaning: in words.
    """

    __slots__ = ("meaning", "type", "unit")

    def __init__(self, json_type: str, unit: str, meaning: str) -> None:
        self.type = json_type
        self.unit = unit
        self.meaning = meaning


STATUS: Mapping[str, Field] = {
    "version": Field("integer", "", "version of this object"),
    "interface": Field("string", "", "name of the interface"),
    "index": Field("integer or null", "", "its number in the kernel; null while there is none"),
    "mac": Field("string or null", "", "its hardware address"),
    "pid": Field("integer", "", "process that serves it"),
    "state": Field("string", "", "one of the states below"),
    "why": Field("string", "", "what brought the state about"),
    "address": Field("string or null", "", "the address that is held"),
    "since": Field("number or null", "s since 1970", "when it was put on the interface"),
    "candidate": Field("string or null", "", "the address that is held or tried"),
    "step": Field("string or null", "", "what comes next"),
    "step_in": Field("number or null", "s", "how soon"),
    "policy": Field("string", "", "when the interface has an address: see POLICY"),
    "defence": Field("string", "", "defend: once per 10 s; abandon: never"),
    "delay": Field("integer", "ms", "longest pause between two probes"),
    "others": Field("array of strings", "", "other IPv4 addresses, with prefix length"),
    "routable": Field("array of strings", "", "those of them that are routable"),
    "conflicts": Field("integer", "", "conflicts since the start, defended ones included"),
    "defences": Field("integer", "", "conflicts that were defended against"),
    "last_conflict": Field("object or null", "", "its mac, address, and at (s since 1970)"),
    "kernel_defence": Field(
        "object or null",
        "",
        "conflicts that the defence in the kernel has answered, left to the daemon, and failed to report or answer,"
        " also while the daemon was stopped; null: there is no such defence",
    ),
    "limits": Field(
        "array of strings",
        "",
        "what kernel, privileges, a setting or a missing package do not allow",
    ),
    "notes": Field("array of strings", "", "what other programs and hosts do that is in the way"),
    "neighbours": Field(
        "array of objects",
        "",
        "with several links: each link-local neighbour that is reached by this one, its address, mac (null: not known"
        " yet), and ambiguous: null, or interface and mac of another host that has the same address",
    ),
}
"""`autoip status --json`: one such object for each interface."""

EVENT: Mapping[str, Field] = {
    "version": Field("integer", "", "version of this object"),
    "event": Field("string", "", "one of the events below"),
    "interface": Field("string", "", "name of the interface"),
    "at": Field("number", "s since 1970", "when"),
    "old": Field("string", "", "transition: the state before"),
    "new": Field("string", "", "transition: the state from now on"),
    "why": Field("string", "", "transition: what brought it about"),
    "address": Field("string or null", "", "the address concerned"),
    "step": Field("string or null", "", "transition: what comes next"),
    "step_in": Field("number or null", "s", "transition: how soon"),
    "mac": Field("string", "", "conflict, defence: the other host"),
    "in_use": Field("boolean", "", "conflict: the address was in use and is given up"),
    "delay": Field("number", "s", "defence: from the conflict to our announcement"),
    "reflex": Field("boolean", "", "defence: sent at once, by the kernel or the helper"),
    "prefixlen": Field("integer", "", "address-added, address-removed: its prefix length"),
    "status": Field("object", "", "status: the object of `autoip status`"),
}
"""`autoip watch --json`: one such object a line, with the fields that its event has."""

PROBE: Mapping[str, Field] = {
    "version": Field("integer", "", "version of this object"),
    "interface": Field("string", "", "name of the interface"),
    "address": Field("string", "", "the address that was asked for"),
    "in_use": Field("boolean", "", "another host has it, or probes for it"),
    "mac": Field("string or null", "", "that host's hardware address"),
}
"""`autoip probe --json`."""

SCAN: Mapping[str, Field] = {
    "version": Field("integer", "", "version of this object"),
    "interface": Field("string", "", "name of the interface"),
    "address": Field(
        "string or null", "", "the host's address; null: it has none yet, or one that was not found"
    ),
    "mac": Field("string", "", "its hardware address"),
    "vendor": Field(
        "string or null",
        "",
        "who made the card; locally administered: software made the address up",
    ),
    "names": Field("array of strings", "", "what the host calls itself"),
    "kinds": Field("array of strings", "", "what it says it is, or does"),
    "via": Field("array of strings", "", "the protocols by which it was found"),
    "rtt_ms": Field(
        "number or null", "ms", "from the ARP request to the answer; null: it was not asked by ARP"
    ),
    "first_seen": Field("number", "s since 1970", "when its first packet came"),
    "notes": Field("array of strings", "", "what is wrong, and the command that helps"),
}
"""`autoip scan --json`, an object for each host; the same host again when more is known of it."""

DOCTOR: Mapping[str, Field] = {
    "version": Field("integer", "", "version of this object"),
    "findings": Field(
        "array of objects", "", "what the checks found, at least one for each that could be made"
    ),
    "unread": Field("array of strings", "", "what could not be read and why"),
}
"""`autoip doctor --json`."""

FINDING: Mapping[str, Field] = {
    "check": Field("string", "", "one of the checks below"),
    "interface": Field("string or null", "", "name of the interface; null: of the whole host"),
    "result": Field("string", "", "ok, warning or failure"),
    "what": Field("string", "", "what was found"),
    "cure": Field("string or null", "", "the command that cures it, or in words what does"),
}
"""One of its findings."""

EVENTS: Mapping[str, str] = {
    "status": "the first event: the present state",
    "transition": "the state changed",
    "conflict": "another host claims, or probes for, the address",
    "defence": "a conflict was answered, the address kept",
    "address-added": "another IPv4 address came",
    "address-removed": "another IPv4 address went",
    "stopped": "the interface is no longer served",
    "lost": "the daemon has ended without `stopped`; watch waits for another",
}

STATES: Mapping[str, str] = {
    "no-link": "the interface is missing, down or without carrier",
    "standby": "no address is wanted now: by the policy, a network manager, or the interface's master",
    "probing": "a candidate is being probed",
    "announce-wait": "all probes are sent; the address is free if nobody objects",
    "configuring": "the address is being put on the interface",
    "announcing": "the address is held, and being announced",
    "bound": "the address is held",
    "rate-limited": "too many conflicts: one candidate a minute",
    "paused": "the kernel refused the address; tried again in a while",
    "not-running": "no daemon serves the interface",
}


def socket_name(namespace: int, interface: str) -> str:
    """Return the control socket's name; it has the network namespace's inode, since several may share /run."""
    return f"{namespace}-{interface}.sock"


def event(name: str, interface: str, at: float, **fields: Any) -> dict[str, Any]:
    """Return an event for `autoip watch`; `at`: seconds since 1970."""
    return {"version": VERSION, "event": name, "interface": interface, "at": at, **fields}
