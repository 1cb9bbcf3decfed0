"""The conflict filter through Python: the kernel runs it on a socket pair (no privileges).

The table of single changed fields is in tests/c/test_filter.c. Here hypothesis looks for a
frame about which three disagree: the kernel, the check in C, and the rule of RFC 3927.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autoip.kernel.arp_socket import FRAME_LENGTH, Phase
from autoip.kernel.native import ffi, lib

SO_ATTACH_FILTER = 26
BROADCAST = b"\xff" * 6
MAC = bytes.fromhex("020000000001")
OTHER_MAC = bytes.fromhex("020000000002")
ADDRESS = IPv4Address("169.254.10.20")
ZERO = bytes(4)


class FilteredPair:
    """Two ends of a datagram socket pair; one has the filter."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.far.setblocking(False)
        self._now: tuple[bytes, IPv4Address, Phase] | None = None

    def passes(self, frame: bytes, mac: bytes, address: IPv4Address, phase: Phase) -> bool:
        if self._now != (mac, address, phase):
            self._attach(mac, address, phase)
            self._now = (mac, address, phase)
        self.near.send(frame)
        try:
            assert self.far.recv(4096) == frame[:FRAME_LENGTH]
        except BlockingIOError:
            return False
        return True

    def _attach(self, mac: bytes, address: IPv4Address, phase: Phase) -> None:
        program = ffi.new("struct sock_filter[]", lib.AUTOIP_FILTER_MAX)
        count = lib.autoip_filter_build(
            program, lib.AUTOIP_FILTER_MAX, mac, int(address), int(phase)
        )
        assert 0 < count <= lib.AUTOIP_FILTER_MAX
        code = ctypes.create_string_buffer(bytes(ffi.buffer(program)))
        self.far.setsockopt(
            socket.SOL_SOCKET,
            SO_ATTACH_FILTER,
            struct.pack("@HP", count, ctypes.addressof(code)),
        )

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture(scope="module")
def pair() -> Iterator[FilteredPair]:
    pair = FilteredPair()
    yield pair
    pair.close()


def rule(frame: bytes, mac: bytes, address: IPv4Address, phase: Phase) -> bool:
    """Return whether RFC 3927 sections 2.2.1 and 2.5, in their own words, concern the frame."""
    if len(frame) < 42:
        return False
    destination, _, kind = struct.unpack_from("!6s6sH", frame)
    hardware, protocol, hlen, plen, operation, sha, spa, _, tpa = struct.unpack_from(
        "!HHBBH6s4s6s4s", frame, 14
    )
    arp = (kind, hardware, protocol, hlen, plen) == (0x0806, 1, 0x0800, 6, 4)
    if not arp or operation not in (1, 2) or sha == mac:
        return False
    uses = bool(spa == address.packed)
    probes = (destination, operation, spa, tpa) == (BROADCAST, 1, ZERO, address.packed)
    if phase is Phase.PROBE:
        return uses or probes
    asks = (operation, tpa) == (1, address.packed)
    return (uses and phase is Phase.DEFEND) or ((uses or asks) and phase is Phase.ANSWER)


macs = st.sampled_from([MAC, OTHER_MAC, bytes(6), BROADCAST]) | st.binary(min_size=6, max_size=6)
addresses = st.sampled_from([ADDRESS, ADDRESS + 1]) | st.integers(0, 2**32 - 1).map(IPv4Address)


@st.composite
def arp_like(draw: st.DrawFn) -> bytes:
    """Draw frames near the border: each field right, or one of its likely wrong values."""

    def field(right: int, *wrong: int) -> int:
        return draw(st.sampled_from([right] * 6 + list(wrong)))

    packed = addresses.map(lambda address: address.packed) | st.just(ZERO)
    frame = struct.pack(
        "!6s6sHHHBBH6s4s6s4s",
        draw(macs),
        draw(macs),
        field(0x0806, 0x0800, 0x8035, 0x8100),
        field(1, 6, 0x0100),
        field(0x0800, 0x0806, 0x86DD),
        field(6, 0, 7),
        field(4, 0, 16),
        draw(st.sampled_from([1, 1, 1, 2, 2, 0, 3, 0x0101])),
        draw(macs),
        draw(packed),
        draw(macs),
        draw(packed),
    )
    return frame[: draw(st.sampled_from([42] * 8 + [41, 0]))] + draw(st.binary(max_size=20))


@pytest.mark.heavy
@settings(max_examples=3000, derandomize=True)
@given(
    frame=arp_like() | st.binary(max_size=100),
    mac=st.sampled_from([MAC, OTHER_MAC]),
    address=st.sampled_from([ADDRESS, ADDRESS + 1]),
    phase=st.sampled_from(Phase),
)
@example(b"", MAC, ADDRESS, Phase.PROBE)
def test_kernel_helper_and_rule_agree(
    pair: FilteredPair, frame: bytes, mac: bytes, address: IPv4Address, phase: Phase
) -> None:
    """claim-conflict, claim-echo, claim-unicast-probe, def-detect, def-probed, def-broadcast: as the rule."""
    expected = rule(frame, mac, address, phase)
    assert pair.passes(frame, mac, address, phase) == expected
    assert (
        bool(lib.autoip_filter_accepts(frame, len(frame), mac, int(address), int(phase)))
        == expected
    )


@pytest.mark.parametrize("address", ["169.254.1.0", "169.254.254.255", "169.254.128.128"])
@pytest.mark.parametrize("phase", [Phase.PROBE, Phase.DEFEND])
def test_both_ends_of_the_range(pair: FilteredPair, address: str, phase: Phase) -> None:
    ours = IPv4Address(address)
    for used in (ours - 1, ours, ours + 1):
        frame = struct.pack(
            "!6s6sHHHBBH6s4s6s4s",
            *(BROADCAST, OTHER_MAC, 0x0806, 1, 0x0800, 6, 4, 2),
            *(OTHER_MAC, used.packed, bytes(6), used.packed),
        )
        assert pair.passes(frame, MAC, ours, phase) == (used == ours)
