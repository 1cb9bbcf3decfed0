"""Frames that nobody would send in good faith, and not one of which is a conflict for the host that gets them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from ipaddress import IPv4Address

from lab import ArpFrame, frames
from tests.netns.helpers import RIVAL, harmless

PRIORITIES = [bytes([number, 0]) for number in range(0, 256, 16)]
"""Tags of VLAN 0, which is none: the kernel takes such a tag off."""


def is_conflict(data: bytes, host: str, address: IPv4Address) -> bool:
    """Whether the host with the MAC `host`, that probes for the address, must see a conflict (RFC 3927, 2.2.1)."""
    while data[12:14] in (b"\x81\x00", b"\x88\xa8") and data[14:16] in PRIORITIES:
        data = data[:12] + data[16:]
    frame = frames.parse(data)
    if not isinstance(frame, ArpFrame) or frame.sha == host:
        return False
    if frame.op not in (frames.REQUEST, frames.REPLY):
        return False
    return frame.spa == address or (frame.is_probe and frame.tpa == address)


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A good frame with some bytes changed, left out, put in, or cut off; sometimes tagged."""
    frame = bytearray(rng.choice(seeds))
    for _ in range(rng.choice([0, 1, 1, 2, 3, 10])):
        place = rng.randrange(len(frame))
        match rng.randrange(6):
            case 0:
                frame[place] ^= 1 << rng.randrange(8)
            case 1:
                frame[place] = rng.choice([0, 1, 2, 4, 6, 8, 0x7F, 0x80, 0xA9, 0xFE, 0xFF])
            case 2:
                frame[place:place] = rng.randbytes(rng.choice([1, 2, 4, 400]))
            case 3:
                del frame[place : place + rng.choice([1, 2, 4])]
            case 4:
                del frame[place:]
            case _:
                frame += bytes(rng.choice([1, 18, 1000]))
        if len(frame) < 14:
            frame = bytearray(rng.choice(seeds))
    data = bytes(frame[:1500])
    if rng.random() < 0.1:
        tag = rng.choice([b"\x81\x00", b"\x88\xa8"]) + rng.randbytes(2)
        data = data[:12] + tag * rng.choice([1, 1, 2]) + data[12:]
    return data.ljust(14, b"\0")


def noise(host: str, address: IPv4Address, seed: int) -> Iterator[bytes]:
    """Endlessly: frames of all kinds for the host with that MAC, which has or wants that address."""
    rng = random.Random(seed)
    seeds = [
        *(frame for frame in harmless(host, address).values() if len(frame) >= 42),
        frames.probe(RIVAL, address),
        frames.conflict_request(RIVAL, address),
        frames.conflict_reply(RIVAL, address, host, address, destination=host),
        frames.padded(frames.announcement(RIVAL, address)),
    ]
    while True:
        data = mutated(rng, seeds)
        if rng.random() < 0.3:
            data = frames.garbage(rng, arp_like=rng.random() < 0.7)
        if not is_conflict(data, host, address):
            yield data
