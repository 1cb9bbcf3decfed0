"""A small link-local program that can stand where autoip will stand: it proves the tests, not the protocol.

    python -m tests.netns.standin IFACE [--ip A] [--delay MS] [DEFECT ...]

Each of DEFECTS is a deliberate mistake. Without one it lacks a lot all the same: it never begins anew, remembers
nothing, serves the first of several interfaces, and has no option of the conformance suite.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import time
from ipaddress import IPv4Address

from lab import frames
from lab.frames import ArpFrame

DEFECTS = {
    "meek": "gives the address up at the first conflict",
    "deaf": "hears no conflict at all",
    "stubborn": "never gives the address up",
    "untidy": "leaves the address on the interface at its end",
    "steady": "probes without a random pause",
    "hasty": "uses the address half a second after the last probe",
    "whisper": "announces by unicast",
    "bare": "probes with a sender IP",
    "greedy": "picks from all of 169.254/16, and mostly low addresses",
    "chatty": "announces every 20 seconds",
    "prompt": "begins to probe at once",
    "echoing": "takes its own frames for another host's",
    "jumpy": "takes every probe for a conflict, at any time, even one to it alone",
    "tired": "defends the address once and never again",
    "narrow": "adds the address with another mask",
    "grabbing": "sends everything by the link",
    "sweeping": "takes all other addresses off the interface",
    "final": "gives the address up for ever when a routable one comes",
    "obedient": "takes any first candidate that it is given",
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("interfaces", nargs="+")
    parser.add_argument("--ip", type=IPv4Address)
    parser.add_argument("--delay", type=int, default=2000)
    parser.add_argument("--probes", type=int, default=3)
    for defect, what in DEFECTS.items():
        parser.add_argument(f"--{defect}", action="store_true", help=what)
    options = parser.parse_args()
    delay: float = options.delay / 1000
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    name: str = options.interfaces[0]
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
            if options.deaf or not isinstance(frame, ArpFrame):
                continue
            if frame.sha == mac and not options.echoing:
                continue
            probe = probing and frame.is_probe
            probe |= options.jumpy and frame.spa == IPv4Address(frames.NO_ADDRESS)
            if frame.spa == address or (probe and frame.tpa == address):
                return frame
        return None

    def run(*words: str) -> str:
        return subprocess.run(["ip", *words], check=True, stdout=subprocess.PIPE, text=True).stdout

    def ip(verb: str, address: IPv4Address) -> None:
        if options.sweeping:
            run("addr", "flush", "dev", name)
        length = 24 if options.narrow else 16
        run("addr", verb, f"{address}/{length}", "brd", "+", "dev", name, "scope", "link")
        if options.grabbing and verb == "add":
            for half in ("0.0.0.0/1", "128.0.0.0/1"):
                run("route", "add", half, "dev", name, "src", str(address))

    def pause(number: int) -> float:
        """Seconds before the probe of this number, or before the announcements."""
        if number == options.probes:
            return min(delay, 0.5) if options.hasty else delay
        if options.steady:
            return delay * 0.75
        if options.prompt and number == 0:
            return 0.0
        return rng.uniform(0, delay / 2) if number == 0 else rng.uniform(delay / 2, delay * 0.97)

    def claim(address: IPv4Address) -> bool:
        for number in range(options.probes + 1):
            if conflict(address, pause(number), True):
                print(f"conflict for {address}", flush=True)
                return False
            if number < options.probes:
                print(f"probe {number + 1}/{options.probes} for {address}", flush=True)
                spa = "10.0.0.1" if options.bare else frames.NO_ADDRESS
                sock.send(frames.arp(frames.REQUEST, sha=mac, spa=spa, tpa=address))
        return True

    def announce(address: IPv4Address) -> None:
        to = "02:00:00:00:00:fe" if options.whisper else frames.BROADCAST
        sock.send(frames.arp(frames.REQUEST, sha=mac, spa=address, tpa=address, destination=to))

    def hold(address: IPv4Address) -> None:
        announced, defended = 0, 0.0
        while True:
            if announced < 2:
                announce(address)
                announced += 1
            wait = 2 if announced < 2 else 20 if options.chatty else 1 if options.final else 3600
            frame = conflict(address, wait, False)
            if options.final and run("-4", "addr", "show", "dev", name, "scope", "global"):
                ip("del", address)
                time.sleep(3600)
            if frame is None:
                if options.chatty and announced == 2:
                    announced = 1
                continue
            again = defended > 0 and (options.tired or time.monotonic() - defended < 10)
            if options.meek or (again and not options.stubborn):
                print(f"gave {address} up to {frame.sha}", flush=True)
                return
            defended = time.monotonic()
            print(f"defended {address} against {frame.sha}", flush=True)
            announce(address)

    try:
        wanted: IPv4Address | None = options.ip
        if options.obedient and "CANDIDATE" in os.environ:
            wanted = IPv4Address(os.environ["CANDIDATE"])
        while True:
            low, high = int(IPv4Address("169.254.1.0")), int(IPv4Address("169.254.254.255"))
            if options.greedy:
                low, high = int(IPv4Address("169.254.0.1")), int(IPv4Address("169.254.20.0"))
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
