"""Links as values: which are ready, and which are picked when the user names none."""

from __future__ import annotations

from typing import Any

import pytest

from autoip.kernel.model import (
    IFF_LOOPBACK,
    IFF_LOWER_UP,
    IFF_NOARP,
    IFF_RUNNING,
    IFF_UP,
    Link,
    ethernet_like,
)


def a_link(**changes: Any) -> Link:
    values: dict[str, Any] = {
        "index": 2,
        "name": "eth0",
        "mac": bytes.fromhex("020000000001"),
        "hardware_type": 1,
        "flags": IFF_UP | IFF_RUNNING | IFF_LOWER_UP,
        "kind": None,
        "master": None,
        "port_kind": None,
    }
    return Link(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "picked"),
    [
        ({}, True),
        ({"flags": 0}, True),
        ({"kind": "vlan"}, True),
        ({"kind": "bridge", "name": "br0"}, True),
        ({"kind": "bridge", "name": "br-lan"}, True),
        ({"kind": "bridge", "name": "br-0123456789ag"}, True),
        ({"kind": "bridge", "name": "br-0123456789ab"}, False),
        ({"kind": "bridge", "name": "docker0"}, False),
        ({"kind": "veth"}, False),
        ({"master": 7}, False),
        ({"master": 7, "port_kind": "openvswitch"}, False),
        ({"master": 7, "port_kind": "vrf"}, True),
        ({"flags": IFF_LOOPBACK}, False),
        ({"flags": IFF_NOARP}, False),
        ({"hardware_type": 772}, False),
        ({"mac": bytes(20)}, False),
        ({"mac": b""}, False),
    ],
)
def test_ethernet_like(changes: dict[str, Any], picked: bool) -> None:
    link = a_link(**changes)
    assert ethernet_like([link]) == ([link] if picked else [])


@pytest.mark.parametrize(
    ("flags", "ready"),
    [
        (0x10041, True),
        (0x10040, False),
        (0x10001, False),
        (0x00041, False),
        (0x30041, False),
        (0x11043, True),
    ],
)
def test_ready(flags: int, ready: bool) -> None:
    assert a_link(flags=flags).ready is ready
