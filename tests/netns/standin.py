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


class StandIn:
    """The program on one interface."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._delay: float = options.delay / 1000
        self._name: str = options.interfaces[0]
        self._sock = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW, socket.htons(frames.ETHERTYPE_ARP)
        )
        self._sock.bind((self._name, frames.ETHERTYPE_ARP))
        self._mac = frames.mac_text(self._sock.getsockname()[4])
        self._rng = random.Random()
        self._held: IPv4Address | None = None

    def run(self) -> None:
        """Claim and hold one address after the other, until SIGTERM."""
        wanted: IPv4Address | None = self._options.ip
        if self._options.obedient and "CANDIDATE" in os.environ:
            wanted = IPv4Address(os.environ["CANDIDATE"])
        try:
            while True:
                address = wanted or self._picked()
                wanted = None
                if self._claim(address):
                    self._held = address
                    self._ip("add", address)
                    print(f"claimed {address}", flush=True)
                    self._hold(address)
                    self._ip("del", address)
                    self._held = None
        finally:
            if self._held is not None and not self._options.untidy:
                self._ip("del", self._held)

    def _picked(self) -> IPv4Address:
        first, last = "169.254.1.0", "169.254.254.255"
        if self._options.greedy:
            first, last = "169.254.0.1", "169.254.20.0"
        return IPv4Address(self._rng.randint(int(IPv4Address(first)), int(IPv4Address(last))))

    def _claim(self, address: IPv4Address) -> bool:
        probes: int = self._options.probes
        for number in range(probes + 1):
            if self._conflict(address, self._pause(number), probing=True):
                print(f"conflict for {address}", flush=True)
                return False
            if number < probes:
                print(f"probe {number + 1}/{probes} for {address}", flush=True)
                spa = "10.0.0.1" if self._options.bare else frames.NO_ADDRESS
                self._sock.send(frames.arp(frames.REQUEST, sha=self._mac, spa=spa, tpa=address))
        return True

    def _pause(self, number: int) -> float:
        """Return the seconds before the probe of this number, or before the announcements."""
        options, delay, uniform = self._options, self._delay, self._rng.uniform
        if number == options.probes:
            return min(delay, 0.5) if options.hasty else delay
        if options.steady:
            return delay * 0.75
        if options.prompt and number == 0:
            return 0.0
        return uniform(0, delay / 2) if number == 0 else uniform(delay / 2, delay * 0.97)

    def _conflict(self, address: IPv4Address, seconds: float, *, probing: bool) -> ArpFrame | None:
        """Return the first conflict within so many seconds."""
        options = self._options
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._sock.settimeout(left)
            try:
                frame = frames.parse(self._sock.recv(2048))
            except TimeoutError:
                break
            if options.deaf or not isinstance(frame, ArpFrame):
                continue
            if frame.sha == self._mac and not options.echoing:
                continue
            probe = probing and frame.is_probe
            probe |= options.jumpy and frame.spa == IPv4Address(frames.NO_ADDRESS)
            if frame.spa == address or (probe and frame.tpa == address):
                return frame
        return None

    def _hold(self, address: IPv4Address) -> None:
        """Announce and defend the address; return when it is given up."""
        options = self._options
        announced, defended = 0, 0.0
        while True:
            if announced < 2:
                self._announce(address)
                announced += 1
            wait = 2 if announced < 2 else 20 if options.chatty else 1 if options.final else 3600
            frame = self._conflict(address, wait, probing=False)
            if options.final and _run("-4", "addr", "show", "dev", self._name, "scope", "global"):
                self._ip("del", address)
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
            self._announce(address)

    def _announce(self, address: IPv4Address) -> None:
        to = "02:00:00:00:00:fe" if self._options.whisper else frames.BROADCAST
        self._sock.send(
            frames.arp(frames.REQUEST, sha=self._mac, spa=address, tpa=address, destination=to)
        )

    def _ip(self, verb: str, address: IPv4Address) -> None:
        if self._options.sweeping:
            _run("addr", "flush", "dev", self._name)
        length = 24 if self._options.narrow else 16
        _run("addr", verb, f"{address}/{length}", "brd", "+", "dev", self._name, "scope", "link")
        if self._options.grabbing and verb == "add":
            for half in ("0.0.0.0/1", "128.0.0.0/1"):
                _run("route", "add", half, "dev", self._name, "src", str(address))


def _run(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("interfaces", nargs="+")
    parser.add_argument("--ip", type=IPv4Address)
    parser.add_argument("--delay", type=int, default=2000)
    parser.add_argument("--probes", type=int, default=3)
    for defect, what in DEFECTS.items():
        parser.add_argument(f"--{defect}", action="store_true", help=what)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    StandIn(parser.parse_args()).run()


if __name__ == "__main__":
    main()
