"""Frames a second that the helper receives and sends, beside Python's socket module and scapy."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from ipaddress import IPv4Address

from lab import Namespace, tcx
from lab.frames import conflict_request, mac_bytes

from . import cables, samples
from .cables import Cable
from .report import Result, Target, number
from .setting import FIRST, STRANGER, Setting, helper

NAME = "throughput"

ADDRESS = IPv4Address("169.254.77.77")
MEANS = {
    # Frames received, frames in a burst, pause after it in microseconds, frames sent. No burst is longer
    # than a socket's buffer and the helper's queue.
    "helper": (100_000, 120, 4_000, 100_000),
    "socket": (60_000, 120, 6_000, 60_000),
    "scapy": (4_000, 50, 30_000, 4_000),
}
TITLES = {
    "helper": "autoip.kernel.arp_socket",
    "socket": "Python's socket module",
    "scapy": "scapy",
}
SOCKET_FACTOR = 5.0
SCAPY_FACTOR = 50.0
PACKETS = 1_000_000


def measure(setting: Setting) -> Result:
    result = Result(
        NAME,
        "frames a second of CPU time, received and sent",
        ("", "frames", "lost", "frames/s of CPU", "us a frame", "frames/s of time"),
    )
    rates: dict[tuple[str, str], float] = {}
    with contextlib.ExitStack() as stack:
        yonder = stack.enter_context(Namespace("far"))
        cable = cables.cable(yonder, stack.enter_context(Namespace("host")))
        rounds = setting.times(3, 1)
        for direction, run in (("received", _receive), ("sent", _send)):
            runs: dict[str, list[dict[str, float]]] = {means: [] for means in MEANS}
            for _ in range(rounds):
                for means in MEANS:
                    runs[means].append(run(setting, cable, means))
            for means, found in runs.items():
                # The CPU time of the best round: noise only ever adds.
                best = min(found, key=lambda one: one["cpu"] / max(one["frames"], 1))
                rate = best["frames"] / best["cpu"] if best["cpu"] else 0.0
                rates[direction, means] = rate
                name = f"{TITLES[means]}, {direction}"
                result.rows.append(
                    (
                        name,
                        number(best["frames"]),
                        number(sum(one["lost"] for one in found)),
                        number(rate),
                        number(1e6 / rate) if rate else "",
                        number(best["frames"] / best["wall"]) if direction == "sent" else "",
                    )
                )
                result.numbers[name] = {
                    "rate_median": samples.median([one["frames"] / one["cpu"] for one in found]),
                    "rounds": found,
                }
        _with_programs(setting, cable, result)
    result.targets += _targets(rates)
    result.notes = [
        (
            "Rates by CPU time of all threads of the process, the kernel's part of their system calls included:"
            " a sender that cannot keep up, or a busy machine, does not change them. Best of"
            f" {setting.times(3, 1)} rounds."
        ),
        (
            "Received: bursts of conflicts, in the socket's buffer before they are read, each"
            " checked and given to Python with its time; the helper's thread and drain() together."
        ),
        "Sent: one frame a call, on a veth pair, whose sender also pays for the delivery at the far end.",
        (
            "Programs: the one that has ARP of link-local addresses leave by broadcast and, by tcx, the one that"
            " defends."
            " Lost: what did not arrive while they were attached and detached over and over; received: IPv4"
            " packets at full speed, counted where the kernel's IPv4 begins, behind the program."
        ),
    ]
    return result


def _targets(rates: dict[tuple[str, str], float]) -> list[Target]:
    factors = (("socket", SOCKET_FACTOR), ("scapy", SCAPY_FACTOR))
    return [
        Target(
            f"{direction}: helper to {TITLES[means]}",
            factor,
            rates[direction, "helper"] / rates[direction, means],
            "times",
            at_least=True,
        )
        for direction in ("received", "sent")
        for means, factor in factors
    ]


def _with_programs(setting: Setting, cable: Cable, result: Result) -> None:
    """Measure what is lost, and the helper's sending, with the BPF programs at the interface."""
    for prefix in ((), tcx.WITHOUT):
        for how in ("stays", "comes-and-goes"):
            words = (cable.name, cable.raw_mac.hex(), str(ADDRESS), how)
            with helper(setting, cable, "attached", *words, prefix=prefix) as process:
                before = _arrived(cable)
                sent = _send(setting, cable, "helper", 5 if how == "comes-and-goes" else 1)
                sent["lost"] = max(before + sent["frames"] - _arrived(cable), 0)
                received = _receive_packets(setting, cable)
                process.signal(signal.SIGTERM)
                told = json.loads(process.wait_line("^{", 60))
                process.wait()
            times, place = told["times"], told["place"]
            programs = "program in a clsact" if place == "in a clsact" else f"programs {place}"
            name = programs + (f", came {times} times" if times > 1 else "")
            rate = sent["frames"] / sent["cpu"]
            for direction, found in (("sent", sent), ("received", received)):
                count, speed = found["frames"], number(found["frames"] / found["wall"])
                cost = (number(rate), number(1e6 / rate)) if direction == "sent" else ("", "")
                row = (f"{direction}, {name}", number(count), number(found["lost"]), *cost, speed)
                result.rows.append(row)
                result.numbers[f"{direction}, {programs}, {how}"] = {**found, "times": times}
                if (place, how) == ("by tcx", "comes-and-goes"):
                    figure = f"{direction} frames lost while the programs come and go by tcx"
                    result.targets.append(Target(figure, 0.0, found["lost"], "frames"))


