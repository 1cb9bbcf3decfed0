"""Send raw frames by a packet ring: of such a frame only the Ethernet header can be read without a copy."""

from __future__ import annotations

import mmap
import socket
import struct
from typing import final

# include/uapi/linux/if_packet.h
_SOL_PACKET = 263
_PACKET_VERSION, _PACKET_TX_RING, _TPACKET_V2 = 10, 13, 1
_SEND_REQUEST = 1
_DATA = 32
"""Where the frame begins in its place: behind struct tpacket2_hdr."""
_SIZE, _COUNT = 2048, 16


@final
class PacketRing:
    """The ring of one socket. A place is used again after 15 other frames: the kernel may still read the frame.

    Args:
        interface: its name. The socket belongs to the network namespace of the caller.
    """

    def __init__(self, interface: str) -> None:
        self._sent = 0
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
        request = struct.pack("=4I", _SIZE * _COUNT, 1, _SIZE, _COUNT)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_TX_RING, request)
        self._memory = mmap.mmap(self._socket.fileno(), _SIZE * _COUNT)
        self._socket.bind((interface, 0))

    def send(self, frame: bytes) -> None:
        """Send a frame of at most 2,016 bytes. Returns when the kernel has taken it."""
        place = self._sent % _COUNT * _SIZE
        self._sent += 1
        self._memory[place + _DATA : place + _DATA + len(frame)] = frame
        self._memory[place : place + 8] = struct.pack("=2I", _SEND_REQUEST, len(frame))
        self._socket.send(b"")

    def close(self) -> None:
        """Close the socket."""
        self._memory.close()
        self._socket.close()
