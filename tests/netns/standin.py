"""A small link-local program that can stand where autoip will stand: it proves the tests, not the protocol.

    python -m tests.netns.standin IFACE [--ip A] [--delay MS] [--meek] [--deaf] [--stubborn] [--untidy]

`--meek` gives the address up at the first conflict; `--deaf` hears no conflict at all; `--stubborn` never gives it up;
`--untidy` leaves it on the interface.
"""

from __future__ import annotations

import argparse
import random
import signal
import socket
import subprocess
import sys
import time
from ipaddress import IPv4Address

from tests.lab import frames
from tests.lab.frames import ArpFrame


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("interface")
    parser.add_argument("--ip", type=IPv4Address)
    parser.add_argument("--delay", type=int, default=2000)
    parser.add_argument("--meek", action="store_true")
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--untidy", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    name: str = options.interface
    delay = options.delay / 1000
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(frames.ETHERTYPE_ARP))
    sock.bind((name, frames.ETHERTYPE_ARP))
    mac = frames.mac_text(sock.getsockname()[4])
    rng = random.Random()
    held: IPv4Address | None = None

    def conflict(address: IPv4Address, seconds: float, probing: bool) -> ArpFrame | None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                frame = frames.parse(sock.recv(2048))
            except TimeoutError:
                break
            if options.deaf or not isinstance(frame, ArpFrame) or frame.sha == mac:
                continue
            if frame.spa == address or (probing and frame.is_probe and frame.tpa == address):
                return frame
        return None

    def ip(verb: str, address: IPv4Address) -> None:
        arguments = ["addr", verb, f"{address}/16", "dev", name, "scope", "link"]
        subprocess.run(["ip", *arguments], check=True)

    def claim(address: IPv4Address) -> bool:
        for number in range(4):
            pause = (
                rng.uniform(0, delay / 2) if number == 0 else rng.uniform(delay / 2, delay * 0.97)
            )
            if conflict(address, pause if number < 3 else delay, True):
                print(f"conflict for {address}", flush=True)
                return False
            if number < 3:
                print(f"probe {number + 1}/3 for {address}", flush=True)
                sock.send(frames.probe(mac, address))
        return True

    def hold(address: IPv4Address) -> None:
        announced, defended = 0, -100.0
        while True:
            if announced < 2:
                sock.send(frames.announcement(mac, address))
                announced += 1
            frame = conflict(address, 2 if announced < 2 else 3600, False)
            if frame is None:
                continue
            if options.meek or (time.monotonic() - defended < 10 and not options.stubborn):
                print(f"gave {address} up to {frame.sha}", flush=True)
                return
            defended = time.monotonic()
            print(f"defended {address} against {frame.sha}", flush=True)
            sock.send(frames.announcement(mac, address))

    try:
        wanted: IPv4Address | None = options.ip
        while True:
            low, high = int(IPv4Address("169.254.1.0")), int(IPv4Address("169.254.254.255"))
            address = wanted or IPv4Address(rng.randint(low, high))
            wanted = None
            if claim(address):
                held = address
                ip("add", address)
                print(f"claimed {address}", flush=True)
                hold(address)
                ip("del", address)
                held = None
    finally:
        if held is not None and not options.untidy:
            ip("del", held)


if __name__ == "__main__":
    sys.exit(main())
