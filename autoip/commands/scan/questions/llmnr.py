"""LLMNR (RFC 4795), which Windows and systemd-resolved speak: the names of addresses."""

from __future__ import annotations

from autoip.commands.scan.questions import Answer, dns

PORT, GROUP, TTL = 5355, 0xE00000FC, 255


def reverse(address: int) -> bytes:
    """Ask for the name of an address; a message has one question (section 2.1.1)."""
    return dns.questions([dns.reversed_name(address)], 0)


def answer(payload: bytes) -> Answer | None:
    """Read a response: the names of addresses."""
    names = [
        data
        for owner, kind, data in dns.records(payload)
        if kind == dns.PTR and owner.endswith(dns.ADDRESSES)
    ]
    return Answer(tuple(dict.fromkeys(names))) if names else None