def _arrived(cable: Cable) -> int:
    """Return how many frames have come out of the far end."""
    [link] = json.loads(cable.yonder.run("ip", "-s", "-j", "link", "show", cable.far))
    return int(link["stats64"]["rx"]["packets"])


def _packets(cable: Cable) -> int:
    """Return how many IPv4 packets have come to the host."""
    head, values = re.findall(r"^Ip: (.*)$", cable.host.run("cat", "/proc/net/snmp"), re.MULTILINE)
    return int(values.split()[head.split().index("InReceives")])


def _receive_packets(setting: Setting, cable: Cable) -> dict[str, float]:
    count = setting.times(PACKETS, PACKETS // 5)
    # The kernel counts a packet before it looks at the checksum, which is wrong: none is answered.
    packet = bytes.fromhex("45000014000000004011") + bytes(10)
    ethernet = mac_bytes(cable.mac) + mac_bytes(cable.far_mac) + b"\x08\x00"
    before = _packets(cable)
    program = setting.workshop.program("flood")
    frame = (ethernet + packet).hex()
    took = int(cable.yonder.run(program, cable.far, frame, str(count), timeout=120))
    lost = before + count - _packets(cable)
    return {"frames": count, "lost": lost, "wall": took / 1e9}


def _arguments(cable: Cable, means: str, count: int) -> tuple[str, ...]:
    return means, cable.name, cable.raw_mac.hex(), str(ADDRESS), str(count)


def _receive(setting: Setting, cable: Cable, means: str) -> dict[str, float]:
    count, burst, pause, _ = MEANS[means]
    count = setting.times(count, count // 5)
    with helper(
        setting, cable, "receiver", *_arguments(cable, means, count), apart=True
    ) as process:
        frame = conflict_request(STRANGER, ADDRESS).hex()
        program = setting.workshop.program("flood")
        arguments = (cable.far, frame, str(count), str(burst), str(pause))
        # First, on the receiver's processor: a burst is in the socket's buffer before it is read.
        cable.yonder.run(*FIRST, program, *arguments, timeout=120)
        found: dict[str, float] = json.loads(process.wait_line("^{", 60))
        process.wait()
    found["lost"] = count - found["frames"]
    return found


def _send(setting: Setting, cable: Cable, means: str, times: int = 1) -> dict[str, float]:
    count = times * MEANS[means][3]
    count = setting.times(count, count // 5)
    with helper(setting, cable, "sender", *_arguments(cable, means, count)) as process:
        found: dict[str, float] = json.loads(process.wait_line("^{", 60))
        process.wait()
    found["lost"] = 0
    return found
